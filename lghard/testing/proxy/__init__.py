"""A TCP proxy between a client and a real server, to break what connects them.

Needs nothing but the standard library; `conninfo()` also needs psycopg.
"""

from lghard.testing.proxy.fault_proxy import FaultProxy
from lghard.testing.proxy.process import ProxyProcess, proxy_process
from lghard.testing.proxy.relay import Direction

__all__ = ["Direction", "FaultProxy", "ProxyProcess", "proxy_process"]
