"""The database: one engine, one declarative base, and one place that commits.

`transaction()` is the only caller of `commit()` in the project (a test looks). What must happen only if the commit
did (Celery messages, live nudges) is collected with `after_commit` and dropped on rollback.
"""

import enum
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import DateTime, Engine, Enum, MetaData, create_engine, event, func, select, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from app.core.errors import NotFound
from app.core.settings import settings

ROOT = Path(__file__).resolve().parents[2]


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {
        datetime: DateTime(timezone=True),
        dict[str, Any]: JSONB,
        list[Any]: JSONB,
        # VARCHAR in the database, the enumeration in Python; `core.states` guards what is written.
        enum.Enum: Enum(enum.Enum, native_enum=False, length=20),
    }


class Row(Base):
    """A row with a random identity (opaque to whoever sees it) and a birth time by the database's clock."""

    __abstract__ = True

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())


T = TypeVar("T", bound=Row)


@cache
def engine() -> Engine:
    """The engine of this process."""
    return make_engine(settings().database_url, pool_size=settings().pool_size)


def make_engine(url: str, pool_size: int = 5) -> Engine:
    """An engine whose every connection gives up rather than hang: 30 s a statement, 60 s idle in a transaction."""
    made = create_engine(
        url,
        pool_size=pool_size,
        max_overflow=0,
        pool_timeout=10,
        pool_pre_ping=True,
        pool_recycle=1800,
        hide_parameters=True,  # prompts, answers and hashes have no place in a log
    )

    @event.listens_for(made, "connect")
    def limits(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SET statement_timeout = '30s'; SET idle_in_transaction_session_timeout = '60s'")
        connection.commit()

    return made


@contextmanager
def transaction() -> Iterator[Session]:
    """A session that commits when the block ends, rolls back when it raises, then runs what waits for the commit."""
    with Session(engine(), expire_on_commit=False) as session:
        yield session
        session.commit()
        run_after_commit(session)


def after_commit(session: Session, action: Callable[[], None]) -> None:
    """Have `action` run once this session's transaction has committed; never if it rolls back."""
    session.info.setdefault("after_commit", []).append(action)


def run_after_commit(session: Session) -> None:
    for action in session.info.pop("after_commit", []):
        action()


def require(session: Session, model: type[T], key: object, *, lock: bool = False) -> T:
    """The row of that id, or `NotFound` naming the kind of thing; an id that is no UUID is just as unknown."""
    try:
        identity = key if isinstance(key, uuid.UUID) else uuid.UUID(str(key))
    except ValueError:
        identity = None
    row = session.get(model, identity, with_for_update=lock or None) if identity else None
    if row is None:
        raise NotFound(f"There is no such {model.__tablename__.rstrip('s').replace('_', ' ')}.")
    return row


def try_lock(session: Session, name: str) -> bool:
    """Take an advisory lock until the end of the transaction; False when somebody else holds it."""
    return bool(session.scalar(select(func.pg_try_advisory_xact_lock(func.hashtext(name)))))


def alembic_config(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(ROOT / "migrations"))
    config.attributes["url"] = url
    return config


def migrate(url: str | None = None) -> None:
    """Bring the schema to the newest revision. Two callers at once take turns on an advisory lock."""
    command.upgrade(alembic_config(url or settings().database_url), "head")


def schema_revision(session: Session) -> str | None:
    """The revision that the database is at."""
    return session.scalar(text("SELECT version_num FROM alembic_version"))
