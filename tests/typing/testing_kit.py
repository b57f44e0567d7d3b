"""What type checkers see of `lghard.testing`."""

from typing import assert_type

from lghard.testing import (
    FaultProxy,
    LangGraphServer,
    ProxyProcess,
    TemporaryPostgres,
    langgraph_server,
    proxy_process,
    temporary_postgres,
)


async def network(server: TemporaryPostgres) -> None:
    """The proxy is itself in its block, and its switches take what they say."""
    async with FaultProxy(server.host, server.port, latency=0.01) as proxy:
        assert_type(proxy, FaultProxy)
        assert_type(proxy.conninfo(server.conninfo), str)
        assert_type(proxy.url("http://example"), str)
        assert_type((proxy.connections, proxy.bytes_up), tuple[int, int])
        assert_type(proxy.latency, float)
        assert_type(proxy.restore(lose=True), None)
        proxy.cut_after(7, "up")
        proxy.cut_after(7, "sideways")  # pyright: ignore[reportArgumentType]
    with proxy_process(server.host, server.port, latency=0.01) as process:
        assert_type(process, ProxyProcess)
        assert_type((process.host, process.port, process.pid), tuple[str, int, int])


def servers() -> None:
    """Each `with` yields the server's own class."""
    with temporary_postgres(settings={"max_connections": "20"}) as postgres:
        assert_type(postgres, TemporaryPostgres)
        with postgres.standby() as standby:
            assert_type(standby, TemporaryPostgres)
    with langgraph_server({"agent": "./agent.py:graph"}, jobs=0) as server:
        assert_type(server, LangGraphServer)
        assert_type(server.log(), str)
