"""One commit per request, before the response leaves; and more requests than connections."""

import asyncio
from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI
from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from app.accounts.models import Role, User
from app.core.db import after_commit, transaction
from app.core.errors import Conflict, Invalid
from app.core.settings import settings
from app.web import deps, errors
from app.web.deps import Db, get_session
from app.web.forms import attempt
from app.web.security import Shield


@pytest.fixture
def small_app(committing: Engine) -> FastAPI:
    app = FastAPI()
    app.add_middleware(Shield)
    errors.install(app)
    return app


def add_user(db: Session, email: str) -> User:
    user = User(email=email, role=Role.annotator)
    db.add(user)
    db.flush()
    return user


def emails() -> list[str]:
    with transaction() as session:
        return list(session.scalars(select(User.email)))


def test_a_commit_that_fails_is_a_500_and_never_a_200(small_app: FastAPI) -> None:
    @small_app.get("/late")
    def late(db: Db) -> dict[str, str]:
        """Breaks a constraint that is looked at on COMMIT only."""
        db.execute(text("CREATE TEMP TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED) ON COMMIT DROP"))
        db.execute(text("INSERT INTO late VALUES (1), (1)"))
        add_user(db, "late@example.org")
        return {"said": "all is well"}

    answer = TestClient(small_app, raise_server_exceptions=False).get("/late", headers={"Accept": "application/json"})
    assert answer.status_code == 500
    assert "all is well" not in answer.text
    assert emails() == []


def test_a_handler_that_raises_leaves_nothing_behind_and_rings_no_bell(small_app: FastAPI) -> None:
    rung: list[int] = []

    @small_app.post("/act")
    def act(db: Db, fail: bool) -> str:
        add_user(db, f"{fail}@example.org")
        after_commit(db, lambda: rung.append(1))
        if fail:
            raise Conflict("Somebody was faster.")
        return "done"

    client = TestClient(small_app, headers={"Authorization": "none"})
    assert client.post("/act?fail=true").status_code == 409
    assert (emails(), rung) == ([], [])
    assert client.post("/act?fail=false").status_code == 200
    assert (emails(), rung) == (["False@example.org"], [1])


def test_handler_and_policies_share_one_session(small_app: FastAPI) -> None:
    def policy(db: Db) -> int:
        return id(db)

    @small_app.get("/same")
    def same(db: Db, other: Annotated[int, Depends(policy)]) -> bool:
        return id(db) == other

    assert TestClient(small_app).get("/same").json() is True


def test_no_request_waits_for_a_connection_in_a_thread() -> None:
    """The dependency's own limit is below the pool's size, so whoever gets through finds a connection."""
    (dependency,) = Db.__metadata__  # type: ignore[attr-defined]
    assert (dependency.dependency, dependency.scope) == (get_session, "function")
    assert 1 <= dependency.max_concurrency < settings().pool_size
    assert dependency.max_concurrency == deps.CONCURRENT_SESSIONS


def test_more_requests_than_threads_and_connections_all_finish(small_app: FastAPI) -> None:
    @small_app.get("/slow")
    def slow(db: Db) -> int:
        db.execute(text("SELECT pg_sleep(0.02)"))
        return 1

    async def storm() -> list[int]:
        transport = httpx.ASGITransport(app=small_app)
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver", timeout=30) as client:
            answers = await asyncio.gather(*(client.get("/slow") for _ in range(150)))
        return [answer.status_code for answer in answers]

    assert asyncio.run(storm()) == [200] * 150


def test_a_refused_form_undoes_what_it_did_and_lets_the_request_go_on(committing: Engine) -> None:
    rung: list[str] = []
    with transaction() as session:
        add_user(session, "before@example.org")
        after_commit(session, lambda: rung.append("before"))
        with attempt(session) as tried:
            add_user(session, "inside@example.org")
            after_commit(session, lambda: rung.append("inside"))
            raise Invalid("No.", "email")
        add_user(session, "after@example.org")
    assert (tried.refused, tried.status, tried.errors) == (True, 422, {"email": "No."})
    assert emails() == ["before@example.org", "after@example.org"]
    assert rung == ["before"]


def test_several_faults_of_a_form_are_shown_at_once(committing: Engine) -> None:
    with transaction() as session, attempt(session) as tried:
        add_user(session, "inside@example.org")
        tried.refuse("name", "Enter a name.")
        tried.refuse("email", "Enter an address.")
    assert tried.errors == {"name": "Enter a name.", "email": "Enter an address."}
    assert emails() == []


def test_a_database_that_does_not_answer_is_said_so(small_app: FastAPI, monkeypatch: pytest.MonkeyPatch) -> None:
    from sqlalchemy.exc import OperationalError

    @small_app.get("/down")
    def down(db: Db) -> None:
        raise OperationalError("SELECT secret", {}, Exception("connection refused"))

    answer = TestClient(small_app, raise_server_exceptions=False).get("/down", headers={"Accept": "application/json"})
    assert answer.status_code == 503
    assert "secret" not in answer.text
    assert "does not answer" in answer.json()["detail"]
