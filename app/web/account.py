"""A person's own account: name, password, signed-in browsers, API tokens. By browser only, never by token."""

import re
import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from app.accounts import passwords, people, sessions, throttle, tokens
from app.accounts.models import Scope, User
from app.core.errors import Invalid
from app.web.deps import Db, InBrowser, Principal
from app.web.forms import Attempt, attempt
from app.web.signin import client_address
from app.web.templating import redirect, render

router = APIRouter(prefix="/account", include_in_schema=False)
Text = Annotated[str, Form()]

SCOPES = [
    (Scope.annotate.value, "Annotate: lease comparisons and answer them"),
    (Scope.manage.value, "Manage: campaigns, imports, rounds"),
    (Scope.read.value, "Read: look at everything I may see, change nothing"),
]
LIFETIMES = [(7, "7 days"), (30, "30 days"), (90, "90 days"), (365, "a year")]


@router.get("")
def account(request: Request, db: Db, principal: InBrowser) -> Response:
    return _page(request, db, principal)


def _page(request: Request, db: Db, principal: Principal, tried: Attempt | None = None, **typed: Any) -> Response:
    """The whole page; `typed` is what a refused form held."""
    defaults: dict[str, Any] = {
        "name": principal.user.name,
        "token_name": "",
        "token_scopes": [Scope.annotate.value],
        "token_days": tokens.DEFAULT_DAYS,
        "new_secret": None,
    }
    return render(
        request,
        "account/index.html",
        status_code=tried.status if tried else 200,
        sessions=sessions.live(db, principal.user),
        this_session=principal.web_session,
        tokens=tokens.live_tokens(db, principal.user),
        scopes=SCOPES,
        lifetimes=LIFETIMES,
        browser=browser,
        errors=tried.errors if tried else {},
        **(defaults | typed),
    )


@router.post("/name")
def rename(request: Request, db: Db, principal: InBrowser, name: Text = "") -> Response:
    with attempt(db) as tried:
        people.rename(db, principal.user, name)
    if tried.refused:
        return _page(request, db, principal, tried, name=name)
    return redirect(request, "/account", flash="Name saved.")


@router.post("/password")
def change_password(
    request: Request, db: Db, principal: InBrowser, current: Text = "", password: Text = ""
) -> Response:
    with attempt(db) as tried:
        _check_current(request, principal.user, current)
        people.set_password(db, principal.user, password, keep=principal.web_session)
    if tried.refused:
        return _page(request, db, principal, tried)
    return redirect(request, "/account", flash="Password changed. Every other browser is signed out.")


def _check_current(request: Request, user: User, current: str) -> None:
    """A browser left open must not be enough to lock its owner out; guesses are counted like sign-ins."""
    if user.password_hash is None:
        return
    throttle.admit_sign_in(user.email, client_address(request))
    if not passwords.verify(user.password_hash, current):
        raise Invalid("This is not your current password.", "current")
    throttle.signed_in(user.email, client_address(request))


@router.post("/sessions/{session_id}/revoke")
def revoke_session(request: Request, db: Db, principal: InBrowser, session_id: uuid.UUID) -> Response:
    sessions.revoke(db, principal.user, session_id)
    return redirect(request, "/account", flash="That browser is signed out.")


@router.post("/sessions/revoke-others")
def revoke_other_sessions(request: Request, db: Db, principal: InBrowser) -> Response:
    sessions.revoke_all(db, principal.user, keep=principal.web_session)
    return redirect(request, "/account", flash="Every other browser is signed out.")


@router.post("/tokens")
def create_token(
    request: Request,
    db: Db,
    principal: InBrowser,
    token_name: Text = "",
    token_scopes: Annotated[list[str] | None, Form()] = None,
    token_days: Annotated[int, Form()] = tokens.DEFAULT_DAYS,
) -> Response:
    """Answers with the page itself and not with a redirect: the secret is shown here and stored nowhere."""
    chosen = [scope for scope in Scope if scope.value in (token_scopes or [])]
    with attempt(db) as tried:
        _, secret = tokens.create_token(db, principal.user, token_name, chosen, days=token_days)
    if tried.refused:
        if fault := tried.errors.pop("name", None):
            tried.refuse("token_name", fault)  # the page has another field of that name
        typed = {"token_name": token_name, "token_scopes": token_scopes or [], "token_days": token_days}
        return _page(request, db, principal, tried, **typed)
    return _page(request, db, principal, new_secret=secret)


@router.post("/tokens/{token_id}/revoke")
def revoke_token(request: Request, db: Db, principal: InBrowser, token_id: uuid.UUID) -> Response:
    token = tokens.revoke_token(db, principal.user, token_id)
    return redirect(request, "/account", flash=f"“{token.name}” no longer opens anything.")


def browser(user_agent: str) -> str:
    """`Firefox on Linux`, as far as the browser tells."""
    names = {"Edg": "Edge", "OPR": "Opera", "Firefox": "Firefox", "Chrome": "Chrome", "Safari": "Safari"}
    systems = {"iPhone|iPad": "iOS", "Android": "Android", "Windows": "Windows", "Mac OS": "macOS", "Linux": "Linux"}
    name = next((said for sign, said in names.items() if f"{sign}/" in user_agent), "A browser")
    system = next((said for sign, said in systems.items() if re.search(sign, user_agent)), "")
    return f"{name} on {system}" if system else name
