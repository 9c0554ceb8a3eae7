"""Browsers that speak to the real application, and a small world of people for them."""

import uuid
from dataclasses import dataclass, field
from typing import Any

import pytest
import redis
from fastapi import FastAPI
from sqlalchemy import Engine
from starlette.responses import Response
from starlette.testclient import TestClient

from app.accounts import people, sessions
from app.accounts.models import CampaignRole, Role, User, WebSession
from app.accounts.tokens import digest
from app.core.db import transaction
from app.main import create_app
from tests.factories import make_campaign

PASSWORD = "violet tram seven"


@pytest.fixture(scope="session")
def app() -> FastAPI:
    return create_app()


@pytest.fixture(autouse=True)
def _nobody_has_tried_yet(redis_url: str) -> None:
    """Tries to sign in are counted in Redis across requests; every test begins at zero."""
    with redis.Redis.from_url(redis_url) as client:
        client.flushdb()


class Browser:
    """A browser on this site: it says where its requests come from, keeps cookies, and fills in the form's token."""

    def __init__(self, app: FastAPI) -> None:
        self.client = TestClient(app, follow_redirects=False, headers={"Sec-Fetch-Site": "same-origin"})
        self.csrf = ""

    def sign_in(self, user: User) -> "Browser":
        """Without the form, which hashes and throttles."""
        with transaction() as session:
            secret = sessions.start(session, user)
            row = session.query(WebSession).filter_by(token_hash=digest(secret)).one()
            self.csrf = row.csrf_token
        self.client.cookies.set("tiebreak", secret)
        return self

    @property
    def cookie(self) -> str:
        return str(self.client.cookies.get("tiebreak", ""))

    def replay(self, cookie: str) -> None:
        """Send this cookie from now on, whatever the site has set since."""
        self.client.cookies.clear()
        self.client.cookies.set("tiebreak", cookie)

    def get(self, path: str, **options: Any) -> Any:
        return self.client.get(path, **options)

    def submit(self, path: str, **fields: Any) -> Any:
        """Send a form as a page would."""
        return self.client.post(path, data={"csrf": self.csrf, **fields})

    def request(self, method: str, path: str, **options: Any) -> Any:
        headers = {"X-CSRF-Token": self.csrf, **options.pop("headers", {})}
        return self.client.request(method, path, headers=headers, **options)


@pytest.fixture
def browser(app: FastAPI, committing: Engine) -> Browser:
    """Nobody's yet."""
    return Browser(app)


@dataclass
class World:
    """Two campaigns. The principals are named by what they are to the first one."""

    app: FastAPI
    campaign: uuid.UUID
    other_campaign: uuid.UUID
    users: dict[str, User] = field(default_factory=dict)

    def browser(self, who: str) -> Browser:
        """A freshly signed-in browser of `who`; "anonymous" is nobody's."""
        browser = Browser(self.app)
        return browser if who == "anonymous" else browser.sign_in(self.users[who])


@pytest.fixture
def world(app: FastAPI, committing: Engine) -> World:
    with transaction() as session:
        users = {
            "admin": people.create_user(session, "admin@example.org", Role.admin),
            "lead": people.create_user(session, "lead@example.org", Role.lead),
            "annotator": people.create_user(session, "annotator@example.org", Role.annotator),
            "foreign lead": people.create_user(session, "other-lead@example.org", Role.lead),
            "foreign annotator": people.create_user(session, "other@example.org", Role.annotator),
        }
        campaign = make_campaign(session, name="First", by=users["lead"])
        other = make_campaign(session, name="Second", by=users["foreign lead"])
        for who, where, role in (
            ("lead", campaign, CampaignRole.lead),
            ("annotator", campaign, CampaignRole.annotator),
            ("foreign lead", other, CampaignRole.lead),
            ("foreign annotator", other, CampaignRole.annotator),
        ):
            people.add_member(session, users[who], where.id, role, actor_id=None)
    return World(app, campaign.id, other.id, users)


def make_person(role: Role = Role.annotator, password: str | None = PASSWORD, email: str = "") -> User:
    with transaction() as session:
        email = email or f"{uuid.uuid4().hex[:8]}@example.org"
        return people.create_user(session, email, role, name="Ada Lovelace", password=password)


def is_refusal(response: Response) -> bool:
    """Sent away: to the sign-in page, as not allowed, or told that there is no such thing."""
    to_sign_in = response.status_code == 303 and response.headers["location"].startswith("/sign-in")
    return to_sign_in or response.status_code in (401, 403, 404)
