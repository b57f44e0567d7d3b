"""Statements that leave in one message, as one transaction or as several.

psycopg's pipeline flushes every statement by itself and synchronizes twice. Here all statements
leave in one `send`, and those in front of one Sync are one transaction
(https://www.postgresql.org/docs/current/libpq-pipeline-mode.html).
"""

import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain, count, repeat
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection, abc, generators
from psycopg._queries import _query2pg_nocache
from psycopg.abc import Buffer, PQGen, PyFormat
from psycopg.adapt import Transformer
from psycopg.errors import error_from_result
from psycopg.pq import ConnStatus, ExecStatus, Format
from psycopg.pq.abc import PGresult
from psycopg.rows import DictRow

from lghard.errors import LghardError


class Statement(NamedTuple):
    """A query with placeholders, and its parameters.

    `prepare` is for a text that comes again and again: whatever is prepared, stays so.
    """

    query: str
    params: Sequence[Any] | Mapping[str, Any]
    prepare: bool = True


class StatementRefusedError(LghardError, psycopg.OperationalError):
    """libpq does not send a statement, such as one with more than 65,535 parameters.

    Nothing was done. psycopg's error looks like that of a lost connection, but this one would be
    refused on any other as well.
    """

    __module__ = "lghard"


class Segment:
    """Statements that are executed all or none, and what has become of them.

    Attributes:
        results: of each statement, if they are done.
        error: why they have had no effect.
        is_done: whether the server has committed them. If not, and without an error, the connection
            was lost, or somebody else's statement failed in the same transaction.
    """

    __slots__ = ("error", "is_done", "results", "statements")

    def __init__(self, statements: Sequence[Statement]) -> None:
        self.statements = statements
        self.results: list[PGresult] = []
        self.error: Exception | None = None
        self.is_done = False

    def reset(self) -> None:
        """They have had no effect, and may be sent again."""
        self.results, self.error, self.is_done = [], None, False


class _Key(NamedTuple):
    """What Postgres tells two prepared statements apart by."""

    query: bytes
    types: tuple[int, ...]


# What each connection has prepared, and under which name. No name is ever used twice, neither here,
# since a statement stays prepared when the transaction around it fails, nor by another process:
# behind a pooler, one client's name must not call up another client's statement.
_prepared: WeakKeyDictionary[AsyncConnection[Any], dict[_Key, bytes]] = WeakKeyDictionary()
_names = map(f"_lghard_{secrets.token_hex(6)}_{{}}".format, count())


async def fetch(conn: AsyncConnection[Any], statements: Sequence[Statement]) -> list[list[DictRow]]:
    """As `send`, and the rows of each statement."""
    return [rows_of(conn, result) for result in await send(conn, statements)]


def rows_of(conn: AsyncConnection[Any], result: PGresult) -> list[DictRow]:
    """What a statement has returned."""
    transformer = Transformer(conn)
    transformer.set_pgresult(result)
    columns = [result.fname(at) or b"" for at in range(result.nfields)]
    names = [column.decode(conn.info.encoding) for column in columns]
    rows = transformer.load_rows(0, result.ntuples, tuple)
    return [dict(zip(names, row, strict=True)) for row in rows]


async def send(conn: AsyncConnection[Any], statements: Sequence[Statement]) -> list[PGresult]:
    """Execute `statements` on an idle connection, in one round trip and as one transaction.

    Returns:
        the result of each.

    Raises:
        StatementRefusedError: one of them cannot be sent; the connection is closed.
        psycopg.Error: of the first statement that failed; none of them has had any effect.
    """
    segment = Segment(statements)
    await send_segments(conn, [[segment]])
    if segment.error:
        raise segment.error
    return segment.results


Transactions = Sequence[Sequence[Segment]]


