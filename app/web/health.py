"""For whoever watches the process: is it alive, and can it serve? Says neither versions nor addresses."""

import logging
from functools import cache
from typing import Any

import redis
from alembic.script import ScriptDirectory
from fastapi import APIRouter
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import JSONResponse

from app.core import live
from app.core.db import alembic_config, schema_revision, transaction

router = APIRouter(include_in_schema=False)
log = logging.getLogger(__name__)


@router.get("/livez")
async def alive() -> dict[str, str]:
    """The process answers. Nothing else is looked at, so a slow database gets nobody restarted."""
    return {"status": "alive"}


@router.get("/readyz")
def ready() -> JSONResponse:
    """200 when the database answers and has today's schema. Without Redis training waits, and the rest works."""
    report: dict[str, Any] = {"database": _database(), "redis": _redis()}
    is_ready = report["database"] == "ok"
    report["status"] = "ready" if is_ready and report["redis"] == "ok" else "degraded" if is_ready else "not ready"
    return JSONResponse(report, 200 if is_ready else 503)


def _database() -> str:
    try:
        with transaction() as session:
            return "ok" if schema_revision(session) == _head() else "schema is not at the newest revision"
    except SQLAlchemyError as error:
        log.warning("not ready: %s", type(error).__name__)
        return "does not answer"


def _redis() -> str:
    try:
        live.client().ping()
    except redis.RedisError:
        return "does not answer"
    return "ok"


@cache
def _head() -> str | None:
    return ScriptDirectory.from_config(alembic_config("")).get_current_head()
