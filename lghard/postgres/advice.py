"""What to do about an error of the database: a note on those whose message does not tell."""

import psycopg

_NOTES: dict[type[psycopg.Error], str] = {
    psycopg.errors.UndefinedTable: (
        "lghard: LangGraph's tables are not there: call setup() once, or open the checkpointer "
        "or store without setup=False; if they are in another schema, name it in the conninfo: "
        "options=-csearch_path=..."
    ),
    psycopg.errors.LockNotAvailable: (
        "lghard: somebody else held the lock for longer than lock_timeout; it is not tried again, "
        "since that would only be a longer wait: look for two runs that write to one thread, or a "
        "migration (SELECT pid, pg_blocking_pids(pid), query FROM pg_stat_activity), or raise "
        "lock_timeout"
    ),
}


def advise(error: psycopg.Error) -> None:
    """Add to `error` what its reader may do next, if there is something to say."""
    if note := _NOTES.get(type(error)):
        error.add_note(note)
