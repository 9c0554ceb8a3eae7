"""The cookies: the session's, and a message that survives one redirect."""

import json
from urllib.parse import quote, unquote

from starlette.requests import Request
from starlette.responses import Response

from app.accounts.sessions import ABSOLUTE
from app.core.settings import settings

FLASH = "tiebreak-flash"
FLASH_SECONDS = 60


def is_https() -> bool:
    """Whether browsers reach us over TLS, which a proxy in front may have ended."""
    return settings().public_url.startswith("https://")


def session_cookie_name() -> str:
    """`__Host-` ties the cookie to this very host and to TLS; browsers refuse the prefix on plain HTTP."""
    return "__Host-tiebreak" if is_https() else "tiebreak"


def session_cookie(request: Request) -> str:
    return request.cookies.get(session_cookie_name(), "")


def set_session_cookie(response: Response, secret: str) -> None:
    response.set_cookie(
        session_cookie_name(),
        secret,
        max_age=int(ABSOLUTE.total_seconds()),
        path="/",
        secure=is_https(),
        httponly=True,
        samesite="lax",
    )


def drop_session_cookie(response: Response) -> None:
    response.delete_cookie(session_cookie_name(), path="/", secure=is_https(), httponly=True, samesite="lax")


def set_flash(response: Response, text: str, kind: str = "success") -> None:
    """Have the next page show `text` once. It is displayed as plain text, so it need not be secret or signed."""
    value = quote(json.dumps({"text": text[:300], "kind": kind}))
    response.set_cookie(FLASH, value, max_age=FLASH_SECONDS, path="/", secure=is_https(), httponly=True, samesite="lax")


def read_flash(request: Request) -> dict[str, str] | None:
    """The waiting message as `text` and `kind`, None when there is none or it is not one of ours."""
    try:
        flash = json.loads(unquote(request.cookies.get(FLASH, "")))
        return {"text": str(flash["text"]), "kind": "danger" if flash["kind"] == "danger" else "success"}
    except (ValueError, KeyError, TypeError):
        return None


def drop_flash(response: Response) -> None:
    response.delete_cookie(FLASH, path="/")
