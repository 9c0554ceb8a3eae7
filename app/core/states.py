"""State machines: a compare-and-set, and a journal row for every move.

Each machine is a `StrEnum` whose members carry a docstring, with a table of allowed moves beside it. Nothing else in
the project writes a `state` column. What follows from the clock (an expired lease, a lost run) is never stored.
"""

import uuid
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, Protocol

from sqlalchemy import func, update
from sqlalchemy.orm import Mapped, Session, mapped_column

from app.core.db import Base
from app.core.errors import Conflict


class StateChange(Base):
    """The journal: which thing went from where to where, when, by whom and why."""

    __tablename__ = "state_changes"

    id: Mapped[int] = mapped_column(primary_key=True)
    thing: Mapped[str] = mapped_column(index=False)
    thing_id: Mapped[uuid.UUID] = mapped_column(index=True)
    old: Mapped[str]
    new: Mapped[str]
    actor_id: Mapped[uuid.UUID | None]
    reason: Mapped[str] = mapped_column(server_default="")
    at: Mapped[datetime] = mapped_column(server_default=func.now(), index=True)


class Stateful(Protocol):
    """A mapped row with a machine."""

    MOVES: ClassVar[dict[Any, set[Any]]]
    __tablename__: str
    id: Any
    state: Any


def move(
    session: Session,
    row: Stateful,
    to: StrEnum,
    *,
    actor_id: uuid.UUID | None = None,
    reason: str = "",
    **values: object,
) -> None:
    """Move `row` to state `to`, setting `values` in the same UPDATE.

    Raises `Conflict` when the table has no such move or when somebody else moved the row first; the row is then
    untouched.
    """
    old = row.state
    noun = row.__tablename__.rstrip("s")
    if to not in row.MOVES[old]:
        raise Conflict(f"This {noun} is {old.value}; it cannot become {to.value}.")
    model: Any = type(row)
    session.flush()
    statement = (
        update(model)
        .where(model.id == row.id, model.state == old)
        .values(state=to, **values)
        .execution_options(synchronize_session=False)
    )
    if session.execute(statement).rowcount != 1:  # type: ignore[attr-defined]
        raise Conflict(f"This {noun} has changed meanwhile; look again.")
    session.add(
        StateChange(thing=row.__tablename__, thing_id=row.id, old=old, new=to, actor_id=actor_id, reason=reason)
    )
    session.flush()
    session.refresh(row)
