"""How often somebody may try: counted before any password is hashed, in Redis, or in this process when Redis is away.

Ten tries in five minutes for an account, for an address, and a thousand for everybody together. The window moves: each
try frees its place five minutes later, so nobody is locked out for good. A successful sign-in gives the places back, so
that a whole office behind one address can begin its day; guessing at one account stays at ten either way.
"""

import logging
import math
import time
from functools import cache

from limits import RateLimitItem, RateLimitItemPerMinute
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import MovingWindowRateLimiter
from redis.exceptions import RedisError

from app.core.errors import TooMany
from app.core.settings import settings

log = logging.getLogger(__name__)

PER_ACCOUNT = RateLimitItemPerMinute(10, 5, namespace="tiebreak-account")
PER_ADDRESS = RateLimitItemPerMinute(10, 5, namespace="tiebreak-address")
EVERYBODY = RateLimitItemPerMinute(1000, 5, namespace="tiebreak-everybody")
LINK_TRIES = RateLimitItemPerMinute(60, 5, namespace="tiebreak-links")
RETRY_REDIS_AFTER = 10.0
"""Seconds without Redis before it is asked again: while it is away, a sign-in must not wait for its timeout."""

_redis_away_until = 0.0


def admit_sign_in(email: str, address: str) -> None:
    """Count one try to sign in, or raise `TooMany`. Call it before looking at the password."""
    for limit, key in ((PER_ADDRESS, address), (PER_ACCOUNT, email), (EVERYBODY, "all")):
        _hit(limit, key)


def signed_in(email: str, address: str) -> None:
    """Forget the tries that led to a success."""
    for limit, key in ((PER_ADDRESS, address), (PER_ACCOUNT, email)):
        for limiter in _limiters():
            try:
                limiter.clear(limit, key)
            except (RedisError, OSError) as error:
                _redis_failed(error)


def admit_link(address: str) -> None:
    """Count one use of a one-time link, or raise `TooMany`."""
    _hit(LINK_TRIES, address)


def _hit(limit: RateLimitItem, key: str) -> None:
    for limiter in _limiters():
        try:
            if limiter.hit(limit, key):
                return
            left = limiter.get_window_stats(limit, key).reset_time - time.time()
        except (RedisError, OSError) as error:
            _redis_failed(error)
            continue
        seconds = max(1, math.ceil(left))
        raise TooMany(f"Too many tries. Wait {_wait(seconds)} and try again.", retry_after=seconds)


def _wait(seconds: int) -> str:
    return f"{math.ceil(seconds / 60)} minutes" if seconds > 90 else f"{seconds} seconds"


def _limiters() -> list[MovingWindowRateLimiter]:
    """Where to count, in order: Redis unless it failed just now, then this process, which never fails."""
    if time.monotonic() < _redis_away_until or not settings().redis_url:
        return [_in_process()]
    return [_in_redis(settings().redis_url), _in_process()]


def _redis_failed(error: Exception) -> None:
    global _redis_away_until
    _redis_away_until = time.monotonic() + RETRY_REDIS_AFTER
    log.warning("sign-in tries are counted in this process: Redis does not answer (%s)", type(error).__name__)


@cache
def _in_process() -> MovingWindowRateLimiter:
    return MovingWindowRateLimiter(MemoryStorage())


@cache
def _in_redis(url: str) -> MovingWindowRateLimiter:
    # `limits` spells a Unix socket redis+unix://; redis-py spells it unix://.
    storage = RedisStorage(url.replace("unix://", "redis+unix://", 1), socket_connect_timeout=1, socket_timeout=1)
    return MovingWindowRateLimiter(storage)
