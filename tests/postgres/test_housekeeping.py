"""What the pool sees to while nobody borrows, and what upstream's leaves to the next borrower."""

import asyncio
from contextlib import asynccontextmanager

import psycopg
import pytest
from psycopg_pool import AsyncConnectionPool

from lghard import ManagedPool
from lghard.testing import FaultProxy
from tests.postgres.checkpoints import eventually

SIZE = 3


@asynccontextmanager
async def both(conninfo, theirs=None, **arguments):
    """A pool of ours and one of upstream's, all of their connections open and idle."""
    arguments = {"min_size": SIZE, "kwargs": {"autocommit": True}, "open": False, **arguments}
    async with (
        ManagedPool(conninfo, **arguments) as ours,
        AsyncConnectionPool(theirs or conninfo, **arguments) as upstream,
    ):
        await ours.wait()
        await upstream.wait()
        yield ours, upstream


def pids(pool):
    return {conn.info.backend_pid for conn in pool._pool}


async def works(pool):
    """Whether a borrower gets a connection that a statement works on."""
    async with pool.connection() as conn:
        return await (await conn.execute("SELECT true")).fetchone() == (True,)


async def test_what_dies_while_nobody_borrows_is_replaced(lghard_postgres, lghard_database):
    """Before anybody meets it; upstream waits until somebody does."""
    async with both(lghard_database) as (ours, upstream):
        old, theirs = pids(ours), pids(upstream)
        await asyncio.to_thread(lghard_postgres.terminate_backends, database=lghard_database)
        await eventually(lambda: SIZE == len(pids(ours) - old))
        assert {"dead": SIZE} == ours.snapshot().evictions
        assert theirs == pids(upstream)
        with pytest.raises(psycopg.OperationalError):
            await works(upstream)
        assert await works(ours)


async def test_what_expires_while_nobody_borrows_is_replaced(lghard_database):
    """So that the next borrower need not wait for a new one; upstream serves what has expired."""
    async with both(lghard_database, max_lifetime=0.5) as (ours, upstream):
        old, theirs = pids(ours), pids(upstream)
        await eventually(lambda: SIZE == len(pids(ours) - old))
        assert SIZE <= ours.snapshot().evictions["expired"]
        assert theirs == pids(upstream)
        async with upstream.connection() as conn:
            assert conn._expire_at < asyncio.get_running_loop().time()


class Firewall(FaultProxy):
    """A network that closes connections on which nothing was said between two looks at them."""

    said = 0

    def look(self):
        """Close what was silent."""
        if self.bytes_up == self.said:
            self.drop()
        self.said = self.bytes_up


async def test_idle_connections_are_kept_alive(lghard_postgres, lghard_database):
    """A firewall that closes idle connections never finds one, as long as it waits a round."""
    address = lghard_postgres.host, lghard_postgres.port
    async with Firewall(*address) as near, Firewall(*address) as far:
        ways = near.conninfo(lghard_database), far.conninfo(lghard_database)
        async with both(*ways) as (ours, upstream):
            ours.ping_after = 0.0
            old = pids(ours)
            near.look()
            far.look()
            for _ in range(2):
                await eventually(lambda: near.bytes_up > near.said and not ours._asked)
                near.look()
                far.look()
            assert old == pids(ours)
            assert await works(ours)
            with pytest.raises(psycopg.OperationalError):
                await works(upstream)
