"""Upstream's own tests, run against lghard's classes from a fetched copy of them."""
