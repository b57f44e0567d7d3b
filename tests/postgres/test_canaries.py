"""Private names of upstream that lghard leans on: a change there fails here first, by its name."""

import asyncio
import inspect
from collections import Counter, deque
from importlib import import_module
from importlib.metadata import version
from operator import attrgetter
from typing import Any, NamedTuple

import pytest
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.postgres.base import PRUNE_SNAPSHOT_SQL, _keep_latest
from langgraph.store.base import GetOp, PutOp, SearchOp
from langgraph.store.postgres import AsyncPostgresStore
from langgraph.store.postgres.base import PLACEHOLDER
from psycopg import AsyncConnection
from psycopg._queries import _query2pg_nocache
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import TransactionStatus
from psycopg_pool import AsyncConnectionPool
from psycopg_pool.base import AttemptWithBackoff
from psycopg_pool.sched_async import AsyncScheduler

from lghard.postgres.store import _PROLONG

AUTOCOMMIT = {"autocommit": True}


class Leaning(NamedTuple):
    """A private name of upstream, how lghard calls or overrides it, and where."""

    package: str
    name: str
    signature: str
    used_by: str
    because: str

    def complaint(self, found: object) -> str:
        """What to tell whoever upgraded upstream."""
        return (
            f"{self.package} {version(self.package)} has {self.name}{found}, and lghard was written"
            f" for {self.name}{self.signature}: look at {self.used_by}, where {self.because}"
        )


POOL = "psycopg_pool.pool_async:AsyncConnectionPool"
SAVER = "langgraph.checkpoint.postgres.aio:AsyncPostgresSaver"
STORE = "langgraph.store.postgres.aio:AsyncPostgresStore"
STORE_BASE = "langgraph.store.postgres.base"

