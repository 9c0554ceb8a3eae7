"""What every response carries, and what no page contains."""

import asyncio
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.core.db import ROOT
from app.web import errors
from app.web.security import Shield
from tests.web.conftest import Browser, World
from tests.web.test_policies import walk


class Scan(HTMLParser):
    """Collects what a content security policy would have to forbid."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.nonces: list[str | None] = []
        self.faults: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "script":
            self.nonces.append(values.get("nonce"))
        if tag == "style":
            self.faults.append("<style>")
        for name, value in attrs:
            if name.startswith("on") or name == "style":
                self.faults.append(f"{tag} {name}")
            if name in ("src", "action") and re.match(r"(https?:)?//", value or ""):
                self.faults.append(f"{tag} {name}={value}")
        if tag == "link" and re.match(r"(https?:)?//", values.get("href") or ""):
            self.faults.append(f"link {values['href']}")


def pages(world: World) -> list[tuple[str, object]]:
    """Every page as three kinds of people, and one of each kind of error."""
    found = []
    for who in ("anonymous", "annotator", "admin"):
        browser = world.browser(who)
        for method, path, policies in walk(world):
            if method == "GET" and not path.startswith("/api") and "stream" not in " ".join(policies):
                found.append((f"{who} {path}", browser.get(path, headers={"Accept": "text/html"})))
    lead = world.browser("lead")
    found += [
        ("404", lead.get("/nowhere")),
        ("405", lead.client.delete("/sign-in")),
        ("403", lead.client.post("/account/name", data={"name": "x"})),
        ("413", lead.client.post("/account/name", content=b"x" * 3_000_000)),
        ("422", lead.submit("/account/sessions/not-an-id/revoke")),
        ("401 form", lead.submit("/sign-in", email="x", password="y")),
    ]
    return found


def test_every_page_has_the_policy_its_own_nonce_and_nothing_that_the_policy_forbids(world: World) -> None:
    nonces = []
    seen = 0
    for where, response in pages(world):
        headers = response.headers  # type: ignore[attr-defined]
        assert headers["x-content-type-options"] == "nosniff", where
        assert headers["referrer-policy"] == "same-origin", where
        assert headers["cross-origin-opener-policy"] == "same-origin", where
        assert "permissions-policy" in headers, where
        policy = headers["content-security-policy"]
        assert "unsafe" not in policy, where
        assert "default-src 'none'" in policy, where
        if not headers.get("content-type", "").startswith("text/html"):
            continue
        seen += 1
        assert headers["cache-control"] == "no-store", where
        (nonce,) = re.findall(r"script-src 'nonce-([^']+)'", policy)
        nonces.append(nonce)
        for part in ("style-src 'self'", "frame-ancestors 'none'", "base-uri 'none'", "object-src 'none'"):
            assert part in policy, where
        scan = Scan(response.text)  # type: ignore[attr-defined]
        assert scan.faults == [], where
        assert set(scan.nonces) <= {nonce}, where
    assert seen >= 12
    assert len(set(nonces)) == len(nonces)


def test_a_thousand_responses_have_a_thousand_nonces() -> None:
    seen: list[str] = []

    async def inner(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["state"]["nonce"])

    async def ask() -> None:
        for _ in range(1000):
            await Shield(inner)({"type": "http", "method": "GET", "headers": [], "path": "/"}, None, None)  # type: ignore[arg-type]

    asyncio.run(ask())
    assert len(set(seen)) == 1000


def test_style_sheets_and_scripts_are_cached_for_ever_under_their_hash_and_checked_otherwise(browser: Browser) -> None:
    page = browser.get("/sign-in").text
    address = re.findall(r'href="(/static/app.css\?v=\w+)"', page)[0]
    assert "immutable" in browser.get(address).headers["cache-control"]
    assert browser.get("/static/app.css").headers["cache-control"] == "no-cache"
    assert browser.get("/static/../app/main.py").status_code == 404
    assert browser.get("/static/%2e%2e/pyproject.toml").status_code == 404


def test_errors_come_as_pages_to_people_and_as_problem_documents_to_programs(world: World) -> None:
    browser = world.browser("annotator")
    page = browser.get("/nowhere", headers={"Accept": "text/html"})
    assert page.status_code == 404
    assert "There is no page at this address" in page.text
    assert "annotator@example.org" in page.text  # still greets
    for path, headers in (("/nowhere", {"Accept": "application/json"}), ("/api/v1/nowhere", {})):
        answer = browser.get(path, headers=headers)
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == 404
        assert {"title", "detail", "type"} <= answer.json().keys()


def test_a_body_that_is_too_large_is_refused_by_what_was_counted(world: World) -> None:
    browser = world.browser("lead")
    form = {"Content-Type": "application/x-www-form-urlencoded", "X-CSRF-Token": browser.csrf}
    for path in ("/account/name", "/sign-in"):
        declared = browser.client.post(path, headers=form, content=b"x" * 2_000_001)
        streamed = browser.client.post(path, headers=form, content=(b"x" * 100_000 for _ in range(30)))
        for answer in (declared, streamed):
            assert answer.status_code == 413, path
            assert errors.TOO_LARGE in answer.text


def test_what_was_sent_is_not_repeated_in_a_validation_error(world: World) -> None:
    browser = world.browser("lead")
    answer = browser.request("POST", "/account/tokens", data={"token_days": "my secret"})
    assert answer.status_code == 422
    assert "my secret" not in answer.text


def test_an_error_that_nobody_expected_is_a_page_with_headers_and_without_details() -> None:
    app = FastAPI()

    @app.get("/boom")
    def boom() -> None:
        raise RuntimeError("the password is hunter2")

    app.add_middleware(Shield)
    errors.install(app)
    answer = TestClient(app, raise_server_exceptions=False).get("/boom", headers={"Accept": "text/html"})
    assert answer.status_code == 500
    assert "hunter2" not in answer.text
    assert "nonce-" in answer.headers["content-security-policy"]
    assert answer.headers["x-request-id"] in answer.text


def test_a_flash_message_is_shown_once(world: World) -> None:
    browser = world.browser("lead")
    browser.submit("/account/name", name="New Name")
    assert "Name saved." in browser.get("/account").text
    assert "Name saved." not in browser.get("/account").text


@pytest.mark.parametrize("value", ["", "%", "[]", '{"text": 1}', json.dumps({"text": "x" * 9, "kind": "<script>"})])
def test_a_flash_cookie_from_elsewhere_breaks_nothing(value: str, browser: Browser) -> None:
    browser.client.cookies.set("tiebreak-flash", value)
    page = browser.get("/sign-in")
    assert page.status_code == 200
    assert "toast-<script>" not in page.text


def test_htmx_gets_a_fragment_and_is_sent_to_sign_in_by_header(world: World) -> None:
    htmx = {"HX-Request": "true", "HX-Current-URL": "http://testserver/account"}
    sent_away = world.browser("anonymous").get("/account", headers=htmx)
    assert sent_away.status_code == 401
    assert sent_away.headers["hx-redirect"] == "/sign-in?next=/account"
    problem = world.browser("lead").get("/nowhere", headers=htmx)
    assert "<html" not in problem.text
    assert "data-error-message" in problem.text


def test_health_says_no_more_than_it_must(browser: Browser) -> None:
    assert browser.get("/livez").json() == {"status": "alive"}
    ready = browser.get("/readyz")
    assert ready.status_code == 200
    assert ready.json() == {"database": "ok", "redis": "ok", "status": "ready"}


def test_templates_and_scripts_hold_no_way_around_the_two_walls() -> None:
    bad = re.compile(r"\|\s*safe\b|Markup\(|\bautoescape\s+false|\bstyle=\"|\son[a-z]+=\"|<style|hx-on|javascript:")
    for path in (ROOT / "templates").rglob("*.html"):
        assert not bad.search(path.read_text()), path
    for path in (ROOT / "static").glob("*.js"):
        found = re.findall(
            r"\.(?:inner|outer)HTML\s*[+]?=[^=]|insertAdjacentHTML|document\.write|\beval\(|new Function",
            path.read_text(),
        )
        assert not found, path
    marks = [path.name for path in (ROOT / "app").rglob("*.py") if re.search(r"\bMarkup\(", path.read_text())]
    assert marks == ["markdown.py"]


def test_the_log_names_the_route_and_never_the_secret_in_the_address(
    browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="tiebreak.web")
    browser.get("/link/a-secret-that-signs-somebody-in?token=another")
    browser.get("/nowhere/a-secret")
    assert "GET /link/{secret} 410" in caplog.text
    assert "a-secret" not in "".join(record.getMessage() for record in caplog.records if record.name == "tiebreak.web")
