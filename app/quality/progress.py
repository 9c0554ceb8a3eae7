"""How far campaigns have come: answers, what is open, pace, and why annotators skip."""

import uuid
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from sqlalchemy import Date, Interval, Row, cast, func, select
from sqlalchemy.orm import Session

from app.annotation.models import Annotation, Assignment, AssignmentState
from app.comparisons.models import Comparison, ComparisonState

PACE_DAYS = 7
SHORTEST_WINDOW = timedelta(minutes=10)
"""A pace from less than this would promise too much."""


@dataclass(frozen=True)
class Progress:
    """A campaign's counts at one moment."""

    comparisons: int = 0
    """Not counting discarded ones."""
    open: int = 0
    """Comparisons that still want answers."""
    wanted: int = 0
    """Answers asked for in all: each comparison's overlap, added up."""
    left: int = 0
    """Answers still to come, those that annotators hold included."""
    leased: int = 0
    """Comparisons that annotators hold at this moment."""
    answers: int = 0
    """Current answers, imported and surplus ones included."""
    imported: int = 0
    last_at: datetime | None = None
    """When a person last answered; imports do not count."""

    @property
    def answered(self) -> int:
        """Of the answers wanted."""
        return self.wanted - self.left


def measure(session: Session, campaigns: Collection[uuid.UUID]) -> dict[uuid.UUID, Progress]:
    """The progress of several campaigns, in three queries however many they are."""
    comparisons = _comparisons(session, campaigns)
    answers = _answers(session, campaigns)
    leases = dict(
        session.execute(
            select(Assignment.campaign_id, func.count())
            .where(Assignment.campaign_id.in_(campaigns), Assignment.state == AssignmentState.leased)
            .group_by(Assignment.campaign_id)
        ).all()
    )
    found = {}
    for one in campaigns:
        asked, said, leased = comparisons.get(one), answers.get(one), leases.get(one, 0)
        found[one] = Progress(
            comparisons=asked.comparisons if asked else 0,
            open=asked.open if asked else 0,
            wanted=asked.wanted if asked else 0,
            left=min(asked.wanted, asked.slots + leased) if asked else 0,
            leased=leased,
            answers=said.answers if said else 0,
            imported=said.imported if said else 0,
            last_at=said.last_at if said else None,
        )
    return found


def _comparisons(session: Session, campaigns: Collection[uuid.UUID]) -> dict[uuid.UUID, Row[tuple[int, ...]]]:
    is_open = Comparison.state == ComparisonState.open
    statement = (
        select(
            Comparison.campaign_id,
            func.count().label("comparisons"),
            func.count().filter(is_open).label("open"),
            func.coalesce(func.sum(Comparison.overlap), 0).label("wanted"),
            func.coalesce(func.sum(Comparison.open_slots).filter(is_open), 0).label("slots"),
        )
        .where(Comparison.campaign_id.in_(campaigns), Comparison.state != ComparisonState.discarded)
        .group_by(Comparison.campaign_id)
    )
    return {row.campaign_id: row for row in session.execute(statement)}  # type: ignore[misc]


def _answers(session: Session, campaigns: Collection[uuid.UUID]) -> dict[uuid.UUID, Row[tuple[int, ...]]]:
    statement = (
        select(
            Annotation.campaign_id,
            func.count().label("answers"),
            func.count().filter(Annotation.imported).label("imported"),
            func.max(Annotation.created_at).filter(Annotation.imported.is_(False)).label("last_at"),
        )
        .where(Annotation.campaign_id.in_(campaigns), Annotation.superseded_at.is_(None))
        .group_by(Annotation.campaign_id)
    )
    return {row.campaign_id: row for row in session.execute(statement)}  # type: ignore[misc]


def _by_people(campaign_id: uuid.UUID) -> tuple[object, ...]:
    return (
        Annotation.campaign_id == campaign_id,
        Annotation.superseded_at.is_(None),
        Annotation.imported.is_(False),
    )


def per_day(session: Session, campaign_id: uuid.UUID, days: int = 14) -> list[tuple[date, int]]:
    """Answers by people on each of the last `days` days (UTC), today last, empty days included."""
    day = cast(func.timezone("UTC", Annotation.created_at), Date)
    today = datetime.now(UTC).date()
    since = today - timedelta(days=days - 1)
    counted = dict(
        session.execute(
            select(day, func.count())
            .where(*_by_people(campaign_id), Annotation.created_at >= datetime(*since.timetuple()[:3], tzinfo=UTC))  # type: ignore[arg-type]
            .group_by(day)
        ).all()
    )
    return [(one, counted.get(one, 0)) for one in (since + timedelta(days=n) for n in range(days))]


def pace(session: Session, campaign_id: uuid.UUID) -> float | None:
    """Answers a day by people, over the last week or since the first of them; None while it is too early to say."""
    since = func.now() - timedelta(days=PACE_DAYS)
    count, window = session.execute(
        select(func.count(), cast(func.now() - func.min(Annotation.created_at), Interval)).where(
            *_by_people(campaign_id),  # type: ignore[arg-type]
            Annotation.created_at >= since,
        )
    ).one()
    return rate(count, window)


def rate(count: int, window: timedelta | None) -> float | None:
    """Answers a day from a count over a window. Pure."""
    if window is None or window < SHORTEST_WINDOW:
        return None
    return count / (window / timedelta(days=1))


def seconds_left(left: int, a_day: float | None) -> float | None:
    """How long the rest takes at that pace; None when nobody can tell. Pure."""
    return left / a_day * 86400 if a_day else None


def skip_reasons(session: Session, campaign_id: uuid.UUID) -> list[tuple[str, int]]:
    """Reason and how often, the most frequent first."""
    count = func.count()
    rows = session.execute(
        select(Assignment.skip_reason, count)
        .where(Assignment.campaign_id == campaign_id, Assignment.state == AssignmentState.skipped)
        .group_by(Assignment.skip_reason)
        .order_by(count.desc(), Assignment.skip_reason)
    )
    return [(reason, n) for reason, n in rows]