LEANINGS = [
    Leaning("psycopg-pool", f"{POOL}.{name}", signature, f"pool.py, {where}", because)
    for name, signature, where, because in [
        (
            "_getconn_unchecked",
            "async (self, timeout)",
            "ManagedPool._getconn_unchecked",
            "it is overridden: every borrow looks at its connection there",
        ),
        (
            "_putconn",
            "async (self, conn, from_getconn)",
            "ManagedPool._getconn_unchecked",
            "it takes back a connection that is not handed out after all",
        ),
        (
            "_return_connection",
            "async (self, conn, from_getconn)",
            "ManagedPool._getconn_unchecked",
            "_putconn goes through it, and it replaces what is broken",
        ),
        (
            "_add_to_pool",
            "async (self, conn)",
            "ManagedPool._add_to_pool",
            "it is overridden: it notes since when a connection is idle",
        ),
        (
            "_connect",
            "async (self, timeout=None)",
            "ManagedPool._connect",
            "it is overridden to tell Reconnects how it went",
        ),
        (
            "_add_connection",
            "async (self, attempt, growing=False)",
            "ManagedPool._add_connection",
            "it is overridden to count how long a connection is missing",
        ),
        (
            "run_task",
            "(self, task)",
            "ManagedPool._evict",
            "it has a worker make a connection",
        ),
        (
            "_open",
            "(self)",
            "ManagedPool._open",
            "it is overridden: what a pool has only while it is open is made there",
        ),
        (
            "_get_ready_connection",
            "async (self, timeout)",
            "ManagedPool._next",
            "it gives an idle connection, or raises when there is no time or no place to wait",
        ),
        (
            "_maybe_grow_pool",
            "(self)",
            "ManagedPool._next",
            "it has another connection made for who waits",
        ),
        (
            "schedule_task",
            "async (self, task, delay)",
            "ManagedPool.schedule_task",
            "it is overridden: when to reconnect is Reconnects' matter",
        ),
        (
            "_start_initial_tasks",
            "(self)",
            "ManagedPool._start_initial_tasks",
            "it is overridden, to start the housekeeping",
        ),
        (
            "check_connection",
            "async (conn)",
            "liveness.ping",
            "its empty query is the ping",
        ),
    ]
]
LEANINGS += [
    *(
        Leaning(
            "psycopg-pool",
            f"psycopg_pool.pool_async:WaitingClient.{name}",
            signature,
            "borrowing.py, Waiter",
            "Waiter stands in its place in the pool's queue",
        )
        for name, signature in {
            "wait": "async (self, timeout)",
            "set": "async (self, conn)",
            "fail": "async (self, error)",
        }.items()
    ),
    Leaning(
        "psycopg-pool",
        "psycopg_pool.pool_async:AddConnection",
        "(pool, attempt=None, growing=False)",
        "pool.py, ManagedPool._evict",
        "it is the task that replaces a dead connection",
    ),
    Leaning(
        "psycopg-pool",
        "psycopg_pool.base:AttemptWithBackoff",
        "(*, timeout)",
        "reconnecting.py, Attempt",
        "Attempt is one",
    ),
    Leaning(
        "psycopg-pool",
        "psycopg_pool.base:AttemptWithBackoff.update_delay",
        "(self, now)",
        "reconnecting.py, Attempt.update_delay",
        "it is overridden, to leave the delay to Reconnects",
    ),
    Leaning(
        "psycopg",
        "psycopg._queries:_query2pg_nocache",
        "(query, encoding)",
        "statements.py, _compile",
        "it turns placeholders into what libpq takes",
    ),
    Leaning(
        "psycopg",
        "psycopg.generators:send",
        "(pgconn)",
        "statements.py, _complete",
        "it flushes all commands of an operation at once",
    ),
    Leaning(
        "psycopg",
        "psycopg.generators:fetch_many",
        "(pgconn)",
        "statements.py, _complete",
        "it reads the results of one command of the pipeline",
    ),
]
LEANINGS += [
    Leaning(
        "langgraph-checkpoint-postgres", f"{SAVER}.{name}", signature, f"saver.py, {where}", because
    )
    for name, signature, where, because in [
        (
            "_cursor",
            "(self, *, pipeline=False)",
            "HardenedAsyncPostgresSaver._cursor",
            "it is overridden: the statements of the base class go through it, without its lock",
        ),
        (
            "_search_where",
            "(self, config, filter, before=None)",
            "alist",
            "it says which checkpoints are listed",
        ),
        (
            "_load_checkpoint_tuple",
            "async (self, value)",
            "alist",
            "it makes a checkpoint of a row",
        ),
        (
            "_migrate_pending_sends",
            "(self, pending_sends, checkpoint, channel_values)",
            "_add_pending_sends",
            "it carries the Sends of checkpoints before version 4 over",
        ),
        (
            "_dump_blobs",
            "(self, thread_id, checkpoint_ns, values, versions)",
            "aput",
            "it makes the rows of checkpoint_blobs",
        ),
        (
            "_dump_writes",
            "(self, thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, writes)",
            "aput_writes",
            "it makes the rows of checkpoint_writes",
        ),
    ]
]
LEANINGS += [
    Leaning(
        "langgraph-checkpoint",
        "langgraph.checkpoint.serde.types:_DeltaSnapshot",
        "(value)",
        "saver.py, _split",
        "such a value is stored in a blob, and True in its place",
    ),
    Leaning(
        "langgraph-checkpoint",
        "langgraph.checkpoint.base:get_serializable_checkpoint_metadata",
        "(config, metadata)",
        "saver.py, aput",
        "it makes the metadata column",
    ),
    Leaning(
        "langgraph-checkpoint-postgres",
        "langgraph.checkpoint.postgres.base:_refuse_delta_threads",
        "(thread_ids)",
        "saver.py, _refuse_delta_threads",
        "it finds the threads that aprune must not touch, before it touches any",
    ),
    Leaning(
        "langgraph-checkpoint-postgres",
        "langgraph.checkpoint.postgres.base:_keep_latest",
        "(thread_id)",
        "saver.py, _keep_latest",
        "it says what to execute to prune one thread",
    ),
    Leaning(
        "langgraph-checkpoint-postgres",
        "langgraph.checkpoint.postgres.base:_aexecute",
        "async (cur, statements)",
        "saver.py, _refuse_delta_threads and _keep_latest",
        "it executes what the functions above ask for",
    ),
]
LEANINGS += [
    Leaning(
        "langgraph-checkpoint",
        f"{STORE}._ensure_task",
        "(self)",
        "store.py, _ensure_task",
        "it is overridden: there each operation announces that it is about to be queued",
    ),
    *(
        Leaning("langgraph-checkpoint-postgres", name, signature, f"store.py, {where}", because)
        for name, signature, where, because in [
            (
                f"{STORE}._cursor",
                "(self, *, pipeline=False)",
                "_cursor",
                "it is overridden: the sweep of the base class goes through it",
            ),
            (
                f"{STORE}._get_batch_GET_ops_queries",
                "(self, get_ops)",
                "_gets",
                "it makes the statements that read items",
            ),
            (
                f"{STORE}._prepare_batch_search_queries",
                "(self, search_ops)",
                "_searches",
                "it makes the statements that search, and says what has to be embedded",
            ),
            (
                f"{STORE}._get_batch_list_namespaces_queries",
                "(self, list_ops)",
                "_lists",
                "it makes the statements that list namespaces",
            ),
            (
                f"{STORE}._prepare_batch_PUT_queries",
                "(self, put_ops)",
                "_statements",
                "it makes the statements that put and delete, and says what has to be embedded",
            ),
            (
                f"{STORE_BASE}:_row_to_item",
                "(namespace, row, *, loader=None)",
                "_take_items",
                "it makes an item of a row",
            ),
            (
                f"{STORE_BASE}:_row_to_search_item",
                "(namespace, row, *, loader=None)",
                "_take_found",
                "it makes an item of a row",
            ),
            (
                f"{STORE_BASE}:_decode_ns_bytes",
                "(namespace)",
                "_take_found",
                "it makes a namespace of its text",
            ),
        ]
    ),
]


