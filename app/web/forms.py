"""Forms that lose nothing: a refused one comes back with what was typed and the reason beside the field."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from app.core.errors import TiebreakError


@dataclass
class Attempt:
    """How it went. `errors` maps a field's name (or `form`, for the whole) to what is wrong with it."""

    errors: dict[str, str] = field(default_factory=dict)
    status: int = 200

    @property
    def refused(self) -> bool:
        return bool(self.errors)

    def refuse(self, field: str, message: str, status: int = 422) -> None:
        """Note a fault; the first one of a field stays."""
        self.errors.setdefault(field, message)
        self.status = status


@contextmanager
def attempt(session: Session) -> Iterator[Attempt]:
    """Try to do what the form asks; a `TiebreakError` is noted beside its field and everything done so far undone.

        with attempt(db) as tried:
            people.rename(db, user, name)
        if tried.refused:
            return render(request, "account/index.html", status_code=tried.status, errors=tried.errors, name=name)

    The request's own transaction goes on, so a handler that re-renders the form commits nothing of what was refused.
    """
    tried = Attempt()
    waiting = len(session.info.get("after_commit", ()))
    savepoint = session.begin_nested()
    try:
        yield tried
    except TiebreakError as error:
        savepoint.rollback()
        del session.info.get("after_commit", [])[waiting:]
        tried.refuse(str(error.details.get("field") or "form"), error.message, error.status)
        return
    except BaseException:
        savepoint.rollback()
        raise
    if tried.refused:
        savepoint.rollback()
        del session.info.get("after_commit", [])[waiting:]
    else:
        savepoint.commit()
