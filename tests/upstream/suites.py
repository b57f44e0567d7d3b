"""Which tests of upstream's are run on which class of ours."""

from collections.abc import Mapping
from dataclasses import dataclass

from tests.upstream.differences import (
    POOL_DIFFERENCES,
    SAVER_DIFFERENCES,
    SINGLE_ONLY,
    STORE_DIFFERENCES,
)
from tests.upstream.verdict import Difference


@dataclass(frozen=True)
class Suite:
    """Tests of upstream's, and the class of ours that they are run on.

    Args:
        upstream: The class that the tests are about, as `module:name`.
        ours: The class to put in its place.
        tests: Files, or single tests.
        options: What pytest is told, with `{conninfo}` and `{server}` (without database) filled in.
        differences: The tests that do not pass, each with the reason.
        requirements: What the tests need besides lghard, if they have an environment of their own.
    """

    upstream: str
    ours: str
    tests: tuple[str, ...]
    options: tuple[str, ...]
    differences: Mapping[str, Difference]
    requirements: tuple[str, ...] = ()


SAVER = Suite(
    upstream="langgraph.checkpoint.postgres.aio:AsyncPostgresSaver",
    ours="lghard.postgres:HardenedAsyncPostgresSaver",
    tests=(
        "tests/test_async.py",
        "tests/test_conformance_delta.py",
        "tests/test_delta_pagination.py",
        "tests/test_delta_plain_value_seed.py",
        "tests/test_prune.py",
    ),
    options=(
        "--constant=tests.conftest:DEFAULT_URI={conninfo}",
        "--constant=tests.conftest:DEFAULT_POSTGRES_URI={server}",
        "--override-ini=asyncio_default_fixture_loop_scope=function",
        # Not the synchronous and the shallow saver, which are other classes.
        "-k=not shallow and not test_sync_ and (test_async.py or not ([base or [pool or [pipe))",
    ),
    differences=SAVER_DIFFERENCES,
)

# What upstream tests on a single connection only, on a pool, as who changes to lghard has it.
SAVER_ON_POOLS = Suite(
    upstream=SAVER.upstream,
    ours=SAVER.ours,
    tests=SINGLE_ONLY,
    options=(
        *SAVER.options,
        "--function=tests.test_async:_base_saver=tests.test_async:_pool_saver",
        "--function=tests.test_prune:_second_saver=pools:second_saver",
    ),
    differences={},
)

STORE = Suite(
    upstream="langgraph.store.postgres:AsyncPostgresStore",
    ours="lghard.postgres.store:HardenedAsyncPostgresStore",
    tests=("tests/test_async_store.py",),
    options=(
        *SAVER.options[:-1],
        # On a pool, once; and without pgvector, which the test kit's servers do not have.
        "-k=(pool or not (default or pipe)) and not vector and not embed and not search_sorting",
    ),
    differences=STORE_DIFFERENCES,
)

POOL = Suite(
    upstream="psycopg_pool:AsyncConnectionPool",
    ours="lghard.postgres:ManagedPool",
    tests=(
        "tests/pool/test_pool_async.py",
        "tests/pool/test_pool_async_noasyncio.py",
        "tests/pool/test_pool_common_async.py",
    ),
    options=("--test-dsn={conninfo}", "-k=not AsyncNullConnectionPool", "--timeout=60"),
    requirements=("anyio", "pproxy", "pytest", "pytest-timeout"),
    differences=POOL_DIFFERENCES,
)