def resolve(name: str) -> Any:
    """The object behind `module:path`, or None."""
    module, _, path = name.partition(":")
    found: Any = import_module(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def signature_of(function: Any) -> str:
    """A signature without annotations, as LEANINGS spells it; nothing for what is not there."""
    if function is None:
        return " no more"
    parameters = inspect.signature(function).parameters.values()
    bare = [each.replace(annotation=inspect.Parameter.empty) for each in parameters]
    prefix = "async " if inspect.iscoroutinefunction(function) else ""
    return prefix + str(inspect.Signature(bare))


@pytest.mark.parametrize("leaning", LEANINGS, ids=lambda leaning: leaning.name.partition(":")[2])
def test_private_function(leaning: Leaning) -> None:
    """It is there, and takes what lghard gives it."""
    found = signature_of(resolve(leaning.name))
    assert found == leaning.signature, leaning.complaint(found)


@pytest.mark.parametrize(
    ("attribute", "kind", "used_by"),
    [
        ("_lock", asyncio.Lock, "ManagedPool._sweep"),
        ("_pool", deque, "ManagedPool._sweep"),
        ("_nconns", int, "ManagedPool._advice"),
        ("_stats", Counter, "ManagedPool._evict"),
        ("_CONNECTIONS_LOST", str, "ManagedPool._evict"),
        ("_closed", bool, "ManagedPool.close"),
        ("_sched", AsyncScheduler, "shared.py, Share._owns"),
        ("_sched._event", asyncio.Event, "shared.py, Share._owns"),
        ("_tasks", asyncio.Queue, "shared.py, Share._owns"),
        ("reconnect_timeout", float, "ManagedPool._add_connection"),
    ],
)
async def test_attribute_of_a_pool(attribute: str, kind: type, used_by: str) -> None:
    """An open pool keeps its state where lghard reads it."""
    async with AsyncConnectionPool(min_size=0, max_size=1, open=False) as pool:
        found = type(attrgetter(attribute)(pool))
    complaint = (
        f"psycopg-pool {version('psycopg-pool')} has {found} as the pool's {attribute}, and lghard "
        f"was written for {kind}: look at pool.py, {used_by}"
    )
    assert issubclass(found, kind), complaint


@pytest.mark.parametrize(
    ("attribute", "used_by"),
    [
        ("lock", "statements.py, _send"),
        ("wait", "statements.py, _send"),
        ("prepare_threshold", "statements.py, _queue"),
        ("_try_cancel", "liveness.py, abort_after"),
        ("cancel_safe", "liveness.py, _ask_to_cancel"),
        ("pgconn.backend_pid", "retries.py, Operation.connection"),
        ("pgconn.socket", "liveness.py, look"),
        ("pgconn.consume_input", "liveness.py, _survives_reading"),
        ("pgconn.enter_pipeline_mode", "statements.py, _send"),
        ("pgconn.exit_pipeline_mode", "statements.py, _complete"),
        ("pgconn.pipeline_sync", "statements.py, _send"),
        ("pgconn.send_prepare", "statements.py, _queue"),
        ("pgconn.send_query_prepared", "statements.py, _queue"),
        ("pgconn.send_query_params", "statements.py, _queue"),
        ("_created_at", "retries.py, Operation.connection"),
        ("_pool", "ManagedPool._getconn_unchecked, by way of upstream's"),
    ],
)
async def test_attribute_of_a_pooled_connection(
    lghard_empty_database: str, attribute: str, used_by: str
) -> None:
    """A connection from a pool has what lghard asks it for."""
    async with (
        AsyncConnectionPool(lghard_empty_database, min_size=1, max_size=1, open=False) as pool,
        pool.connection() as conn,
    ):
        found: Any = conn
        for part in attribute.split("."):
            found = getattr(found, part, None)
    assert found is not None, (
        f"psycopg {version('psycopg')} and psycopg-pool {version('psycopg-pool')} have no "
        f"{attribute} on a pooled connection any more: look at {used_by}"
    )


async def test_task_that_is_dropped_quietly(caplog: pytest.LogCaptureFixture) -> None:
    """What shared.py sets on the tasks of a closed loop keeps asyncio from reporting them."""
    task = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    assert task._log_destroy_pending is True  # type: ignore[attr-defined]
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    task.cancel()


async def test_backend_pid_and_age_of_a_pooled_connection(lghard_empty_database: str) -> None:
    """What retries.py tells a lost backend by is what the server and the clock say."""
    async with (
        AsyncConnectionPool(lghard_empty_database, min_size=1, max_size=1, open=False) as pool,
        pool.connection() as conn,
    ):
        row = await (await conn.execute("SELECT pg_backend_pid()")).fetchone()
        assert row == (conn.pgconn.backend_pid,)
        assert conn._created_at <= asyncio.get_running_loop().time()  # both are monotonic


class Recorder(AsyncConnectionPool[AsyncConnection[Any]]):
    """Upstream's pool, with the names of its private methods as it calls them."""

    called: tuple[str, ...] = ()

    async def _getconn_unchecked(self, timeout: float) -> AsyncConnection[Any]:
        self.called += ("_getconn_unchecked",)
        return await super()._getconn_unchecked(timeout)

    async def _add_to_pool(self, conn: AsyncConnection[Any]) -> None:
        self.called += ("_add_to_pool",)
        await super()._add_to_pool(conn)

    async def _connect(self, timeout: float | None = None) -> AsyncConnection[Any]:
        self.called += ("_connect",)
        return await super()._connect(timeout)

    async def _add_connection(
        self, attempt: AttemptWithBackoff | None, growing: bool = False
    ) -> None:
        self.called += ("_add_connection",)
        await super()._add_connection(attempt, growing=growing)

    def _open(self) -> None:
        self.called += ("_open",)
        super()._open()


async def test_upstream_calls_what_lghard_overrides(lghard_empty_database: str) -> None:
    """An override that nobody calls any more would switch lghard off without a word."""
    pool = Recorder(lghard_empty_database, min_size=1, max_size=1, open=False)
    await pool.open(wait=True)
    try:
        async with pool.connection():
            pass
    finally:
        await pool.close()
    connected = ("_open", "_add_connection", "_connect", "_add_to_pool")
    assert pool.called == (*connected, "_getconn_unchecked", "_add_to_pool")


async def test_a_broken_connection_is_replaced_on_its_return(lghard_empty_database: str) -> None:
    """_return_connection replaces a connection in status UNKNOWN, and counts it as lost."""
    async with AsyncConnectionPool(
        lghard_empty_database, min_size=1, max_size=1, open=False
    ) as pool:
        conn = await pool.getconn()
        conn.pgconn.finish()
        assert conn.pgconn.transaction_status == TransactionStatus.UNKNOWN
        await pool._putconn(conn, from_getconn=True)
        async with pool.connection() as other:
            assert other is not conn
        assert pool.get_stats()[pool._CONNECTIONS_LOST] == 1


def test_when_an_attempt_gives_up() -> None:
    """Attempt sets `give_up_at`, which is 0 at first and decides."""
    attempt = AttemptWithBackoff(timeout=100)
    assert (attempt.give_up_at, attempt.time_to_give_up(1.0)) == (0.0, False)
    attempt.give_up_at = 2.0
    assert [attempt.time_to_give_up(now) for now in (1.0, 3.0)] == [False, True]


@pytest.mark.parametrize(
    ("query", "expected", "names"),
    [
        ("SELECT %s, %s", b"SELECT $1, $2", []),
        ("SELECT %(b)s, %(a)s", b"SELECT $1, $2", ["b", "a"]),
    ],
)
def test_compiled_query(query: str, expected: bytes, names: list[str]) -> None:
    """A query as libpq takes it, the formats of its parameters, and in which order they come."""
    text, formats, order, _ = _query2pg_nocache(query.encode(), "utf-8")
    found = text, len(formats or ()), order or []
    assert found == (expected, 2, names), (
        f"psycopg {version('psycopg')} compiles queries otherwise: look at statements.py, _compile"
    )


async def test_dumped_parameters(lghard_empty_database: str) -> None:
    """A Transformer dumps parameters, and knows their types and formats afterwards."""
    async with await AsyncConnection.connect(lghard_empty_database) as conn:
        tx = Transformer(conn)
        dumped = tx.dump_sequence(["text", 1], [PyFormat.AUTO, PyFormat.AUTO])
        found = (dumped, len(tx.types or ()), len(tx.formats or ()))
    assert found == ([b"text", b"\x00\x01"], 2, 2), (
        f"psycopg {version('psycopg')} dumps otherwise: look at statements.py, _convert_one"
    )


@pytest.mark.parametrize(
    ("constant", "placeholders", "words"),
    [
        ("SELECT_SQL", 0, "from checkpoints"),
        ("SELECT_PENDING_SENDS_SQL", 2, "from checkpoint_writes"),
        ("UPSERT_CHECKPOINT_BLOBS_SQL", 6, "do nothing"),
        ("UPSERT_CHECKPOINTS_SQL", 6, "do update"),
        ("UPSERT_CHECKPOINT_WRITES_SQL", 9, "do update"),
        ("INSERT_CHECKPOINT_WRITES_SQL", 9, "do nothing"),
    ],
)
def test_sql_of_the_saver(constant: str, placeholders: int, words: str) -> None:
    """The statements take what saver.py gives, and may be repeated by the rules of retries.py."""
    statement = getattr(AsyncPostgresSaver, constant, "")
    found = (statement.count("%s"), words in statement.lower())
    assert found == (placeholders, True), (
        f"langgraph-checkpoint-postgres {version('langgraph-checkpoint-postgres')} changed "
        f"{constant}: look at saver.py and at RULES in retries.py, whether it still may be repeated"
    )


@pytest.mark.parametrize(
    "method", ["setup", "aget_tuple", "adelete_thread", "aprune", "aget_delta_channel_history"]
)
def test_the_savers_statements_go_through_its_cursor(method: str) -> None:
    """Overriding _cursor is enough to take the lock from what lghard inherits."""
    source = inspect.getsource(getattr(AsyncPostgresSaver, method))
    assert ("self._cursor(" in source, "self.lock" in source) == (True, False), (
        f"langgraph-checkpoint-postgres {version('langgraph-checkpoint-postgres')}: {method} "
        "does not go through self._cursor() alone any more: look at saver.py, _cursor"
    )


@pytest.mark.parametrize("method", ["aget", "asearch", "aput", "adelete", "alist_namespaces"])
def test_a_stores_operations_are_announced_and_queued(method: str) -> None:
    """Overriding _ensure_task is enough to have them done otherwise than by upstream's task."""
    source = inspect.getsource(getattr(AsyncPostgresStore, method))
    announced = source.find("self._ensure_task()")
    assert 0 < announced < source.find("self._aqueue.put_nowait("), (
        f"langgraph-checkpoint {version('langgraph-checkpoint')}: {method} no longer announces and "
        "queues its operation: look at store.py, _ensure_task, and at collecting.py"
    )


class Queued(AsyncPostgresStore):
    """Upstream's store, but for the task."""

    def _ensure_task(self) -> None:
        pass


@pytest.fixture
async def queued() -> Queued:
    """A store whose operations stay in its queue."""
    pool: AsyncConnectionPool[Any] = AsyncConnectionPool("", min_size=0, max_size=1, open=False)
    return Queued(pool, index={"dims": 1, "embed": lambda texts: [[1.0] for _ in texts]})


async def test_what_a_store_queues(queued: Queued) -> None:
    """Who waits, and for what; and the store knows its loop."""
    waiting = asyncio.create_task(queued.aget(("n",), "k"))
    await asyncio.sleep(0)
    future, op = queued._aqueue.get_nowait()
    future.set_result(None)
    assert (None, GetOp(("n",), "k")) == (await waiting, op)
    assert asyncio.get_running_loop() is queued._loop


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        ("_task", None),
        ("_ttl_sweeper_task", None),
        ("_deserializer", None),
        ("supports_pipeline", True),
    ],
)
async def test_attribute_of_a_store(queued: Queued, attribute: str, expected: object) -> None:
    """It is there, and means what lghard takes it for."""
    assert expected == getattr(queued, attribute)


