"""Live nudges: "something about this topic changed", over Redis pub/sub after commit.

A nudge carries no data. The page that hears one fetches its fragment again; it does so every 20 s regardless, so that a
lost nudge costs seconds and never truth.
"""

import logging
import time
from collections.abc import AsyncIterator
from functools import cache

import redis
import redis.asyncio
from sqlalchemy.orm import Session

from app.core.db import after_commit
from app.core.settings import settings

log = logging.getLogger(__name__)


@cache
def client() -> redis.Redis:
    return redis.Redis.from_url(settings().redis_url, socket_connect_timeout=1, socket_timeout=2)


def nudge(session: Session, topic: str) -> None:
    """Tell whoever watches `topic` (such as `round:<id>`) to look again, once this transaction has committed."""
    after_commit(session, lambda: publish(topic))


def publish(topic: str) -> None:
    try:
        client().publish(f"tiebreak:{topic}", "1")
    except redis.RedisError as error:
        log.debug("nudge %s lost: %s", topic, error)


async def listen(topic: str, seconds: float) -> AsyncIterator[bool]:
    """Yield True for each nudge and False every 15 s without one (a heartbeat), for at most `seconds`."""
    connection = redis.asyncio.Redis.from_url(settings().redis_url, socket_connect_timeout=2)
    ends = time.monotonic() + seconds
    try:
        async with connection.pubsub() as channel:
            await channel.subscribe(f"tiebreak:{topic}")
            while time.monotonic() < ends:
                message = await channel.get_message(ignore_subscribe_messages=True, timeout=15)
                yield message is not None
    except (redis.RedisError, OSError):
        return
    finally:
        await connection.aclose()
