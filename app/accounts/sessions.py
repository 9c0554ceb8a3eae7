"""Signed-in browsers, kept on the server: what the cookie holds is worthless once its row is gone.

A session ends after an hour without a request or twelve hours in all. Reading long completions takes time without a
click, hence the hour; twelve hours are a working day. A page that follows a running round keeps its session alive by
itself, until the twelve hours are over. Every sign-in gets a new session; a new password, another role or a closed
account ends all of them at once.
"""

import uuid
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import CursorResult, delete, func, select, update
from sqlalchemy.orm import Session

from app.accounts.models import User, WebSession
from app.accounts.tokens import digest, new_secret
from app.core import audit
from app.core.errors import NotFound

IDLE = timedelta(minutes=60)
ABSOLUTE = timedelta(hours=12)
TOUCH_EVERY = timedelta(minutes=1)


@dataclass(frozen=True)
class SignedIn:
    """A session and whose it is."""

    user: User
    web_session: WebSession


def start(session: Session, user: User, *, user_agent: str = "", replaces: str = "", how: str = "password") -> str:
    """Begin a session and return the secret for the cookie. The session of the cookie it `replaces` ends."""
    if replaces:
        session.execute(delete(WebSession).where(WebSession.token_hash == digest(replaces)))
    secret = new_secret()
    now = session.scalars(select(func.now())).one()
    # Old rows of the same person go on this occasion, so that the table needs no sweeper of its own.
    session.execute(delete(WebSession).where(WebSession.user_id == user.id, WebSession.expires_at < now))
    row = WebSession(
        user_id=user.id,
        token_hash=digest(secret),
        csrf_token=new_secret(),
        expires_at=now + ABSOLUTE,
        user_agent=user_agent[:300],
    )
    session.add(row)
    session.flush()
    audit.record(session, user.id, "session.sign_in", row, how=how)
    return secret


def find(session: Session, secret: str) -> SignedIn | None:
    """The live session of that cookie and its active user, else None. Notes the time, at most once a minute."""
    now = func.now()
    found = session.execute(
        select(User, WebSession, now)
        .join(WebSession, WebSession.user_id == User.id)
        .where(
            WebSession.token_hash == digest(secret),
            WebSession.expires_at > now,
            WebSession.last_seen_at > now - IDLE,
            User.is_active,
        )
    ).first()
    if found is None:
        return None
    user, row, at = found
    if row.last_seen_at < at - TOUCH_EVERY:
        touch(session, row, at)
    return SignedIn(user, row)


def touch(session: Session, row: WebSession, at: datetime) -> None:
    """Note that the browser is still there; whoever finds the row locked leaves it to the one who has it."""
    free = select(WebSession.id).where(WebSession.id == row.id).with_for_update(skip_locked=True)
    session.execute(update(WebSession).where(WebSession.id == free.scalar_subquery()).values(last_seen_at=at))


def live(session: Session, user: User) -> list[WebSession]:
    """The user's sessions that still open something, the most recent first."""
    now = func.now()
    return list(
        session.scalars(
            select(WebSession)
            .where(WebSession.user_id == user.id, WebSession.expires_at > now, WebSession.last_seen_at > now - IDLE)
            .order_by(WebSession.last_seen_at.desc(), WebSession.created_at.desc())
        )
    )


def end(session: Session, row: WebSession) -> None:
    """Sign this browser out. Its cookie, replayed, opens nothing."""
    audit.record(session, row.user_id, "session.sign_out", row)
    session.execute(delete(WebSession).where(WebSession.id == row.id))


def revoke(session: Session, user: User, session_id: uuid.UUID) -> None:
    """Sign another browser of the same user out; somebody else's is as unknown as one that never was."""
    row = session.get(WebSession, session_id)
    if row is None or row.user_id != user.id:
        raise NotFound("There is no such session. It may have ended already.")
    audit.record(session, user.id, "session.revoke", row)
    session.execute(delete(WebSession).where(WebSession.id == row.id))


def revoke_all(session: Session, user: User, *, keep: WebSession | None = None) -> int:
    """End every session of the user, but for the one to `keep`; returns how many ended."""
    statement = delete(WebSession).where(WebSession.user_id == user.id)
    if keep is not None:
        statement = statement.where(WebSession.id != keep.id)
    result = session.execute(statement)
    assert isinstance(result, CursorResult)
    return result.rowcount
