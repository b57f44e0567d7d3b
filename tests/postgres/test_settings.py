"""PoolSettings: from arguments, from the environment, and never with the password in sight."""

import os
import socket
import traceback
from pathlib import Path

import pytest
from pydantic import ValidationError

from lghard.postgres.settings import (
    CONNINFO_VARIABLES,
    PoolSettings,
    application_name,
    conninfo_from_environment,
    loops_from_environment,
    parse_conninfo,
)

CONNINFO = "postgresql://app:s3cret@db.example/app"


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start without any variable that names a database."""
    for name in [*os.environ]:
        if name in CONNINFO_VARIABLES or name.startswith(("PG", "LGHARD_POOL_")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize("first", range(len(CONNINFO_VARIABLES)))
def test_variables_have_an_order(first: int) -> None:
    """The first variable that is set wins over all behind it."""
    environ = {name: f"postgresql://{name.lower()}/" for name in CONNINFO_VARIABLES[first:]}
    expected = f"postgresql://{CONNINFO_VARIABLES[first].lower()}/"
    assert conninfo_from_environment(dict(reversed(environ.items()))) == expected


def test_order_is_the_documented_one() -> None:
    """Our own variable comes first, and the one that `langgraph dev` overwrites last."""
    expected = ("LGHARD_DATABASE_URI", "POSTGRES_URI", "DATABASE_URL", "DATABASE_URI")
    assert expected == CONNINFO_VARIABLES


@pytest.mark.parametrize(
    "other",
    ["", ":memory:", "mysql://root@db/app", "sqlite:///app.db?mode=ro", "mongodb://db/?a=b"],
)
def test_other_databases_are_skipped(other: str) -> None:
    """A variable that names no Postgres does not hide one that does."""
    environ = {"LGHARD_DATABASE_URI": other, "POSTGRES_URI": other, "DATABASE_URI": CONNINFO}
    assert conninfo_from_environment(environ) == CONNINFO


@pytest.mark.parametrize("scheme", ["postgresql", "postgres"])
@pytest.mark.parametrize("driver", ["", "+asyncpg", "+psycopg", "+psycopg2"])
def test_sqlalchemy_driver_is_dropped(scheme: str, driver: str) -> None:
    """No libpq knows SQLAlchemy's driver suffix."""
    environ = {"DATABASE_URL": f"{scheme}{driver}://app@db/app"}
    assert conninfo_from_environment(environ) == f"{scheme}://app@db/app"


def test_password_with_a_plus_is_kept() -> None:
    """Only the scheme loses what follows a plus sign."""
    environ = {"DATABASE_URL": "postgresql://app:a+psycopg@db/app"}
    assert conninfo_from_environment(environ) == environ["DATABASE_URL"]


def test_key_value_conninfo_is_one_too() -> None:
    """A list of key=value pairs names a Postgres as well."""
    environ = {"DATABASE_URL": " host = db dbname=app"}
    assert conninfo_from_environment(environ) == environ["DATABASE_URL"]


@pytest.mark.parametrize("name", ["PGHOST", "PGHOSTADDR", "PGSERVICE", "PGDATABASE"])
def test_libpq_variables_need_no_conninfo(name: str) -> None:
    """Where libpq's own variables name the database, an empty conninfo does."""
    assert conninfo_from_environment({name: "db", "DATABASE_URI": ":memory:"}) == ""


def test_no_database_anywhere() -> None:
    """The error names every variable that would have done."""
    with pytest.raises(ValueError, match="no conninfo given") as nowhere:
        conninfo_from_environment({"DATABASE_URI": ":memory:"})
    assert [name for name in CONNINFO_VARIABLES if name not in str(nowhere.value)] == []


def test_settings_read_the_process_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """PoolSettings() needs no argument where the environment names a database."""
    monkeypatch.setenv("DATABASE_URL", CONNINFO)
    assert PoolSettings().conninfo.get_secret_value() == CONNINFO


def test_each_field_has_a_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """LGHARD_POOL_<FIELD> sets what no argument sets."""
    monkeypatch.setenv("LGHARD_POOL_MAX_SIZE", "7")
    monkeypatch.setenv("LGHARD_POOL_PING_AFTER", "0")
    monkeypatch.setenv("LGHARD_POOL_TIMEOUT", "1.5")
    settings = PoolSettings(conninfo=CONNINFO, timeout=2.5)
    assert (settings.max_size, settings.ping_after, settings.timeout) == (7, 0.0, 2.5)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, 1),
        ({"N_JOBS_PER_WORKER": "5"}, 1),
        ({"BG_JOB_ISOLATED_LOOPS": "false", "N_JOBS_PER_WORKER": "5"}, 1),
        ({"BG_JOB_ISOLATED_LOOPS": "true", "N_JOBS_PER_WORKER": "5"}, 6),
        ({"BG_JOB_ISOLATED_LOOPS": "True"}, 11),
        ({"BG_JOB_ISOLATED_LOOPS": "1", "N_JOBS_PER_WORKER": "0"}, 1),
    ],
)
def test_loops_of_a_langgraph_server(environ: dict[str, str], expected: int) -> None:
    """With isolated loops it has one for each worker, and one that serves HTTP."""
    assert loops_from_environment(environ) == expected