async def test_statements_of_a_store(queued: Queued) -> None:
    """What store.py replaces in them, or fills in, is there."""
    ((get, *_),) = queued._get_batch_GET_ops_queries([(0, GetOp(("n",), "k"))])
    op = SearchOp(("n",), query="q", refresh_ttl=True)
    ((search, params),), wanted = queued._prepare_batch_search_queries([(0, op)])
    assert [1, 1] == [get.count(_PROLONG), search.count(_PROLONG)], (
        f"langgraph-checkpoint-postgres {version('langgraph-checkpoint-postgres')} refreshes an "
        "item's life otherwise: look at store.py, _PROLONG, and at `store read` in retries.py"
    )
    assert [(0, "q")] == wanted
    assert any(param is PLACEHOLDER for param in params)


async def test_puts_of_a_store(queued: Queued) -> None:
    """They overwrite, by statements that can be divided, and name what has to be embedded."""
    put = PutOp(("n",), "k", {"text": "t"}, ttl=1.0)
    ((query, params),), request = queued._prepare_batch_PUT_queries([(0, put)])
    assert ("DO UPDATE" in query, len(params)) == (True, 5), (
        f"langgraph-checkpoint-postgres {version('langgraph-checkpoint-postgres')} puts otherwise: "
        "look at store.py, _statements and _ROWS, and at `store put` in retries.py"
    )
    assert request is not None
    assert [("n", "k", "$", '{"text": "t"}')] == request[1]


@pytest.mark.parametrize("table", ["store_migrations", "vector_migrations"])
def test_where_a_store_notes_its_versions(table: str) -> None:
    """Upstream's setup() and ours keep one record."""
    source = inspect.getsource(AsyncPostgresStore.setup)
    assert source.count(f"INSERT INTO {table} (v) VALUES (%s)") == 1, (
        f"langgraph-checkpoint-postgres {version('langgraph-checkpoint-postgres')} notes versions "
        "elsewhere: look at store.py, setup"
    )


def test_the_sweep_of_a_store_goes_through_its_cursor() -> None:
    """It deletes what has expired, and nothing else, so it may be repeated."""
    source = inspect.getsource(AsyncPostgresStore.sweep_ttl)
    assert ("self._cursor(" in source, "expires_at < NOW()" in source) == (True, True)


def test_upstreams_pruning_sets_its_isolation_level_first() -> None:
    """Behind a pooler the same statement stands before it, and a lock in between."""
    statement, params, _ = next(_keep_latest("t"))
    assert (PRUNE_SNAPSHOT_SQL, ()) == (statement, params)
    assert PRUNE_SNAPSHOT_SQL == "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", (
        "saver.py, _keep_latest, executes it twice, which is once as long as the level is the same"
    )
