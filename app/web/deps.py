"""What handlers ask for: the database session, who is calling, and the policies that say who may.

    @router.get("/campaigns/{campaign_id}/rounds")
    def rounds(request: Request, db: Db, campaign: LedCampaign) -> Response: ...

A campaign that the caller may not know of is a 404, the same as one that does not exist.
"""

import hmac
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy import select
from sqlalchemy.orm import Session

from app.accounts import access, sessions, tokens
from app.accounts.models import CampaignRole, Membership, Role, Scope, User, WebSession
from app.campaigns.models import Campaign
from app.core.db import transaction
from app.core.errors import Forbidden, NotFound, NotSignedIn
from app.core.settings import Settings
from app.web.cookies import session_cookie
from app.web.limits import FORM_LIMITS
from app.web.policies import policy

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

# Readiness and live streams open short transactions of their own: leave them a connection or two.
CONCURRENT_SESSIONS = max(1, Settings().pool_size - 2)


def get_session() -> Iterator[Session]:
    """The request's session; commits when the handler has returned, rolls back when it raised."""
    with transaction() as session:
        yield session


# scope="function": the commit happens before the response leaves, so that a failed one is a 500 and never a 200.
# max_concurrency: requests wait for a connection in the event loop instead of each blocking a thread.
Db = Annotated[Session, Depends(get_session, scope="function", max_concurrency=CONCURRENT_SESSIONS)]


@dataclass(frozen=True)
class Principal:
    """Who is calling, and how: by a browser's session, which may do all that its user may, or by an API token."""

    user: User
    scopes: frozenset[Scope]
    web_session: WebSession | None = None

    @property
    def by_browser(self) -> bool:
        return self.web_session is not None

    @property
    def csrf_token(self) -> str:
        return self.web_session.csrf_token if self.web_session else ""


async def submitted_csrf_token(request: Request) -> str:
    """The token that came with the request: in the header of a script's, in the field `csrf` of a form's."""
    if header := request.headers.get("x-csrf-token"):
        return header
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.method in SAFE_METHODS or kind not in ("application/x-www-form-urlencoded", "multipart/form-data"):
        return ""
    field = (await request.form(**FORM_LIMITS)).get("csrf", "")
    return field if isinstance(field, str) else ""


def caller(request: Request, db: Db, submitted: Annotated[str, Depends(submitted_csrf_token)]) -> Principal | None:
    """Who is calling, None for nobody.

    With an Authorization header the cookie is not looked at. A cookie alone opens reading; anything that changes
    something must also show the session's own token, which no other site can know.
    """
    authorization = request.headers.get("authorization")
    principal = _by_token(db, authorization) if authorization else _by_cookie(request, db, submitted)
    request.state.principal = principal
    return principal


def _by_token(db: Session, authorization: str) -> Principal:
    kind, _, secret = authorization.partition(" ")
    found = tokens.find_token(db, secret.strip()) if kind.lower() == "bearer" else None
    if found is None:
        raise NotSignedIn("This API token is unknown, expired or revoked. Make a new one on your account page.")
    user, token = found
    return Principal(user, frozenset(Scope(scope) for scope in token.scopes))


def _by_cookie(request: Request, db: Session, submitted: str) -> Principal | None:
    secret = session_cookie(request)
    found = sessions.find(db, secret) if secret else None
    if found is None:
        return None
    if request.method not in SAFE_METHODS and not hmac.compare_digest(
        submitted.encode(), found.web_session.csrf_token.encode()
    ):
        raise Forbidden("This form is out of date, so nothing was changed. Reload the page and try again.")
    return Principal(found.user, access.ALL_SCOPES, found.web_session)


Caller = Annotated[Principal | None, Depends(caller)]


def _scope(request: Request, principal: Principal, needed: Scope) -> None:
    if not access.scopes_allow(principal.scopes, needed, changes=request.method not in SAFE_METHODS):
        raise Forbidden(f"This API token may not be used for this: it lacks the scope “{needed.value}”.")


@policy("signed in")
async def signed_in(principal: Caller) -> Principal:
    """Anybody with an account, by browser or by token with any scope."""
    if principal is None:
        raise NotSignedIn("Sign in to go on.")
    return principal


SignedIn = Annotated[Principal, Depends(signed_in)]


@policy("signed in by browser")
async def in_browser(principal: SignedIn) -> Principal:
    """For what a program must not do in a person's name: passwords, sessions, tokens, people."""
    if not principal.by_browser:
        raise Forbidden("This can be done in the browser only, not with an API token.")
    return principal


InBrowser = Annotated[Principal, Depends(in_browser)]


@policy("administrator")
async def admin(request: Request, principal: SignedIn) -> Principal:
    """Administrators; a token needs the scope `manage`."""
    if not access.may_administer(principal.user.role):
        raise Forbidden("This page is for administrators.")
    _scope(request, principal, Scope.manage)
    return principal


