"""What every test has, in tests/, docs/ and the README."""

pytest_plugins = ["lghard.testing.fixtures"]
