"""Coming in and going out: password, one-time link, invitation, sign-out."""

from typing import Annotated

from fastapi import APIRouter, Form, Request
from starlette.responses import Response

from app.accounts import authentication, invitations, links, sessions, throttle
from app.accounts.models import Link, LinkPurpose, User
from app.campaigns.models import Campaign
from app.core.errors import TooMany
from app.web.cookies import drop_session_cookie, session_cookie, set_session_cookie
from app.web.deps import Caller, Db
from app.web.errors import safe_next
from app.web.forms import attempt
from app.web.templating import redirect, render

router = APIRouter(include_in_schema=False)
Text = Annotated[str, Form()]


def client_address(request: Request) -> str:
    """Where the request comes from: uvicorn has put the trusted proxy's word here, and no other."""
    return request.client.host if request.client else "local"


def let_in(request: Request, db: Db, user: User, to: str, how: str) -> Response:
    """Begin a new session, whatever the browser had before, and go to `to`."""
    response = redirect(request, safe_next(to))
    agent = request.headers.get("user-agent", "")
    secret = sessions.start(db, user, user_agent=agent, replaces=session_cookie(request), how=how)
    set_session_cookie(response, secret)
    return response


@router.get("/sign-in")
def sign_in_page(request: Request, principal: Caller, next: str = "/") -> Response:
    if principal is not None:
        return redirect(request, safe_next(next))
    return _sign_in(request, next=next)


@router.post("/sign-in")
def sign_in(request: Request, db: Db, email: Text = "", password: Text = "", next: Text = "/") -> Response:
    try:
        user = authentication.authenticate(db, email, password, address=client_address(request))
    except TooMany as error:
        response = _sign_in(request, 429, email=email, next=next, error=error.message)
        response.headers["Retry-After"] = str(error.retry_after)
        return response
    if user is None:
        return _sign_in(request, 401, email=email, next=next, error=authentication.REFUSED)
    return let_in(request, db, user, next, "password")


def _sign_in(request: Request, status: int = 200, *, email: str = "", next: str = "/", error: str = "") -> Response:
    return render(
        request, "signin/index.html", status_code=status, email=email, next=safe_next(next), errors=_whole(error)
    )


def _whole(error: str) -> dict[str, str]:
    return {"form": error} if error else {}


@router.post("/sign-out")
def sign_out(request: Request, db: Db, principal: Caller) -> Response:
    if principal is not None and principal.web_session is not None:
        sessions.end(db, principal.web_session)
    response = redirect(request, "/sign-in", flash="You are signed out.")
    drop_session_cookie(response)
    # Also empties the pages that the browser keeps for its back button.
    response.headers["Clear-Site-Data"] = '"cache"'
    return response


# One-time links: looking changes nothing, because mail scanners look; the button on the page does it.


@router.get("/link/{secret}")
def link_page(request: Request, db: Db, secret: str) -> Response:
    throttle.admit_link(client_address(request))
    link = links.look(db, LinkPurpose.sign_in, secret)
    return render(request, "signin/link.html", link=link, errors={})


@router.post("/link/{secret}")
def use_link(request: Request, db: Db, secret: str, password: Text = "") -> Response:
    throttle.admit_link(client_address(request))
    with attempt(db) as tried:
        user = invitations.sign_in_by_link(db, secret, password)
    if tried.refused:
        link = links.look(db, LinkPurpose.sign_in, secret)
        return render(request, "signin/link.html", status_code=tried.status, link=link, errors=tried.errors)
    return let_in(request, db, user, "/", "link")


@router.get("/invite/{secret}")
def invite_page(request: Request, db: Db, secret: str) -> Response:
    throttle.admit_link(client_address(request))
    return _invite(request, db, links.look(db, LinkPurpose.invite, secret))


@router.post("/invite/{secret}")
def accept_invite(request: Request, db: Db, secret: str, name: Text = "", password: Text = "") -> Response:
    throttle.admit_link(client_address(request))
    with attempt(db) as tried:
        user = invitations.accept(db, secret, name, password)
    if tried.refused:
        link = links.look(db, LinkPurpose.invite, secret)
        return _invite(request, db, link, tried.status, name=name, errors=tried.errors)
    return let_in(request, db, user, "/", "invite")


def _invite(
    request: Request, db: Db, link: Link, status: int = 200, *, name: str = "", errors: dict[str, str] | None = None
) -> Response:
    campaign = db.get(Campaign, link.campaign_id) if link.campaign_id else None
    return render(
        request,
        "signin/invite.html",
        status_code=status,
        link=link,
        campaign=campaign,
        name=name,
        errors=errors or {},
    )
