"""Live streams (SSE): "look again", relayed from Redis to whoever has a page open.

A stream carries no data and holds no database session: who may listen is settled in a short transaction before it
begins. A page that hears a nudge fetches its parts again, and does so every 20 seconds regardless, so that a stream
that cannot be had costs seconds and never truth. With Redis away the stream stays open and beats.
"""

import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import APIRouter, Depends, Request
from sqlalchemy.orm import Session
from starlette.responses import Response, StreamingResponse

from app.core import live
from app.core.db import require, transaction
from app.rounds.models import Round, Run
from app.web.deps import Principal, caller_of_stream, require_lead, visible_campaign
from app.web.policies import policy

router = APIRouter(include_in_schema=False)

STREAM_SECONDS = 600.0
"""Then the stream ends and the browser opens the next one, where its session is looked at again."""

BEAT_SECONDS = 15.0
STREAMS_PER_USER = 8

# Opening takes one of the connections that `deps.CONCURRENT_SESSIONS` leaves free, and never two.
_opening = anyio.CapacityLimiter(1)
_streams: Counter[str] = Counter()
"""How many streams each user has open in this process."""


async def _settle(request: Request, rule: Callable[[Session, Principal], str]) -> tuple[str, str]:
    """Who is calling, and the topic that `rule` lets them hear; raises what the rule raises."""

    def ask() -> tuple[str, str]:
        with transaction() as session:
            principal = caller_of_stream(request, session)
            return str(principal.user.id), rule(session, principal)

    return await anyio.to_thread.run_sync(ask, limiter=_opening)


@policy("member of the campaign, for a stream")
async def campaign_topic(request: Request, campaign_id: str) -> tuple[str, str]:
    """Whoever may know that the campaign exists."""

    def rule(session: Session, principal: Principal) -> str:
        return f"campaign:{visible_campaign(session, principal.user, campaign_id)[0].id}"

    return await _settle(request, rule)


@policy("lead of the round's campaign, for a stream")
async def round_topic(request: Request, round_id: str) -> tuple[str, str]:
    def rule(session: Session, principal: Principal) -> str:
        current = require(session, Round, round_id)
        require_lead(request, session, principal, current.campaign_id, missing="There is no such round.")
        return f"round:{current.id}"

    return await _settle(request, rule)


@policy("lead of the run's campaign, for a stream")
async def run_topic(request: Request, run_id: str) -> tuple[str, str]:
    def rule(session: Session, principal: Principal) -> str:
        run = require(session, Run, run_id)
        require_lead(request, session, principal, run.campaign_id, missing="There is no such run.")
        return f"run:{run.id}"

    return await _settle(request, rule)


@router.get("/campaigns/{campaign_id}/live")
async def campaign_stream(heard: Annotated[tuple[str, str], Depends(campaign_topic)]) -> Response:
    return _stream(*heard)


@router.get("/rounds/{round_id}/live")
async def round_stream(heard: Annotated[tuple[str, str], Depends(round_topic)]) -> Response:
    return _stream(*heard)


@router.get("/runs/{run_id}/live")
async def run_stream(heard: Annotated[tuple[str, str], Depends(run_topic)]) -> Response:
    return _stream(*heard)


def _stream(user_id: str, topic: str) -> Response:
    if _streams[user_id] >= STREAMS_PER_USER:
        return Response(status_code=204)  # a browser takes this as "do not connect again"; its page goes on polling
    headers = {"X-Accel-Buffering": "no", "Cache-Control": "no-store"}
    return StreamingResponse(_counted(user_id, topic), media_type="text/event-stream", headers=headers)


async def _counted(user_id: str, topic: str) -> AsyncIterator[str]:
    _streams[user_id] += 1
    try:
        async for part in relay(topic):
            yield part
    finally:
        _streams[user_id] -= 1
        if not _streams[user_id]:
            del _streams[user_id]


async def relay(topic: str, seconds: float = STREAM_SECONDS, beat: float = BEAT_SECONDS) -> AsyncIterator[str]:
    """The text of one stream: `event: nudge` for each nudge, a comment at least every 15 s, for about `seconds`."""
    ends = time.monotonic() + seconds
    yield "retry: 3000\n: open\n\n"
    while (left := ends - time.monotonic()) > 0:
        async for nudged in live.listen(topic, left):
            yield "event: nudge\ndata: 1\n\n" if nudged else ": beat\n\n"
            if time.monotonic() > ends:
                return
        if (left := ends - time.monotonic()) > 0:  # Redis is away: listening ended before its time
            yield ": beat\n\n"
            await anyio.sleep(min(beat, left))
