"""What stands in for upstream's functions that need a saver on a single connection."""

from contextlib import AbstractAsyncContextManager

from lghard import HardenedAsyncPostgresSaver


def second_saver(
    saver: HardenedAsyncPostgresSaver,
) -> AbstractAsyncContextManager[HardenedAsyncPostgresSaver]:
    """Another saver on the same database, for what happens while `saver` prunes."""
    assert isinstance(saver.conn.conninfo, str)
    return HardenedAsyncPostgresSaver.from_conn_string(saver.conn.conninfo)
