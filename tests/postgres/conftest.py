"""Operations by themselves, and together: what a saver promises holds both ways."""

import pytest

from lghard import HardenedAsyncPostgresSaver, open_checkpointer
from lghard.testing import TemporaryPgBouncer


@pytest.fixture(params=["direct", "pooled"])
def conninfo(
    request: pytest.FixtureRequest, lghard_database: str, lghard_pgbouncer: TemporaryPgBouncer
) -> str:
    """The way to the database, with and without a transaction pooler in between."""
    if request.param == "direct":
        return lghard_database
    return lghard_pgbouncer.conninfo(lghard_database)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that uses `batching` runs both ways, unless it is a control or says why not."""
    is_control = (
        "upstream" in metafunc.definition.fixturenames or "_upstream" in metafunc.definition.name
    )
    is_alone = is_control or metafunc.definition.get_closest_marker("alone")
    if "batching" in metafunc.fixturenames and not is_alone:
        metafunc.parametrize("batching", [False, True], ids=["alone", "together"], indirect=True)


@pytest.fixture
def batching(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the savers of a test share round trips where it does not say."""
    for function in (HardenedAsyncPostgresSaver.__init__, open_checkpointer.__wrapped__):
        monkeypatch.setitem(function.__kwdefaults__, "batching", getattr(request, "param", False))
