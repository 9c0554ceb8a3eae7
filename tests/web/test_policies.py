"""Deny by default: every route, every kind of caller."""

import re
import uuid

import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import iter_route_contexts

from app.web.deps import get_session
from app.web.policies import PUBLIC, require_policies, routes_with_policies
from tests.web.conftest import World, is_refusal

WHO = ("anonymous", "annotator", "lead", "admin", "foreign lead", "foreign annotator")
ALLOWED = {
    "signed in": {"annotator", "lead", "admin", "foreign lead", "foreign annotator"},
    "signed in by browser": {"annotator", "lead", "admin", "foreign lead", "foreign annotator"},
    "administrator": {"admin"},
    "administrator by browser": {"admin"},
    "may create campaigns": {"lead", "admin", "foreign lead"},
    "lead of the campaign": {"lead", "admin"},
    "annotator of the campaign": {"annotator", "lead", "admin"},
    "member of the campaign": {"annotator", "lead", "admin"},
}


def walk(world: World) -> list[tuple[str, str, set[str]]]:
    """Each method and path of the application, with the first campaign's id and ids of nothing else filled in."""
    found = []
    for pattern, methods, policies in routes_with_policies(world.app.routes):
        path = pattern.replace("{campaign_id}", str(world.campaign))
        path = re.sub(r"\{[^}]+\}", str(uuid.uuid4()), path)
        found += [(method, path, policies) for method in sorted(methods - {"HEAD", "OPTIONS"})]
    return found


def test_every_route_has_a_policy_or_is_on_the_short_public_list(app: FastAPI) -> None:
    require_policies(app.routes)
    assert len(PUBLIC) <= 12


def test_a_route_without_a_policy_stops_the_application_from_starting() -> None:
    router = APIRouter()
    router.add_api_route("/forgotten", lambda: "hello")
    with pytest.raises(RuntimeError, match="/forgotten"):
        require_policies(router.routes)


def test_nothing_that_is_not_public_answers_somebody_who_is_not_signed_in(world: World) -> None:
    browser = world.browser("anonymous")
    for method, path, policies in walk(world):
        response = browser.request(method, path)
        if policies:
            assert is_refusal(response), f"{method} {path} answered {response.status_code}"
            assert response.status_code != 404 or "{" in path or response.status_code in (303, 401)


def test_every_route_lets_in_exactly_those_whom_its_policies_name(world: World) -> None:
    browsers = {who: world.browser(who) for who in WHO}
    for method, path, policies in walk(world):
        known = policies & ALLOWED.keys()
        if not known or "stream" in " ".join(policies):
            continue
        allowed = set.intersection(*(ALLOWED[name] for name in known))
        only_campaign = len(re.findall(r"[0-9a-f-]{36}", path)) == path.count(str(world.campaign))
        for who in WHO:
            if path.startswith(("/account", "/sign-out")):  # the one before may have ended the session
                browsers[who] = world.browser(who)
            response = browsers[who].request(method, path)
            where = f"{who}: {method} {path} -> {response.status_code}"
            if who not in allowed:
                assert is_refusal(response), where
            elif only_campaign and policies <= ALLOWED.keys():
                assert response.status_code not in (401, 403, 404, 500), where


def test_a_foreign_campaign_cannot_be_told_from_one_that_does_not_exist(world: World) -> None:
    browser = world.browser("foreign lead")
    for method, path, policies in walk(world):
        if not policies & {"lead of the campaign", "annotator of the campaign", "member of the campaign"}:
            continue
        foreign = browser.request(method, path)
        missing = browser.request(method, path.replace(str(world.campaign), str(uuid.uuid4())))
        assert foreign.status_code == missing.status_code == 404, f"{method} {path}"
        volatile = r'"request_id":"\w+"|nonce="[^"]+"'
        assert re.sub(volatile, "", foreign.text) == re.sub(volatile, "", missing.text), f"{method} {path}"


def test_an_annotator_of_the_campaign_is_told_that_the_lead_s_pages_are_not_theirs(world: World) -> None:
    browser = world.browser("annotator")
    for method, path, policies in walk(world):
        if "lead of the campaign" in policies:
            assert browser.request(method, path).status_code == 403, f"{method} {path}"


def test_no_live_stream_holds_a_database_session(app: FastAPI) -> None:
    def calls(dependant: object) -> set[object]:
        parts = getattr(dependant, "dependencies", [])
        return {part.call for part in parts}.union(*(calls(part) for part in parts))

    for route in iter_route_contexts(list(app.routes)):
        names = set()
        for path, _, policies in routes_with_policies(app.routes):
            if path == getattr(route, "path", None):
                names |= policies
        if any("stream" in name for name in names):
            assert get_session not in calls(getattr(route, "dependant", None)), route.path
