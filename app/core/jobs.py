"""Celery as a doorbell: a message says "look at this row", the row says what is to be done.

A message goes out after the commit that made it true and is dropped on rollback. Losing one costs a few seconds (the
reconciler rings again), receiving one twice costs nothing (whoever comes second finds the row taken).
"""

import logging
from typing import Any

from celery import Celery
from sqlalchemy.orm import Session

from app.core.db import after_commit
from app.core.settings import settings

log = logging.getLogger(__name__)


def broker_url(redis_url: str) -> str:
    """Celery's spelling of a Redis URL: a Unix socket is `redis+socket://`, and its database `virtual_host`."""
    return redis_url.replace("unix://", "redis+socket://", 1).replace("?db=", "?virtual_host=")


def make_celery(name: str) -> Celery:
    """The Celery application; producers and both workers share its settings."""
    app = Celery(name, broker=broker_url(settings().redis_url), set_as_current=False)
    app.conf.update(
        task_acks_late=False,  # the row decides, and a redelivered training run helps nobody
        worker_prefetch_multiplier=1,
        task_ignore_result=True,
        accept_content=["json"],
        task_serializer="json",
        worker_enable_remote_control=False,
        worker_send_task_events=False,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={"socket_connect_timeout": 2, "socket_keepalive": True, "visibility_timeout": 3600},
        task_default_queue="housekeeping",
        timezone="UTC",
    )
    return app


_producer: Celery | None = None


def producer() -> Celery:
    global _producer
    if _producer is None:
        _producer = make_celery("tiebreak")
    return _producer


def enqueue(session: Session, name: str, *args: Any, queue: str = "housekeeping") -> None:
    """Ring for task `name` once this transaction has committed. `args` are JSON values, normally one id."""
    after_commit(session, lambda: ring(name, *args, queue=queue))


def ring(name: str, *args: Any, queue: str = "housekeeping") -> None:
    """Send the message now. A broker that is down is no error: the reconciler rings again when it is back."""
    try:
        producer().send_task(name, args=[str(a) for a in args], queue=queue, retry=False, ignore_result=True)
    except Exception as error:  # kombu raises what the transport raises
        log.warning("could not ring for %s (%s); the reconciler will", name, type(error).__name__)