async def send_segments(conn: AsyncConnection[Any], transactions: Transactions) -> None:
    """Execute `transactions`, one after the other, in one round trip; behind a pooler, in one each.

    What became of each segment stands in it. One that cannot be sent, because Postgres has no such
    value, is left out of its transaction. One whose statements fail takes the others of its
    transaction with it.

    Raises:
        StatementRefusedError: one of them cannot be sent; the connection is closed.
        psycopg.Error: the connection is lost.
    """
    for message in _messages(conn, transactions):
        await _send(conn, message)
    stale = [segments for segments in transactions if any(map(_is_stale, segments))]
    if stale:
        for segment in chain.from_iterable(stale):
            segment.reset()
        await _send(conn, stale, prepare=False)  # so that none relies on another once more


def _messages(conn: AsyncConnection[Any], transactions: Transactions) -> Iterable[Transactions]:
    """What may travel together.

    When a client goes away between the answers to two Syncs, PgBouncer 1.18 gives the session to
    the next one, who then reads the answers that are left: somebody else's.
    """
    if may_be_pooled(conn):
        return [[segments] for segments in transactions]
    return [transactions]


def may_be_pooled(conn: AsyncConnection[Any]) -> bool:
    """Behind a pooler, `open_pool` has nothing prepared, and so has everybody who read of it."""
    return conn.prepare_threshold is None


def _is_stale(segment: Segment) -> bool:
    """Whether it relied on a prepared statement that is not there.

    Somebody said DEALLOCATE ALL or DISCARD ALL, or a pooler gave us another session, or what was to
    prepare it failed before it got there.
    """
    return isinstance(
        segment.error,
        psycopg.errors.InvalidSqlStatementName | psycopg.errors.DuplicatePreparedStatement,
    )


class _Command(NamedTuple):
    """A command on its way, and the prepared statement that it is about.

    Attributes:
        key: of the statement that it uses or prepares, None if there is none.
        prepares: whether the statement is there if the command works.
    """

    segment: Segment
    key: _Key | None = None
    name: bytes = b""
    prepares: bool = False


async def _send(
    conn: AsyncConnection[Any], transactions: Transactions, *, prepare: bool = True
) -> None:
    prepare = prepare and not may_be_pooled(conn)  # it would mix up what its clients prepare
    tx = Transformer(conn)
    queries = {segment: _convert(tx, segment) for segments in transactions for segment in segments}
    async with conn.lock:
        sent: list[tuple[Sequence[Segment], list[_Command]]] = []
        try:
            conn.pgconn.enter_pipeline_mode()
            batch: dict[_Key, bytes] = {}
            for segments in transactions:
                commands = [
                    command
                    for segment in segments
                    if not segment.error
                    for command in _queue(
                        conn, segment, queries[segment], batch if prepare else None
                    )
                ]
                conn.pgconn.pipeline_sync()
                sent.append((segments, commands))
        except BaseException as error:  # whatever stops it half-way
            was_lost = conn.pgconn.status != ConnStatus.OK
            conn.pgconn.finish()  # nobody may have it in the middle of a pipeline
            if was_lost or not isinstance(error, psycopg.OperationalError):
                raise
            raise StatementRefusedError(
                f"{error}: nothing was done; ask for less at once, or store less in one item"
            ) from error
        await conn.wait(_complete(conn, sent))


class _Query(NamedTuple):
    """What libpq takes."""

    text: bytes
    params: Sequence[Buffer | None]
    types: tuple[int, ...]
    formats: Sequence[Format]


def _convert(tx: abc.Transformer, segment: Segment) -> list[_Query]:
    try:
        return [_convert_one(tx, statement) for statement in segment.statements]
    except Exception as error:  # a dumper's: NUL in a text, or what JSON does not know
        segment.error = error
        return []


def _convert_one(tx: abc.Transformer, statement: Statement) -> _Query:
    compiled = _compile_once if statement.prepare else _compile
    text, formats, order = compiled(statement.query, tx.encoding)
    values = statement.params
    if isinstance(values, Mapping):
        values = [values[name] for name in order]
    params = tx.dump_sequence(values, formats)
    return _Query(text, params, tx.types or (), tx.formats or ())


