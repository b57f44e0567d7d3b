"""What Prometheus sees of a pool."""

import subprocess
import sys

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from psycopg_pool import PoolTimeout

from lghard import open_pool
from lghard.metrics import PoolCollector


async def test_a_pool_in_prometheus_words(lghard_database):
    """Connections by state, waiting time and evictions, with the pool's name."""
    registry = CollectorRegistry()
    async with open_pool(lghard_database, name="checkpoints", max_size=3) as pool:
        registry.register(PoolCollector(pool))
        async with pool.connection():
            busy = generate_latest(registry).decode()
        pool._evictions["dead"] += 1
        calm = generate_latest(registry).decode()
    assert 'lghard_pool_connections{pool="checkpoints",state="borrowed"} 1.0' in busy
    assert 'lghard_pool_connections{pool="checkpoints",state="idle"} 1.0' in calm
    assert 'lghard_pool_max_connections{pool="checkpoints"} 3.0' in calm
    assert 'lghard_pool_borrows_total{pool="checkpoints"} 1.0' in calm
    assert 'lghard_pool_evictions_total{pool="checkpoints",reason="dead"} 1.0' in calm


async def test_everything_that_a_snapshot_counts(lghard_database):
    """Each metric has the snapshot's number."""
    async with open_pool(lghard_database, max_size=1) as pool:
        async with pool.connection() as conn:
            with pytest.raises(PoolTimeout):
                await pool.getconn(timeout=0.05)
            await conn.execute("SELECT pg_sleep(0.01)")
        snapshot = pool.snapshot()
        found = {
            sample.name.removeprefix("lghard_pool_"): sample.value
            for metric in PoolCollector(pool).collect()
            for sample in metric.samples
            if sample.labels == {"pool": pool.name}
        }
    assert found == {
        "max_connections": 1,
        "waiting": 0,
        "longest_borrow_seconds": 0,
        "borrows_total": 2,
        "borrows_waited_total": 1,
        "borrows_failed_total": 1,
        "wait_seconds_total": snapshot.wait_time,
        "usage_seconds_total": snapshot.usage_time,
    }
    assert min(snapshot.wait_time, snapshot.usage_time) > 0


def test_without_prometheus_client():
    """The error says what to install."""
    program = "import sys; sys.modules['prometheus_client.core'] = None; import lghard.metrics"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert "pip install 'lghard[prometheus]'" in done.stderr
