"""A real PostgreSQL and a real Redis for the whole run, one database and one Redis database per xdist worker.

Both are `DATABASE_URL` / `REDIS_URL` where set (the first is then the server on which the workers' databases are
made), else the embedded servers: whichever worker comes first starts them, the last to leave
stops them. A test that asks for `engine`, `session`, `committing` or `environment` has `settings()` point at them.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis
from sqlalchemy import Connection, Engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.core import db
from app.core.embedded import Urls, keeper_of, services
from app.core.settings import Settings, settings

WORKER = os.environ.get("PYTEST_XDIST_WORKER", "gw0")
RUN = os.environ.get("PYTEST_XDIST_TESTRUNUID", f"alone-{os.getpid()}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Chromium last: Playwright's event loop stays in its process, and asyncio allows no second one there."""
    items.sort(key=lambda item: "browser" in item.path.parts)


@pytest.fixture(scope="session")
def servers() -> Iterator[Urls]:
    """The two servers, shared by all workers of this run."""
    data = Path(tempfile.gettempdir()) / f"tiebreak-test-{RUN[:12]}"
    given = Settings()
    try:
        with services(given.model_copy(update={"data": data})) as urls:
            yield urls
    finally:
        if not any(keeper_of(data / "run" / state) for state in ("postgres.json", "redis.json")):
            shutil.rmtree(data, ignore_errors=True)


@pytest.fixture(scope="session")
def database_url(servers: Urls) -> Iterator[str]:
    """This worker's own database, its schema made by the migrations."""
    base = make_url(servers.database_url)
    name = f"{base.database}_test_{WORKER}"
    admin = base.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        connection.execute(f'CREATE DATABASE "{name}"')
    url = base.set(database=name).render_as_string(hide_password=False)
    db.migrate(url)
    yield url
    with psycopg.connect(admin, autocommit=True) as connection:
        connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')


@pytest.fixture(scope="session")
def redis_url(servers: Urls) -> str:
    """This worker's own Redis database (1 to 15; 0 is left to people), empty."""
    number = 1 + int(WORKER.removeprefix("gw")) % 15
    plain = servers.redis_url.split("?")[0]
    if plain.startswith("unix://"):
        url = f"{plain}?db={number}"
    else:
        scheme, _, rest = plain.partition("://")
        url = f"{scheme}://{rest.split('/')[0]}/{number}"
    with redis.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture(scope="session", autouse=True)
def data_directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """No test ever writes into a person's own data directory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIEBREAK_DATA", str(data := tmp_path_factory.mktemp("data")))
        settings.cache_clear()
        yield data


@pytest.fixture(scope="session")
def environment(data_directory: Path, database_url: str, redis_url: str) -> Iterator[Settings]:
    """What the application reads: this worker's servers. Tests that need no server do not wait for one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DATABASE_URL", database_url)
        patch.setenv("REDIS_URL", redis_url)
        settings.cache_clear()
        db.engine.cache_clear()
        yield settings()
        db.engine().dispose()
        db.engine.cache_clear()
    settings.cache_clear()


@pytest.fixture(scope="session")
def engine(environment: Settings) -> Engine:
    """The application's own engine, on this worker's database."""
    return db.engine()


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """A connection in a transaction that is rolled back when the test ends."""
    with engine.connect() as opened:
        outer = opened.begin()
        yield opened
        outer.rollback()


@pytest.fixture
def session(connection: Connection) -> Iterator[Session]:
    """A session whose commits are savepoints: the code under test may commit, and nothing is left afterwards."""
    with Session(connection, join_transaction_mode="create_savepoint", expire_on_commit=False) as opened:
        yield opened


@pytest.fixture
def committing(engine: Engine) -> Iterator[Engine]:
    """For tests that need several connections to see each other's rows: real commits, all tables emptied after."""
    yield engine
    for attempt in range(5):
        try:
            empty(engine)
            break
        except OperationalError:  # a web process of the test is still reading: the two waited in a circle
            if attempt == 4:
                raise
            time.sleep(0.5)


def empty(engine: Engine) -> None:
    with engine.begin() as connection:
        names = connection.scalars(
            text("SELECT quote_ident(tablename) FROM pg_tables WHERE schemaname = 'public'")
        ).all()
        tables = [name for name in names if name != "alembic_version"]
        if tables:
            connection.execute(text(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY CASCADE"))
