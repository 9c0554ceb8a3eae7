"""A cookie opens nothing once its session is over, however it ended."""

from collections.abc import Callable
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update

from app.accounts import people, sessions
from app.accounts.models import Role, User, WebSession
from app.accounts.sessions import ABSOLUTE, IDLE
from app.core.db import transaction
from tests.web.conftest import PASSWORD, Browser, make_person


def sign_out(browser: Browser, user: User) -> None:
    assert browser.submit("/sign-out").status_code == 303


def change_password(browser: Browser, user: User) -> None:
    with transaction() as session:
        people.set_password(session, people.require_user(session, user.id), "nine quiet lamps")


def change_role(browser: Browser, user: User) -> None:
    with transaction() as session:
        people.change_role(session, people.require_user(session, user.id), Role.lead, actor_id=None)


def disable(browser: Browser, user: User) -> None:
    with transaction() as session:
        people.deactivate(session, people.require_user(session, user.id), actor_id=None)


def revoke(browser: Browser, user: User) -> None:
    with transaction() as session:
        sessions.revoke(session, user, session.scalars(select(WebSession.id)).one())


def wait(column: str, time: timedelta) -> Callable[[Browser, User], None]:
    def pass_the_time(browser: Browser, user: User) -> None:
        with transaction() as session:
            session.execute(update(WebSession).values({column: getattr(WebSession, column) - time}))

    return pass_the_time


ENDINGS = {
    "signing out": sign_out,
    "a new password": change_password,
    "another role": change_role,
    "a closed account": disable,
    "being signed out from elsewhere": revoke,
    "an hour of silence": wait("last_seen_at", IDLE),
    "twelve hours in all": wait("expires_at", ABSOLUTE),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_cookie_replayed_opens_nothing_after(ending: str, browser: Browser) -> None:
    user = make_person()
    browser.submit("/sign-in", email=user.email, password=PASSWORD)
    cookie = browser.cookie
    page = browser.get("/account")
    assert page.status_code == 200
    browser.csrf = page.text.split('name="csrf-token" content="')[1].split('"')[0]
    ENDINGS[ending](browser, user)
    browser.replay(cookie)
    assert browser.get("/account").status_code == 303
    answer = browser.get("/account", headers={"Accept": "application/json"})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"


def test_every_sign_in_gets_a_new_session_and_ends_the_one_it_replaces(browser: Browser) -> None:
    user = make_person()
    browser.submit("/sign-in", email=user.email, password=PASSWORD)
    first = browser.cookie
    browser.submit("/sign-in", email=user.email, password=PASSWORD)
    assert browser.cookie != first
    browser.replay(first)
    assert browser.get("/account").status_code == 303


def test_a_session_chosen_by_somebody_else_is_not_taken_over(browser: Browser) -> None:
    user = make_person()
    browser.client.cookies.set("tiebreak", "chosen-by-an-attacker")
    answer = browser.submit("/sign-in", email=user.email, password=PASSWORD)
    assert "chosen-by-an-attacker" not in answer.headers["set-cookie"]


def test_the_cookie_is_kept_from_scripts_and_other_sites(browser: Browser) -> None:
    user = make_person()
    cookie = browser.submit("/sign-in", email=user.email, password=PASSWORD).headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "path=/" in cookie


def test_the_database_holds_nothing_that_could_be_put_into_a_cookie(browser: Browser) -> None:
    browser.sign_in(make_person())
    with transaction() as session:
        row = session.scalars(select(WebSession)).one()
        assert browser.cookie not in (row.token_hash, row.csrf_token)


def test_a_request_a_minute_later_keeps_the_session_alive(browser: Browser) -> None:
    browser.sign_in(make_person())
    wait("last_seen_at", timedelta(minutes=59))(browser, User())
    assert browser.get("/account").status_code == 200
    with transaction() as session:
        row = session.scalars(select(WebSession)).one()
        now = session.scalars(select(func.now())).one()
        assert now - row.last_seen_at < timedelta(minutes=1)


def test_one_browser_can_sign_out_all_the_others(browser: Browser) -> None:
    user = make_person()
    other = Browser(browser.client.app).sign_in(user)  # type: ignore[arg-type]
    browser.sign_in(user)
    browser.submit("/account/sessions/revoke-others")
    assert other.get("/account").status_code == 303
    assert browser.get("/account").status_code == 200


def test_a_session_of_somebody_else_cannot_be_ended(browser: Browser) -> None:
    victim = Browser(browser.client.app).sign_in(make_person())  # type: ignore[arg-type]
    with transaction() as session:
        row = session.scalars(select(WebSession.id)).one()
    browser.sign_in(make_person())
    assert browser.submit(f"/account/sessions/{row}/revoke").status_code == 404
    assert victim.get("/account").status_code == 200
