"""Prometheus metrics of pools."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

try:
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
    from prometheus_client.registry import Collector
except ImportError as error:
    raise ImportError(
        f"lghard.metrics needs prometheus-client: pip install 'lghard[prometheus]' ({error})"
    ) from error

if TYPE_CHECKING:
    from lghard.postgres import ManagedPool, PoolSnapshot

__all__ = ["PoolCollector"]


class PoolCollector(Collector):
    """Reads pools when Prometheus asks, and costs nothing in between.

    Connections by state, waiting borrowers, the oldest borrow, and totals of borrows, waiting and
    usage time (seconds), and evictions by reason; each with the label `pool`, the pool's name.

    Args:
        pools: the pools to tell about, each under a name of its own (`open_pool(name=...)`).

    Example:
        >>> async with open_pool(name="checkpoints") as pool:
        ...     REGISTRY.register(PoolCollector(pool))
    """

    def __init__(self, *pools: "ManagedPool[Any]") -> None:
        self._pools = pools

    def describe(self) -> list[Metric]:
        """Nothing: a registry need not ask pools that are not open yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        """The metrics at this moment."""
        snapshots = [pool.snapshot() for pool in self._pools]
        yield _connections(snapshots)
        for name, help_, attribute in _GAUGES:
            gauge = GaugeMetricFamily(f"lghard_pool_{name}", help_, labels=["pool"])
            for snapshot in snapshots:
                gauge.add_metric([snapshot.name], getattr(snapshot, attribute))
            yield gauge
        for name, help_, attribute in _COUNTERS:
            counter = CounterMetricFamily(f"lghard_pool_{name}", help_, labels=["pool"])
            for snapshot in snapshots:
                counter.add_metric([snapshot.name], getattr(snapshot, attribute))
            yield counter
        yield _evictions(snapshots)


_GAUGES = (
    ("max_connections", "Connections that the pool may have", "max_size"),
    ("waiting", "Borrowers without a connection", "waiting"),
    ("longest_borrow_seconds", "Age of the oldest borrow", "longest_borrow"),
)
_COUNTERS = (
    ("borrows", "Connections asked for", "requests"),
    ("borrows_waited", "Borrows that had to wait", "waited"),
    ("borrows_failed", "Borrows that got no connection", "failed"),
    ("wait_seconds", "Time that borrowers have waited", "wait_time"),
    ("usage_seconds", "Time that connections were borrowed", "usage_time"),
)


def _connections(snapshots: list["PoolSnapshot"]) -> Metric:
    family = GaugeMetricFamily(
        "lghard_pool_connections", "Connections by state", labels=["pool", "state"]
    )
    for snapshot in snapshots:
        for state in ("idle", "borrowed", "asked", "missing"):
            family.add_metric([snapshot.name, state], getattr(snapshot, state))
    return family


def _evictions(snapshots: list["PoolSnapshot"]) -> Metric:
    family = CounterMetricFamily(
        "lghard_pool_evictions", "Connections taken out, by reason", labels=["pool", "reason"]
    )
    for snapshot in snapshots:
        for reason, number in snapshot.evictions.items():
            family.add_metric([snapshot.name, reason], number)
    return family
