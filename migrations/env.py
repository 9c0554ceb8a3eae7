"""Alembic's environment. Careful with a live site: a migration waits 2 s for a lock, then gives up and is retried."""

from alembic import context
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from app import tables
from app.core.db import Base
from app.core.settings import settings

tables.load()
url = context.config.attributes.get("url") or settings().database_url
with create_engine(url, poolclass=NullPool).connect() as connection:
    connection.execute(text("SELECT pg_advisory_lock(hashtext('alembic'))"))
    connection.execute(text("SET lock_timeout = '2s'"))
    connection.commit()
    context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True)
    with context.begin_transaction():
        context.run_migrations()
    connection.commit()
