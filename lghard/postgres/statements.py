"""The statements of one operation: sent as one message, committed as one transaction.

psycopg's pipeline flushes every statement by itself and synchronizes twice. Here the statements of
an operation leave in one `send`, behind one Sync, which also makes them one transaction
(https://www.postgresql.org/docs/current/libpq-pipeline-mode.html).
"""

import secrets
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import psycopg
from psycopg import AsyncConnection, generators
from psycopg._queries import PostgresQuery
from psycopg.abc import PQGen
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
    return [_rows(conn, result) for result in await send(conn, statements)]


def _rows(conn: AsyncConnection[Any], result: PGresult) -> list[DictRow]:
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
    try:
        return await _send(conn, statements)
    except (
        psycopg.errors.InvalidSqlStatementName,
        psycopg.errors.DuplicatePreparedStatement,
    ):
        # Somebody said DEALLOCATE ALL or DISCARD ALL, or a pooler gave us another session. Nothing
        # was executed: it can be sent again.
        _prepared.pop(conn, None)
        return await _send(conn, statements)


async def _send(conn: AsyncConnection[Any], statements: Sequence[Statement]) -> list[PGresult]:
    queries = [_convert(conn, statement) for statement in statements]
    async with conn.lock:
        try:
            conn.pgconn.enter_pipeline_mode()
            batch: dict[_Key, bytes] = {}
            commands = [
                command
                for statement, query in zip(statements, queries, strict=True)
                for command in _queue(conn, query, batch, prepare=statement.prepare)
            ]
            conn.pgconn.pipeline_sync()
        except BaseException as error:  # whatever stops it half-way
            was_lost = conn.pgconn.status != ConnStatus.OK
            conn.pgconn.finish()  # nobody may have it in the middle of a pipeline
            if was_lost or not isinstance(error, psycopg.OperationalError):
                raise
            raise StatementRefusedError(
                f"{error}: nothing was done; ask for less at once, or store less in one item"
            ) from error
        return await conn.wait(_complete(conn, commands))


def _convert(conn: AsyncConnection[Any], statement: Statement) -> PostgresQuery:
    query = PostgresQuery(Transformer(conn))
    query.convert(statement.query, statement.params)
    return query


class _Command(NamedTuple):
    """What to remember of one command, if it works: that a statement is prepared now."""

    key: _Key | None = None
    name: bytes = b""


def _queue(
    conn: AsyncConnection[Any], query: PostgresQuery, batch: dict[_Key, bytes], *, prepare: bool
) -> Iterator[_Command]:
    """Put `query` into libpq's send buffer, behind its preparation if that is still to be done."""
    pgconn = conn.pgconn
    # A pooler would mix up what its clients prepare.
    if not prepare or conn.prepare_threshold is None:
        pgconn.send_query_params(
            query.query, query.params, query.types, query.formats, Format.BINARY
        )
        yield _Command()
        return
    key = _Key(query.query, query.types)
    name = _prepared.setdefault(conn, {}).get(key) or batch.get(key)
    if name is None:
        name = batch[key] = next(_names).encode()
        pgconn.send_prepare(name, query.query, query.types)
        yield _Command(key, name)
    pgconn.send_query_prepared(name, query.params, query.formats, Format.BINARY)
    yield _Command()


def _complete(conn: AsyncConnection[Any], commands: Sequence[_Command]) -> PQGen[list[PGresult]]:
    """Send what is buffered, and read the answers to `commands` and to the Sync behind them."""
    error: psycopg.Error | None = None
    answers: list[PGresult] = []
    try:
        yield from generators.send(conn.pgconn)
        # Behind the answers to the commands, an error may still come from the commit itself.
        for command in (*commands, _Command(), _Command()):
            results = yield from generators.fetch_many(conn.pgconn)
            for result in results:
                if result.status == ExecStatus.FATAL_ERROR:
                    error = error or error_from_result(result, encoding=conn.info.encoding)
                elif command.key and result.status == ExecStatus.COMMAND_OK:
                    _prepared[conn][command.key] = command.name
                elif result.status in (ExecStatus.COMMAND_OK, ExecStatus.TUPLES_OK):
                    answers.append(result)
            if any(result.status == ExecStatus.PIPELINE_SYNC for result in results):
                break
        conn.pgconn.exit_pipeline_mode()
    except psycopg.OperationalError as loss:
        conn.pgconn.finish()
        raise error or loss from None  # the server's last words say more than the silence after
    if error:
        raise error
    return answers
