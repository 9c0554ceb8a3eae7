"""Torch-free background work: the reconciler's tick, and looking at a round when something happened to it.

Started as `celery -A workers.housekeeping worker -Q housekeeping` and, once per installation, `… beat`. Several of
either do no harm: whoever comes second finds a lock taken or the work done.
"""

import logging
import uuid

from celery.schedules import crontab

from app.annotation import leasing
from app.core.db import transaction, try_lock
from app.core.errors import TiebreakError
from app.core.jobs import make_celery
from app.core.settings import settings
from app.rounds import progress, runs
from workers import invariants

log = logging.getLogger(__name__)

TICK = "tiebreak.tick"
CHECK = "tiebreak.check_invariants"

app = make_celery("tiebreak-housekeeping")
app.conf.beat_schedule = {
    "tick": {
        "task": TICK,
        "schedule": settings().tick_seconds,
        "options": {"queue": "housekeeping", "expires": settings().tick_seconds * 2},
    },
    "invariants": {"task": CHECK, "schedule": crontab(hour="3", minute="17"), "options": {"queue": "housekeeping"}},
}


@app.task(name=TICK)
def tick() -> None:
    """Whatever a lost message, a dead worker or the clock has left to do, do it."""
    with transaction() as session:
        if not try_lock(session, "tick"):
            return
        leasing.release_expired(session)
        runs.reconcile(session)
        live = progress.reconcile(session)
    for round_id in live:
        advance(round_id)


@app.task(name=CHECK)
def check_invariants() -> None:
    """Every night: whatever is not as it must be stands in the log as an error."""
    with transaction() as session:
        for name, rows in invariants.broken(session).items():
            log.error("it no longer holds that %s: %s", name, ", ".join(rows[:20]))


@app.task(name=runs.ADVANCE)
def advance_round(round_id: str) -> None:
    advance(uuid.UUID(round_id))


def advance(round_id: uuid.UUID) -> None:
    try:
        with transaction() as session:
            progress.advance(session, round_id)
    except TiebreakError as error:
        log.warning("round %s cannot go on: %s", round_id, error.message)
        with transaction() as session:
            progress.give_up(session, round_id, error.message)
    except Exception:  # one broken round must not keep the others waiting
        log.exception("round %s could not be advanced", round_id)
