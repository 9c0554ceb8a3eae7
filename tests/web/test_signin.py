"""Signing in: the same answer to everybody who may not, and not too often."""

import re
from datetime import timedelta

import pytest
from sqlalchemy import select, update

from app.accounts import invitations, links, passwords, people, throttle
from app.accounts.models import CampaignRole, Link, LinkPurpose, Membership, Role, User
from app.core.db import transaction
from app.core.settings import settings
from tests.factories import make_campaign
from tests.web.conftest import PASSWORD, Browser, make_person


@pytest.fixture
def verified(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """What reached the password hasher."""
    seen: list[str | None] = []
    really = passwords.verify

    def verify(stored: str | None, password: str) -> bool:
        seen.append(stored)
        return really(stored, password)

    monkeypatch.setattr(passwords, "verify", verify)
    return seen


def test_the_right_password_signs_in_whatever_the_case_of_the_address(browser: Browser) -> None:
    user = make_person()
    answer = browser.submit("/sign-in", email=f" {user.email.upper()} ", password=PASSWORD)
    assert answer.status_code == 303
    assert user.email in browser.get("/account").text


def test_unknown_wrong_and_closed_get_the_same_answer_after_the_same_work(
    browser: Browser, verified: list[str | None]
) -> None:
    known, closed, passwordless = make_person(), make_person(), make_person(password=None)
    with transaction() as session:
        people.deactivate(session, people.require_user(session, closed.id), actor_id=None)
    tries = [
        ("nobody@example.org", PASSWORD),
        (known.email, "not the password"),
        (closed.email, PASSWORD),
        (passwordless.email, PASSWORD),
    ]
    answers = [browser.submit("/sign-in", email=email, password=password) for email, password in tries]
    assert {answer.status_code for answer in answers} == {401}
    bodies = {re.sub(r'nonce="[^"]+"|value="[^"]*@example.org"', "", answer.text) for answer in answers}
    assert len(bodies) == 1
    assert len(verified) == 4  # one hash each, known or not


def test_a_refused_sign_in_keeps_the_address_and_never_the_password(browser: Browser) -> None:
    page = browser.submit("/sign-in", email="ada@example.org", password="not the password").text
    assert 'value="ada@example.org"' in page
    assert "not the password" not in page
    assert "do not belong together" in page


def test_the_eleventh_try_for_an_account_is_refused_before_hashing(
    browser: Browser, verified: list[str | None]
) -> None:
    user = make_person()
    for _ in range(10):
        assert browser.submit("/sign-in", email=user.email, password="wrong").status_code == 401
    answer = browser.submit("/sign-in", email=user.email, password=PASSWORD)
    assert answer.status_code == 429
    assert int(answer.headers["retry-after"]) > 0
    assert user.email in answer.text
    assert len(verified) == 10


def test_one_address_cannot_try_many_accounts(browser: Browser, verified: list[str | None]) -> None:
    for n in range(10):
        browser.submit("/sign-in", email=f"a{n}@example.org", password="wrong")
    assert browser.submit("/sign-in", email="a10@example.org", password="wrong").status_code == 429
    assert len(verified) == 10


def test_a_forwarded_address_that_no_trusted_proxy_vouches_for_is_not_believed(browser: Browser) -> None:
    statuses = [
        browser.client.post(
            "/sign-in", data={"email": f"a{n}@example.org", "password": "x"}, headers={"X-Forwarded-For": f"10.0.0.{n}"}
        ).status_code
        for n in range(12)
    ]
    assert statuses.count(429) == 2


def test_an_office_behind_one_address_can_begin_its_day(browser: Browser) -> None:
    users = [make_person(password=None) for _ in range(15)]
    with transaction() as session:
        hashed = passwords.hash_password(PASSWORD)
        session.execute(update(User).values(password_hash=hashed))
    for user in users:
        assert browser.submit("/sign-in", email=user.email, password=PASSWORD).status_code == 303


def test_without_redis_tries_are_still_counted(browser: Browser, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings(), "redis_url", "redis://127.0.0.1:1/0")
    monkeypatch.setattr(throttle, "_redis_away_until", 0.0)
    throttle._in_process().storage.reset()
    statuses = [browser.submit("/sign-in", email="a@example.org", password="x").status_code for _ in range(12)]
    assert statuses == [401] * 10 + [429] * 2
    throttle._in_process().storage.reset()
    monkeypatch.setattr(throttle, "_redis_away_until", 0.0)


def invite(email: str = "new@example.org", role: Role = Role.annotator, **values: object) -> str:
    with transaction() as session:
        return links.create_link(session, LinkPurpose.invite, email, role, **values)[1]  # type: ignore[arg-type]


def test_an_invitation_makes_the_account_it_was_for_and_signs_it_in(browser: Browser) -> None:
    with transaction() as session:
        campaign = make_campaign(session)
    secret = invite(campaign_id=campaign.id, campaign_role=CampaignRole.annotator)
    page = browser.get(f"/invite/{secret}")
    assert page.status_code == 200
    assert campaign.name in page.text
    answer = browser.submit(f"/invite/{secret}", name="New Person", password=PASSWORD, email="other@example.org")
    assert answer.status_code == 303
    with transaction() as session:
        user = session.scalars(select(User).where(User.name == "New Person")).one()
        assert (user.email, user.role) == ("new@example.org", Role.annotator)
        assert session.get(Membership, (campaign.id, user.id)).role is CampaignRole.annotator  # type: ignore[union-attr]
    assert browser.get("/account").status_code == 200


def test_a_refused_invitation_form_keeps_the_name_and_the_link(browser: Browser) -> None:
    secret = invite()
    answer = browser.submit(f"/invite/{secret}", name="New Person", password="short")
    assert answer.status_code == 422
    assert 'value="New Person"' in answer.text
    assert "at least 8 characters" in answer.text
    assert browser.submit(f"/invite/{secret}", name="New Person", password=PASSWORD).status_code == 303


def test_a_link_works_once(browser: Browser) -> None:
    secret = invite()
    assert browser.submit(f"/invite/{secret}", name="A", password=PASSWORD).status_code == 303
    again = browser.submit(f"/invite/{secret}", name="B", password=PASSWORD)
    assert again.status_code == 410
    assert browser.get(f"/invite/{secret}").status_code == 410


def test_a_link_that_has_expired_or_was_tampered_with_or_is_of_another_kind_opens_nothing(browser: Browser) -> None:
    secret, user = invite(), make_person()
    with transaction() as session:
        sign_in = links.sign_in_link(session, user)
        session.execute(
            update(Link).where(Link.purpose == "invite").values(expires_at=Link.expires_at - timedelta(days=8))
        )
    assert browser.submit(f"/invite/{secret}", name="A", password=PASSWORD).status_code == 410
    assert browser.submit(f"/link/{sign_in[:-1]}").status_code == 410
    assert browser.submit(f"/link/{sign_in}x").status_code == 410
    assert browser.submit(f"/invite/{sign_in}", name="A", password=PASSWORD).status_code == 410
    assert not browser.cookie


def test_looking_at_a_link_does_not_use_it_up(browser: Browser) -> None:
    user = make_person(password=None)
    with transaction() as session:
        secret = links.sign_in_link(session, user)
    for _ in range(3):
        page = browser.get(f"/link/{secret}")
        assert page.status_code == 200
        assert "set-cookie" not in page.headers
    assert browser.submit(f"/link/{secret}").status_code == 303
    assert browser.get("/account").status_code == 200
    assert Browser(browser.client.app).submit(f"/link/{secret}").status_code == 410  # type: ignore[arg-type]


def test_a_sign_in_link_can_set_a_new_password_which_ends_every_other_session(browser: Browser) -> None:
    user = make_person()
    other = Browser(browser.client.app).sign_in(user)  # type: ignore[arg-type]
    with transaction() as session:
        secret = links.sign_in_link(session, user)
    poor = browser.submit(f"/link/{secret}", password="password1")
    assert poor.status_code == 422
    assert browser.submit(f"/link/{secret}", password="nine quiet lamps").status_code == 303
    assert other.get("/account").status_code == 303
    assert browser.submit("/sign-in", email=user.email, password="nine quiet lamps").status_code == 303


def test_an_invitation_never_touches_an_account_that_exists_by_then(browser: Browser) -> None:
    secret = invite("ada@example.org")
    user = make_person(Role.admin, email="ada@example.org")
    answer = browser.submit(f"/invite/{secret}", name="Eve", password="nine quiet lamps")
    assert answer.status_code == 409
    assert not browser.cookie
    with transaction() as session:
        assert people.require_user(session, user.id).password_hash == user.password_hash


def test_inviting_somebody_who_has_an_account_lets_them_into_the_campaign_without_a_link(browser: Browser) -> None:
    admin, user = make_person(Role.admin), make_person()
    with transaction() as session:
        campaign = make_campaign(session)
        invited = invitations.invite(
            session, admin, user.email, Role.annotator, campaign_id=campaign.id, campaign_role=CampaignRole.annotator
        )
        assert invited.secret is None
        assert people.campaign_role(session, user, campaign.id) is CampaignRole.annotator