def _compile(query: str, encoding: str) -> tuple[bytes, list[PyFormat], list[str]]:
    """The query with `$1` in place of placeholders; the format of each parameter, and its name."""
    text, formats, order, _ = _query2pg_nocache(query.encode(encoding), encoding)
    return text, formats or [], order or []


# psycopg's own cache looks the text up by its bytes, and has to hash all of them.
_compile_once = lru_cache(_compile)


def _queue(
    conn: AsyncConnection[Any],
    segment: Segment,
    queries: Sequence[_Query],
    batch: dict[_Key, bytes] | None,
) -> Iterator[_Command]:
    """Put `queries` into libpq's send buffer, each behind its preparation if it needs one.

    Args:
        conn: where they go.
        segment: whose they are.
        queries: what libpq takes.
        batch: what has been put there to be prepared before; None if nothing shall be.
    """
    pgconn = conn.pgconn
    prepared = {} if batch is None else _prepared.setdefault(conn, {})
    for statement, query in zip(segment.statements, queries, strict=True):
        if batch is None or not statement.prepare:
            pgconn.send_query_params(
                query.text, query.params, query.types, query.formats, Format.BINARY
            )
            yield _Command(segment)
            continue
        key = _Key(query.text, query.types)
        name = prepared.get(key) or batch.get(key)
        if name is None:
            name = batch[key] = next(_names).encode()
            pgconn.send_prepare(name, query.text, query.types)
            yield _Command(segment, key, name, prepares=True)
        pgconn.send_query_prepared(name, query.params, query.formats, Format.BINARY)
        yield _Command(segment, key, name)


def _complete(
    conn: AsyncConnection[Any], sent: Sequence[tuple[Sequence[Segment], Sequence[_Command]]]
) -> PQGen[None]:
    """Send what is buffered, and read the answers to the commands and to the Syncs behind them."""
    error: psycopg.Error | None = None
    try:
        yield from generators.send(conn.pgconn)
        for segments, commands in sent:
            error = None
            # Behind the answers to the commands, an error may still come from the commit itself.
            for command in chain(commands, repeat(_Command(segments[-1]))):
                results = yield from generators.fetch_many(conn.pgconn)
                for result in results:
                    error = _note(conn, command, result) or error
                if any(result.status == ExecStatus.PIPELINE_SYNC for result in results):
                    break
            for segment in segments:
                segment.is_done = not (error or segment.error)
        conn.pgconn.exit_pipeline_mode()
    except psycopg.OperationalError as loss:
        conn.pgconn.finish()
        if error and error.diag.severity_nonlocalized != "ERROR":  # which is of a statement alone
            raise error from None  # the server's last words say more than the silence after
        raise loss from None
    except psycopg.DatabaseError as confusion:  # libpq's, of answers to what nobody has asked
        conn.pgconn.finish()
        raise psycopg.OperationalError(f"the connection is out of step: {confusion}") from confusion


def _note(conn: AsyncConnection[Any], command: _Command, result: PGresult) -> psycopg.Error | None:
    """Keep what came back; an error is returned, too."""
    segment = command.segment
    if result.status == ExecStatus.FATAL_ERROR:
        error = error_from_result(result, encoding=conn.info.encoding)
        segment.error = segment.error or error
        if _is_stale(segment) and _remembers(conn, command):
            _prepared.pop(conn)  # one is gone, and so are the others
        return error
    if command.key and command.prepares and result.status == ExecStatus.COMMAND_OK:
        _prepared.setdefault(conn, {})[command.key] = command.name
    elif result.status in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
        segment.results.append(result)
    return None


def _remembers(conn: AsyncConnection[Any], command: _Command) -> bool:
    return command.key is not None and _prepared.get(conn, {}).get(command.key) == command.name