Admin = Annotated[Principal, Depends(admin)]


@policy("administrator by browser")
async def admin_in_browser(principal: Admin, _: InBrowser) -> Principal:
    return principal


AdminInBrowser = Annotated[Principal, Depends(admin_in_browser)]


@policy("may create campaigns")
async def may_create_campaigns(request: Request, principal: SignedIn) -> Principal:
    """Administrators and leads; a token needs the scope `manage`."""
    if not access.may_create_campaigns(principal.user.role):
        raise Forbidden("Campaigns are created by leads. Ask an administrator to make you one.")
    _scope(request, principal, Scope.manage)
    return principal


CampaignCreator = Annotated[Principal, Depends(may_create_campaigns)]


NO_CAMPAIGN = "There is no such campaign."


def visible_campaign(
    db: Session, user: User, campaign_id: str | uuid.UUID, *, missing: str = NO_CAMPAIGN
) -> tuple[Campaign, CampaignRole | None]:
    """The campaign and what the user is in it, or `NotFound`.

    For policies on things inside a campaign, too: look the thing up, pass its `campaign_id` and, as `missing`, the very
    words with which an unknown thing of that kind is refused.
    """
    try:
        identity = campaign_id if isinstance(campaign_id, uuid.UUID) else uuid.UUID(campaign_id)
    except ValueError:
        raise NotFound(missing) from None
    found = db.execute(
        select(Campaign, Membership.role)
        .outerjoin(Membership, (Membership.campaign_id == Campaign.id) & (Membership.user_id == user.id))
        .where(Campaign.id == identity)
    ).first()
    if found is None or not access.may_see(user.role, found[1]):
        raise NotFound(missing)
    return found[0], found[1]


def require_lead(
    request: Request, db: Session, principal: Principal, campaign_id: str | uuid.UUID, *, missing: str = NO_CAMPAIGN
) -> Campaign:
    """The campaign, if the caller runs it: 404 for who may not know of it, 403 for its annotators."""
    campaign, role = visible_campaign(db, principal.user, campaign_id, missing=missing)
    if not access.may_lead(principal.user.role, role):
        raise Forbidden("This is for the leads of the campaign.")
    _scope(request, principal, Scope.manage)
    return campaign


def require_annotator(
    request: Request, db: Session, principal: Principal, campaign_id: str | uuid.UUID, *, missing: str = NO_CAMPAIGN
) -> Campaign:
    """The campaign, if the caller may annotate in it, else 404."""
    campaign, _ = visible_campaign(db, principal.user, campaign_id, missing=missing)
    _scope(request, principal, Scope.annotate)
    return campaign


def caller_of_stream(request: Request, session: Session) -> Principal:
    """Who is calling, for a live stream, which must not hold a connection for as long as it lasts.

    A stream's policy takes no `Db`; it asks in a short transaction of its own:

        @policy("lead of the round's campaign, for a stream")
        def led_round_stream(request: Request, round_id: str) -> uuid.UUID:
            with transaction() as session:
                principal = caller_of_stream(request, session)
                ...
    """
    principal = caller(request, session, "")
    if principal is None:
        raise NotSignedIn("Sign in to go on.")
    return principal


@policy("lead of the campaign")
def led_campaign(request: Request, db: Db, principal: SignedIn, campaign_id: str) -> Campaign:
    """Its leads and administrators; a token needs `manage`, or `read` to look."""
    return require_lead(request, db, principal, campaign_id)


LedCampaign = Annotated[Campaign, Depends(led_campaign)]


@policy("annotator of the campaign")
def annotated_campaign(request: Request, db: Db, principal: SignedIn, campaign_id: str) -> Campaign:
    """Its annotators and leads, and administrators; a token needs `annotate`, or `read` to look."""
    return require_annotator(request, db, principal, campaign_id)


AnnotatedCampaign = Annotated[Campaign, Depends(annotated_campaign)]


@policy("member of the campaign")
def member_campaign(request: Request, db: Db, principal: SignedIn, campaign_id: str) -> Campaign:
    """Whoever may know that it exists, to look at what all its members may see; a token with any scope."""
    if request.method not in SAFE_METHODS:
        _scope(request, principal, Scope.annotate)
    return visible_campaign(db, principal.user, campaign_id)[0]


MemberCampaign = Annotated[Campaign, Depends(member_campaign)]


def leads_campaign(db: Session, user: User, campaign: Campaign) -> bool:
    """For templates that show a lead more than an annotator."""
    return access.may_lead(user.role, visible_campaign(db, user, campaign.id)[1])


def is_admin(user: User) -> bool:
    return user.role is Role.admin
