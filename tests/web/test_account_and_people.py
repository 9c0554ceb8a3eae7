"""The account page and the people page, form by form."""

import re

from sqlalchemy import select

from app.accounts import people
from app.accounts.models import ApiToken, Role, User
from app.core.db import transaction
from tests.web.conftest import PASSWORD, Browser, World, make_person


def test_a_token_is_shown_once_and_opens_the_api_within_its_scopes(browser: Browser) -> None:
    browser.sign_in(make_person(Role.lead))
    page = browser.submit("/account/tokens", token_name="export", token_scopes=["read"], token_days="30")
    (secret,) = re.findall(r"tb_[\w-]{43}", page.text)
    assert secret not in browser.get("/account").text
    bearer = {"Authorization": f"Bearer {secret}"}
    assert browser.client.get("/api/v1/openapi.json", headers=bearer).status_code == 200
    refused = browser.client.post("/api/v1/campaigns", headers=bearer, json={"name": "x", "kind": "pairwise"})
    assert refused.status_code == 403
    assert "manage" in refused.json()["detail"]


def test_a_token_cannot_do_what_belongs_to_its_person(browser: Browser) -> None:
    browser.sign_in(make_person(Role.admin))
    page = browser.submit("/account/tokens", token_name="all", token_scopes=["read", "manage", "annotate"])
    (secret,) = re.findall(r"tb_[\w-]{43}", page.text)
    bearer = {"Authorization": f"Bearer {secret}", "Accept": "application/json"}
    for method, path in (
        ("GET", "/account"),
        ("POST", "/account/tokens"),
        ("POST", "/people/invite"),
        ("GET", "/people"),
    ):
        assert browser.client.request(method, path, headers=bearer).status_code == 403


def test_a_refused_token_form_keeps_what_was_typed(browser: Browser) -> None:
    browser.sign_in(make_person())
    page = browser.submit("/account/tokens", token_name="  ", token_scopes=["manage"], token_days="7")
    assert page.status_code == 422
    assert "Give the token a name" in page.text
    assert re.search(r'value="manage" checked', page.text)
    assert re.search(r'value="7" selected', page.text)
    page = browser.submit("/account/tokens", token_name="export")
    assert 'value="export"' in page.text
    assert "Choose at least one" in page.text


def test_a_revoked_token_opens_nothing(browser: Browser) -> None:
    browser.sign_in(make_person())
    page = browser.submit("/account/tokens", token_name="export", token_scopes=["read"])
    (secret,) = re.findall(r"tb_[\w-]{43}", page.text)
    with transaction() as session:
        token_id = session.scalars(select(ApiToken.id)).one()
    browser.submit(f"/account/tokens/{token_id}/revoke")
    answer = browser.client.get("/api/v1/openapi.json", headers={"Authorization": f"Bearer {secret}"})
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


def test_a_password_is_changed_by_whoever_knows_the_one_before(browser: Browser) -> None:
    user = make_person()
    browser.sign_in(user)
    wrong = browser.submit("/account/password", current="wrong", password="nine quiet lamps")
    assert wrong.status_code == 422
    assert "not your current password" in wrong.text
    poor = browser.submit("/account/password", current=PASSWORD, password="password1")
    assert "attacker tries" in poor.text
    assert browser.submit("/account/password", current=PASSWORD, password="nine quiet lamps").status_code == 303
    assert browser.get("/account").status_code == 200
    fresh = Browser(browser.client.app)  # type: ignore[arg-type]
    assert fresh.submit("/sign-in", email=user.email, password=PASSWORD).status_code == 401
    assert fresh.submit("/sign-in", email=user.email, password="nine quiet lamps").status_code == 303


def test_the_current_password_cannot_be_guessed_without_end(browser: Browser) -> None:
    browser.sign_in(make_person())
    answers = [browser.submit("/account/password", current="wrong", password="nine quiet lamps") for _ in range(11)]
    assert answers[-1].status_code == 429


def test_whoever_has_no_password_yet_sets_one_without_naming_the_old(browser: Browser) -> None:
    browser.sign_in(make_person(password=None))
    assert "You have no password yet" in browser.get("/account").text
    assert browser.submit("/account/password", password=PASSWORD).status_code == 303


def test_an_invitation_made_on_the_page_can_be_accepted(world: World) -> None:
    admin = world.browser("admin")
    page = admin.submit("/people/invite", email="new@example.org", role="lead", campaign=str(world.campaign))
    (path,) = re.findall(r"(/invite/[\w-]{43})", page.text)
    assert path not in admin.get("/people").text
    newcomer = world.browser("anonymous")
    assert newcomer.submit(path, name="New Person", password=PASSWORD).status_code == 303
    with transaction() as session:
        user = people.find_user(session, "new@example.org")
        assert user is not None
        assert user.role is Role.lead
        assert people.campaign_role(session, user, world.campaign) is not None


def test_a_refused_invitation_keeps_what_was_typed(world: World) -> None:
    admin = world.browser("admin")
    page = admin.submit("/people/invite", email="no address", role="lead", campaign=str(world.campaign))
    assert page.status_code == 422
    assert 'value="no address"' in page.text
    assert re.search(r'value="lead" selected', page.text)
    assert re.search(rf'value="{world.campaign}" selected', page.text)
    assert "such as ada@example.org" in page.text


def test_a_withdrawn_invitation_opens_nothing(world: World) -> None:
    admin = world.browser("admin")
    page = admin.submit("/people/invite", email="new@example.org", role="annotator")
    (path,) = re.findall(r"(/invite/[\w-]{43})", page.text)
    (revoke,) = re.findall(r"(/people/invites/[\w-]+/revoke)", admin.get("/people").text)
    assert admin.submit(revoke).status_code == 303
    assert world.browser("anonymous").get(path).status_code == 410


def test_an_administrator_closes_opens_and_promotes_accounts(world: World) -> None:
    admin, annotator = world.browser("admin"), world.browser("annotator")
    user_id = world.users["annotator"].id
    assert admin.submit(f"/people/{user_id}/deactivate").status_code == 303
    assert annotator.get("/account").status_code == 303
    assert admin.submit(f"/people/{user_id}/sign-in-link").status_code == 409
    assert admin.submit(f"/people/{user_id}/activate").status_code == 303
    assert admin.submit(f"/people/{user_id}/role", role="lead").status_code == 303
    assert admin.submit(f"/people/{user_id}/role", role="emperor").status_code == 422
    page = admin.submit(f"/people/{user_id}/sign-in-link")
    (path,) = re.findall(r"(/link/[\w-]{43})", page.text)
    assert world.browser("anonymous").submit(path).status_code == 303
    with transaction() as session:
        assert session.get_one(User, user_id).role is Role.lead


def test_a_name_that_is_markup_is_shown_as_it_is(world: World) -> None:
    hostile = "<img src=x onerror=alert(1)>"
    world.browser("lead").submit("/account/name", name=hostile)
    page = world.browser("admin").get("/people").text
    assert hostile not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
