"""Programs that speak to the API over HTTP, each with a token of its own."""

import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import Engine
from starlette.testclient import TestClient

from app.accounts import people, tokens
from app.accounts.models import CampaignRole, Role, Scope
from app.core.db import transaction
from app.main import create_app


@dataclass
class Program:
    """A caller with a token. Methods return the response."""

    client: TestClient
    token: str
    email: str

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def call(path: str, **options: Any) -> Any:
            headers = {"Authorization": f"Bearer {self.token}", **options.pop("headers", {})}
            return getattr(self.client, method)(f"/api/v1{path}", headers=headers, **options)

        return call

    def send(self, method: str, path: str, **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.token}", **options.pop("headers", {})}
        return self.client.request(method, f"/api/v1{path}", headers=headers, **options)


@pytest.fixture
def http(committing: Engine) -> Iterator[TestClient]:
    with TestClient(create_app(), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def program(http: TestClient) -> Callable[..., Program]:
    """A new user's program: `program(Role.lead)`, `program(Role.annotator, campaign_id)`."""

    def make(role: Role, campaign: str | None = None, scopes: list[Scope] | None = None) -> Program:
        with transaction() as session:
            user = people.create_user(session, f"{uuid.uuid4().hex[:10]}@example.org", role)
            if campaign:
                people.add_member(session, user, uuid.UUID(campaign), CampaignRole.annotator, actor_id=None)
            secret = tokens.create_token(session, user, "test", scopes or list(Scope))[1]
        return Program(http, secret, user.email)

    return make


@pytest.fixture
def lead(program: Callable[..., Program]) -> Program:
    return program(Role.lead)


@pytest.fixture
def campaign(lead: Program) -> str:
    """An active pairwise campaign of the lead's, with ten comparisons."""
    made = lead.post("/campaigns", json={"name": "Kind", "kind": "pairwise", "activate": True}).json()["id"]
    rows = [
        {"prompt": f"Q{n}?", "completions": [{"text": "a", "source": "m-secret"}, {"text": "b"}]} for n in range(10)
    ]
    assert lead.post(f"/campaigns/{made}/comparisons", json=rows).json()["created"] == 10
    return str(made)


@pytest.fixture
def annotator(program: Callable[..., Program], campaign: str) -> Program:
    return program(Role.annotator, campaign)
