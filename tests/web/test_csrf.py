"""Other sites cannot act in a signed-in person's name."""

import pytest
from sqlalchemy import Engine, text

from app.web.errors import safe_next
from tests.web.conftest import PASSWORD, Browser, World, make_person
from tests.web.test_policies import walk

UNSAFE = {"POST", "PUT", "PATCH", "DELETE"}


def counts(engine: Engine) -> dict[str, int]:
    """Rows of every table."""
    with engine.connect() as connection:
        tables = connection.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")).all()
        return {table: connection.scalar(text(f'SELECT count(*) FROM "{table}"')) or 0 for table in tables}


FORGERIES = {
    "without the token": ({"Sec-Fetch-Site": "same-origin"}, False),
    "with another session's token": ({"Sec-Fetch-Site": "same-origin", "X-CSRF-Token": "OTHER"}, False),
    "from another site, with the token": ({"Sec-Fetch-Site": "cross-site"}, True),
    "from a sister site, with the token": ({"Sec-Fetch-Site": "same-site"}, True),
    "from another origin, with the token": ({"Sec-Fetch-Site": None, "Origin": "https://evil.example"}, True),
    "from a sandboxed frame, with the token": ({"Sec-Fetch-Site": None, "Origin": "null"}, True),
    "from nowhere, with the token": ({"Sec-Fetch-Site": None}, True),
    "as plain text, without the token": ({"Sec-Fetch-Site": "same-origin", "Content-Type": "text/plain"}, False),
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_no_route_acts_on_a_request_forged(forgery: str, world: World, committing: Engine) -> None:
    browser, other = world.browser("admin"), world.browser("lead")
    headers, with_token = FORGERIES[forgery]
    sent = {name: other.csrf if value == "OTHER" else value for name, value in headers.items() if value}
    if with_token:
        sent["X-CSRF-Token"] = browser.csrf
    if headers["Sec-Fetch-Site"] is None:
        del browser.client.headers["Sec-Fetch-Site"]
    before = counts(committing)
    for method, path, policies in walk(world):
        if method in UNSAFE and (policies or path == "/sign-out"):
            response = browser.client.request(method, path, headers=sent, content=b"{}")
            assert response.status_code == 403, f"{method} {path} -> {response.status_code}"
    assert counts(committing) == before


def test_looking_at_pages_changes_nothing(world: World, committing: Engine) -> None:
    browser = world.browser("admin")
    before = counts(committing)
    for method, path, policies in walk(world):
        if method == "GET" and "stream" not in " ".join(policies):
            browser.get(path)
    after = counts(committing)
    for written_by_looking in (
        "audit_log",  # that somebody exported something
        "annotators",  # the pseudonym of whoever opens an annotate page for the first time
    ):
        before.pop(written_by_looking), after.pop(written_by_looking)
    assert after == before


def test_the_token_may_come_in_the_form_or_in_the_header(browser: Browser) -> None:
    browser.sign_in(make_person())
    assert browser.client.post("/account/name", data={"name": "A", "csrf": browser.csrf}).status_code == 303
    token = {"X-CSRF-Token": browser.csrf}
    assert browser.client.post("/account/name", data={"name": "B"}, headers=token).status_code == 303
    files = {"name": (None, "C"), "csrf": (None, browser.csrf)}
    assert browser.client.post("/account/name", files=files).status_code == 303


def test_where_sec_fetch_site_is_missing_the_origin_decides(browser: Browser) -> None:
    browser.sign_in(make_person())
    del browser.client.headers["Sec-Fetch-Site"]
    fields = {"name": "A", "csrf": browser.csrf}
    ours = browser.client.post("/account/name", data=fields, headers={"Origin": "http://testserver"})
    assert ours.status_code == 303


def test_a_program_with_a_token_of_its_own_needs_neither(browser: Browser) -> None:
    del browser.client.headers["Sec-Fetch-Site"]
    answer = browser.client.post("/api/v1/campaigns", headers={"Authorization": "Bearer tb_wrong"}, json={})
    assert answer.status_code == 401


def test_a_cookie_beside_a_bad_token_opens_nothing(browser: Browser) -> None:
    browser.sign_in(make_person())
    assert browser.get("/account").status_code == 200
    assert browser.get("/account", headers={"Authorization": "Bearer tb_wrong"}).status_code == 303


def test_another_site_cannot_sign_somebody_in(browser: Browser) -> None:
    user = make_person()
    fields = {"email": user.email, "password": PASSWORD}
    answer = browser.client.post("/sign-in", data=fields, headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403
    assert not browser.cookie


@pytest.mark.parametrize(
    "target",
    [
        "https://evil.example",
        "//evil.example",
        "/\\evil.example",
        "\\\\evil.example",
        "/\t/evil.example",
        "/\n/evil.example",
        "javascript:alert(1)",
        "evil.example",
        " //evil.example",
        "/a\\..\\b",
        "",
        None,
        "/" + "x" * 3000,
    ],
)
def test_a_sign_in_never_leads_to_another_site(target: str | None) -> None:
    assert safe_next(target) == "/"


def test_a_sign_in_leads_back_to_where_the_person_was(browser: Browser) -> None:
    user = make_person()
    sent_away = browser.get("/account?tab=tokens")
    assert sent_away.headers["location"] == "/sign-in?next=/account%3Ftab%3Dtokens"
    page = browser.get(sent_away.headers["location"])
    assert 'name="next" value="/account?tab=tokens"' in page.text
    answer = browser.submit("/sign-in", email=user.email, password=PASSWORD, next="/account?tab=tokens")
    assert answer.headers["location"] == "/account?tab=tokens"
