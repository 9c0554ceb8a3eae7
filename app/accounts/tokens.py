"""Random secrets, looked up by their SHA-256; and the API tokens that people make for their programs."""

import hashlib
import secrets
import uuid
from collections.abc import Collection
from datetime import datetime, timedelta

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.accounts.models import ApiToken, Scope, User
from app.core import audit
from app.core.errors import Invalid, NotFound

PREFIX = "tb_"
SHOWN = len(PREFIX) + 6
DEFAULT_DAYS = 90
MAX_DAYS = 366
TOUCH_EVERY = timedelta(minutes=1)


def new_secret() -> str:
    """256 random bits, safe in a URL."""
    return secrets.token_urlsafe(32)


def digest(secret: str) -> str:
    """What is stored and looked up. A plain hash will do: nobody can guess 256 random bits."""
    return hashlib.sha256(secret.encode()).hexdigest()


def create_token(
    session: Session,
    user: User,
    name: str,
    scopes: Collection[Scope],
    *,
    days: int = DEFAULT_DAYS,
    actor_id: uuid.UUID | None = None,
) -> tuple[ApiToken, str]:
    """A new API token of `user` and its secret, which is never to be seen again."""
    name = name.strip()
    if not name:
        raise Invalid("Give the token a name, so that you know later what uses it.", "name")
    if len(name) > 80:
        raise Invalid("Use at most 80 characters.", "name")
    if not scopes:
        raise Invalid("Choose at least one thing that the token may be used for.", "scopes")
    if not 1 <= days <= MAX_DAYS:
        raise Invalid(f"A token lives between 1 and {MAX_DAYS} days.", "days")
    secret = PREFIX + new_secret()
    token = ApiToken(
        user_id=user.id,
        name=name,
        prefix=secret[:SHOWN],
        token_hash=digest(secret),
        scopes=sorted({Scope(scope).value for scope in scopes}),
        expires_at=_now(session) + timedelta(days=days),
    )
    session.add(token)
    session.flush()
    audit.record(session, actor_id or user.id, "token.create", token, scopes=token.scopes, days=days)
    return token, secret


def find_token(session: Session, secret: str) -> tuple[User, ApiToken] | None:
    """The live token of that secret and its active user, else None. Notes the use, at most once a minute."""
    if not secret.startswith(PREFIX):
        return None
    found = session.execute(
        select(User, ApiToken, func.now())
        .join(ApiToken, ApiToken.user_id == User.id)
        .where(
            ApiToken.token_hash == digest(secret),
            ApiToken.revoked_at.is_(None),
            ApiToken.expires_at > func.now(),
            User.is_active,
        )
    ).first()
    if found is None:
        return None
    user, token, now = found
    if token.last_used_at is None or token.last_used_at < now - TOUCH_EVERY:
        # Skipping a locked row: fifty requests of one program at once must not queue up to note the same minute.
        free = select(ApiToken.id).where(ApiToken.id == token.id).with_for_update(skip_locked=True)
        session.execute(update(ApiToken).where(ApiToken.id == free.scalar_subquery()).values(last_used_at=now))
    return user, token


def live_tokens(session: Session, user: User) -> list[ApiToken]:
    """Tokens that still open something, the newest first."""
    return list(
        session.scalars(
            select(ApiToken)
            .where(ApiToken.user_id == user.id, ApiToken.revoked_at.is_(None), ApiToken.expires_at > func.now())
            .order_by(ApiToken.created_at.desc())
        )
    )


def revoke_token(session: Session, user: User, token_id: uuid.UUID) -> ApiToken:
    """End one of the user's own tokens; somebody else's is as unknown as one that never was."""
    token = session.get(ApiToken, token_id)
    if token is None or token.user_id != user.id or token.revoked_at is not None:
        raise NotFound("There is no such token. It may have been revoked already.")
    token.revoked_at = _now(session)
    audit.record(session, user.id, "token.revoke", token)
    return token


def revoke_all_tokens(session: Session, user: User) -> None:
    """End every API token of a user whose account is being closed."""
    session.execute(
        update(ApiToken).where(ApiToken.user_id == user.id, ApiToken.revoked_at.is_(None)).values(revoked_at=func.now())
    )


def _now(session: Session) -> datetime:
    """The database's clock, the only one that all processes share."""
    return session.scalars(select(func.now())).one()