def test_loops_can_be_declared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Our own variable wins over the server's."""
    monkeypatch.setenv("BG_JOB_ISOLATED_LOOPS", "true")
    monkeypatch.setenv("LGHARD_POOL_LOOPS", "3")
    assert PoolSettings(conninfo=CONNINFO).loops == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("loops", 0),
        ("max_size", 0),
        ("min_size", -1),
        ("timeout", 0),
        ("ping_after", -1),
        ("maxsize", 3),
    ],
)
def test_impossible_values_are_refused(field: str, value: int) -> None:
    """A typo or an impossible number is told, with its name and without the password."""
    with pytest.raises(ValidationError, match=field) as refused:
        PoolSettings(conninfo=CONNINFO, **{field: value})
    assert "s3cret" not in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("name", PoolSettings.model_fields)
def test_each_field_is_documented(name: str) -> None:
    """With its variable and its default."""
    page = (Path(__file__).parents[2] / "docs/how-to/pool.md").read_text()
    (row,) = [line for line in page.splitlines() if line.startswith(f"| `{name}` |")]
    _, _, variable, default, _, _ = map(str.strip, row.split("|"))
    assert f"`LGHARD_POOL_{name.upper()}`" == variable
    expected = PoolSettings.model_fields[name].default
    if isinstance(expected, float | int):
        assert f"{expected:g}" == default


def test_settings_are_frozen() -> None:
    """A pool's settings are a value, not a control panel."""
    settings = PoolSettings(conninfo=CONNINFO)
    with pytest.raises(ValidationError, match="frozen"):
        settings.max_size = 3


@pytest.mark.parametrize("show", [repr, str, lambda settings: settings.model_dump_json()])
def test_no_form_of_settings_shows_the_password(show: type[str]) -> None:
    """Settings can be logged."""
    assert "s3cret" not in show(PoolSettings(conninfo=CONNINFO))


def test_connection_parameters_notice_a_dead_peer() -> None:
    """Keepalives, the limit for unacknowledged bytes and the connect timeout are set."""
    parameters = PoolSettings(conninfo=CONNINFO, connect_timeout=4).connection_parameters()
    expected = {
        "application_name": application_name(),
        "connect_timeout": 4,
        "keepalives": 1,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": 30_000,
    }
    assert parameters == expected


def test_connection_parameters_of_the_conninfo_are_kept() -> None:
    """What the caller wrote into the conninfo is nobody else's to decide."""
    conninfo = f"{CONNINFO}?application_name=mine&keepalives_idle=7"
    parameters = PoolSettings(conninfo=conninfo).connection_parameters()
    assert parameters.keys().isdisjoint({"application_name", "keepalives_idle"})


@pytest.mark.parametrize(
    ("conninfo", "kwargs"),
    [
        ("postgresql://db1,db2/app", {}),
        ("host=db port=5432,5433 hostaddr=10.0.0.1,10.0.0.2", {}),
        ("dbname=app", {"host": "db1,db2"}),
    ],
)
def test_of_several_hosts_the_one_that_takes_writes_is_meant(
    conninfo: str, kwargs: dict[str, str]
) -> None:
    """However they are given."""
    parameters = PoolSettings(conninfo=conninfo).connection_parameters(**kwargs)
    assert "read-write" == parameters["target_session_attrs"]


def test_of_several_hosts_another_one_can_be_meant() -> None:
    """Who asks for a standby gets one, and hears from health() that it takes no writes."""
    conninfo = "postgresql://db1,db2/app?target_session_attrs=standby"
    assert "target_session_attrs" not in PoolSettings(conninfo=conninfo).connection_parameters()


BROKEN = [
    "postgresql://app:s3cret%zz@db/app",
    "postgresql://app@db/app?pass=s3cret",
    "host=db password='s3cret",
    "host=db password=abc s3cret",
    "postgresql+asyncpg://app:s3cret@db/app",
    "s3cret",
]


@pytest.mark.parametrize("conninfo", BROKEN)
def test_unparsable_conninfo_is_not_repeated(conninfo: str) -> None:
    """What libpq cannot parse it quotes, and that may be the password; lghard does not."""
    with pytest.raises(ValueError, match="percent-encoded") as broken:
        parse_conninfo(conninfo)
    assert "s3cret" not in "".join(traceback.format_exception(broken.value))


def test_conninfo_parameters() -> None:
    """A conninfo is taken apart as libpq does it."""
    expected = {"user": "app", "password": "p@ss", "host": "db", "port": "6432", "dbname": "app"}
    assert parse_conninfo("postgresql://app:p%40ss@db:6432/app") == expected


@pytest.mark.parametrize("host", ["web-1", "x" * 64, "ä" * 60, "host.with.many.labels." * 12])
@pytest.mark.parametrize("pid", [1, 4194304])
def test_application_name_fits(monkeypatch: pytest.MonkeyPatch, host: str, pid: int) -> None:
    """Postgres cuts names at 63 bytes, and the process id at the end must survive that."""
    monkeypatch.setattr(socket, "gethostname", lambda: host)
    monkeypatch.setattr(os, "getpid", lambda: pid)
    name = application_name()
    assert len(name.encode()) <= 63
    assert name.startswith(f"lghard {host[:8].encode('ascii', 'replace').decode()}"[:15])
    assert name.endswith(f":{pid}")


def test_application_name_names_host_and_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short host name is shown whole."""
    monkeypatch.setattr(socket, "gethostname", lambda: "web-1")
    assert application_name() == f"lghard web-1:{os.getpid()}"
