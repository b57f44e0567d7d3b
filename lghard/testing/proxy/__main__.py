"""`python -m lghard.testing.proxy --to HOST:PORT --latency SECONDS`."""

from lghard.testing.proxy.process import main

main()
