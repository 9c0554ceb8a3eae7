"""The annotator's workspace by plain HTTP, and what a script gets in its place."""

import html
import re
import uuid
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import select

from app.accounts import people
from app.accounts.models import CampaignRole
from app.annotation.models import Annotation, Assignment, AssignmentState
from app.campaigns import lifecycle
from app.campaigns.models import Campaign, CampaignState
from app.comparisons.models import Batch, Completion, Source
from app.core.db import transaction
from app.preferences import importing
from app.rounds.models import Round
from tests.factories import add_pairs, make_policy, pair
from tests.web.conftest import Browser, World

SCRIPT = {"HX-Request": "true"}


@dataclass
class Desk:
    """An annotator at the workspace of the first campaign."""

    world: World
    browser: Browser
    who: str = "annotator"

    @property
    def path(self) -> str:
        return f"/campaigns/{self.world.campaign}/annotate"

    def look(self) -> str:
        response = self.browser.get(self.path)
        assert response.status_code == 200
        return str(response.text)

    def send(self, path: str, script: bool = False, **fields: Any) -> Any:
        return self.browser.request("POST", path, data=fields, headers=SCRIPT if script else {})


def assignment_in(page: str) -> str:
    found = re.search(r'data-assignment="([0-9a-f-]{36})"', page)
    assert found, page[-2000:]
    return found[1]


def values_in(page: str) -> list[str]:
    """The values of the radio buttons, in their order on the page."""
    return re.findall(r'name="choice" value="([^"]+)"', page)


def current() -> list[Annotation]:
    with transaction() as session:
        rows = select(Annotation).where(Annotation.superseded_at.is_(None)).order_by(Annotation.created_at)
        return list(session.scalars(rows))


@pytest.fixture
def desk(world: World) -> Desk:
    with transaction() as session:
        add_pairs(session, session.get_one(Campaign, world.campaign), 4)
    return Desk(world, world.browser("annotator"))


def set_campaign(desk: Desk, **values: Any) -> None:
    with transaction() as session:
        campaign = session.get_one(Campaign, desk.world.campaign)
        for name, value in values.items():
            setattr(campaign, name, value)


def test_the_form_alone_takes_an_annotator_to_the_next_comparison(desk: Desk) -> None:
    page = desk.look()
    first = assignment_in(page)
    best = values_in(page)[0]
    response = desk.browser.submit(f"/assignments/{first}/answer", choice=best, comment="Kinder.\r\nAnd right.")
    assert (response.status_code, response.headers["location"]) == (303, desk.path)
    assert assignment_in(desk.look()) != first
    stored = current()[0]
    assert [stored.ranking[0], stored.strength, stored.comment] == [[best[:36]], 3, "Kinder.\nAnd right."]


@pytest.mark.parametrize("steps", [2, 4, 5, 7, 8])
def test_each_scale_offers_its_steps_from_left_to_right_with_keys_in_that_order(desk: Desk, steps: int) -> None:
    set_campaign(desk, scale=steps)
    page = desk.look()
    with transaction() as session:
        left, right = session.get_one(Assignment, uuid.UUID(assignment_in(page))).shown
    half = steps // 2
    expected = [f"{left}.{n}" for n in range(half, 0, -1)]
    expected += ["tie"] if steps % 2 else []
    expected += [f"{right}.{n}" for n in range(1, half + 1)]
    assert values_in(page) == [*expected, "both_good", "both_bad", "cannot_judge"]
    keys = re.findall(r'name="choice"[^>]*data-key="([^"]+)"', page)
    assert keys[:steps] == [str(n) for n in range(1, steps + 1)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(("choice", "flags"), [("tie", []), ("both_good", ["both_good"]), ("both_bad", ["both_bad"])])
def test_neither_preferred_is_one_group_with_the_reason_as_a_flag(desk: Desk, choice: str, flags: list[str]) -> None:
    first = assignment_in(desk.look())
    desk.browser.submit(f"/assignments/{first}/answer", choice=choice)
    stored = current()[0]
    assert (len(stored.ranking), len(stored.ranking[0]), stored.strength, stored.flags) == (1, 2, None, flags)


def test_cannot_judge_is_a_skip_and_never_an_answer(desk: Desk) -> None:
    first = assignment_in(desk.look())
    desk.browser.submit(f"/assignments/{first}/answer", choice="cannot_judge")
    assert current() == []
    with transaction() as session:
        row = session.get_one(Assignment, uuid.UUID(first))
        assert (row.state, row.skip_reason) == (AssignmentState.skipped, "cannot_judge")


def test_a_comment_beside_cannot_judge_is_stored_and_comes_back_with_an_undo(desk: Desk) -> None:
    first = assignment_in(desk.look())
    desk.browser.submit(f"/assignments/{first}/answer", choice="cannot_judge", comment="Both in Finnish")
    with transaction() as session:
        assert session.get_one(Assignment, uuid.UUID(first)).skip_comment == "Both in Finnish"
    desk.browser.submit(f"{desk.path}/undo")
    page = desk.look()
    assert assignment_in(page) == first
    assert "Both in Finnish" in page


def test_nothing_chosen_comes_back_with_the_comment_and_says_what_to_do(desk: Desk) -> None:
    first = assignment_in(desk.look())
    response = desk.browser.submit(f"/assignments/{first}/answer", comment="A thought <b>worth</b> keeping")
    assert response.status_code == 422
    assert "Choose one of the answers first" in response.text
    assert "A thought &lt;b&gt;worth&lt;/b&gt; keeping" in response.text
    assert assignment_in(response.text) == first


def test_a_comment_that_is_too_long_comes_back_whole_with_the_choice(desk: Desk) -> None:
    page = desk.look()
    long = "word " * 2_100
    response = desk.browser.submit(f"/assignments/{assignment_in(page)}/answer", choice="tie", comment=long)
    assert response.status_code == 422
    assert "at most 10,000" in response.text
    assert long.strip() in response.text
    assert re.search(r'value="tie"[^>]* checked', response.text)


@pytest.mark.parametrize("choice", ["left", "tie.1", f"{uuid.UUID(int=7)}.1", "both_good.1", ".", "9999"])
def test_a_choice_that_is_none_is_refused_in_words(desk: Desk, choice: str) -> None:
    response = desk.send(f"/assignments/{assignment_in(desk.look())}/answer", script=True, choice=choice)
    assert response.status_code == 422
    assert "data-error-message" in response.text
    assert current() == []


def test_a_script_gets_the_next_comparison_in_the_same_reply_and_not_what_it_holds(desk: Desk) -> None:
    first = assignment_in(desk.look())
    ahead = assignment_in(desk.send(f"{desk.path}/next", script=True, holding=first).text)
    assert ahead != first
    reply = desk.send(
        f"/assignments/{first}/answer", script=True, choice="tie", key="k1", elapsed_ms=1200, holding=[first, ahead]
    )
    assert reply.status_code == 200
    assert "<html" not in reply.text
    assert assignment_in(reply.text) not in (first, ahead)
    assert 'data-done="1"' in reply.text
    assert current()[0].elapsed_ms == 1200


def test_the_same_key_sent_again_stores_nothing_and_answers_the_same(desk: Desk) -> None:
    first = assignment_in(desk.look())
    for _ in range(3):
        reply = desk.send(f"/assignments/{first}/answer", script=True, choice="tie", key="one")
        assert reply.status_code == 200
    with transaction() as session:
        assert session.query(Annotation).count() == 1


def test_undo_brings_the_last_comparison_back_with_what_was_said(desk: Desk) -> None:
    page = desk.look()
    first, choice = assignment_in(page), values_in(page)[1]
    desk.browser.submit(f"/assignments/{first}/answer", choice=choice, comment="Hm.")
    response = desk.browser.submit(f"{desk.path}/undo")
    assert response.status_code == 303
    page = desk.look()
    assert assignment_in(page) == first
    assert re.search(rf'value="{re.escape(choice)}"[^>]* checked', page)
    assert "\nHm.</textarea>" in page
    assert current() == []


def test_undo_with_nothing_to_undo_says_so(desk: Desk) -> None:
    desk.browser.submit(f"{desk.path}/undo")
    assert "There is no answer of yours to undo" in desk.look()
    reply = desk.send(f"{desk.path}/undo", script=True)
    assert (reply.status_code, "no answer of yours" in reply.text) == (409, True)


def test_a_skip_with_a_reason_goes_on_and_an_unknown_reason_is_refused(desk: Desk) -> None:
    first = assignment_in(desk.look())
    assert desk.send(f"/assignments/{first}/skip", script=True, reason="bored").status_code == 422
    assert desk.browser.submit(f"/assignments/{first}/skip", reason="language").status_code == 303
    assert assignment_in(desk.look()) != first


def test_when_nothing_is_left_the_page_says_so_and_a_new_batch_appears_to_its_next_look(desk: Desk) -> None:
    for _ in range(4):
        desk.browser.submit(f"/assignments/{assignment_in(desk.look())}/answer", choice="tie")
    assert "That is all for now" in desk.look()
    assert "That is all for now" in desk.send(f"{desk.path}/next", script=True).text
    with transaction() as session:
        campaign = session.get_one(Campaign, desk.world.campaign)
        importing.import_comparisons(session, campaign, [(1, pair(99))])
    assert "Question 99?" in desk.send(f"{desk.path}/next", script=True).text


def test_a_paused_campaign_serves_nobody_but_still_takes_what_is_leased(desk: Desk) -> None:
    first = assignment_in(desk.look())
    set_campaign(desk, state=CampaignState.paused)
    reply = desk.send(f"/assignments/{first}/answer", script=True, choice="tie", holding=first)
    assert reply.status_code == 200
    assert "This campaign is paused" in reply.text
    assert len(current()) == 1


def test_an_answer_to_a_closed_campaign_is_refused_in_its_own_words_and_not_lost(desk: Desk) -> None:
    first = assignment_in(desk.look())
    set_campaign(desk, state=CampaignState.closed)
    refused = desk.send(f"/assignments/{first}/answer", script=True, choice="tie", comment="Mine")
    assert (refused.status_code, "takes no more answers" in refused.text) == (409, True)
    page = desk.browser.submit(f"/assignments/{first}/answer", choice="tie", comment="Mine")
    assert page.status_code == 409
    assert "takes no more answers" in page.text
    assert "\nMine</textarea>" in page.text


def test_somebody_elses_assignment_does_not_exist(desk: Desk) -> None:
    first = assignment_in(desk.look())
    lead = Desk(desk.world, desk.world.browser("lead"))
    for path, fields in ((f"/assignments/{first}/answer", {"choice": "tie"}), (f"/assignments/{first}/skip", {})):
        assert lead.send(path, script=True, **fields).status_code == 404
    assert lead.send(f"{lead.path}/renew", script=True, holding=first).status_code == 404
    stranger = Desk(desk.world, desk.world.browser("foreign annotator"))
    for path in (desk.path, f"/campaigns/{desk.world.campaign}/mine"):
        assert stranger.browser.get(path).status_code == 404


def test_renewing_keeps_what_is_at_hand(desk: Desk) -> None:
    first = uuid.UUID(assignment_in(desk.look()))
    with transaction() as session:
        before = session.get_one(Assignment, first).expires_at
    assert desk.send(f"{desk.path}/renew", script=True, holding=str(first)).status_code == 204
    with transaction() as session:
        assert session.get_one(Assignment, first).expires_at > before


def test_hostile_texts_are_shown_and_never_run(desk: Desk) -> None:
    evil = (
        "<script>alert(1)</script><img src=x onerror=alert(2)> [x](javascript:alert(3)) ![p](https://spy.example/p.png)"
    )
    with transaction() as session:
        campaign = session.get_one(Campaign, desk.world.campaign)
        rows = [(1, {"prompt": evil, "completions": [{"text": evil}, {"text": "fine"}]})]
        importing.import_comparisons(session, campaign, rows)
        lifecycle.set_guidelines(session, campaign, desk.world.users["lead"], evil)
    for _ in range(4):
        desk.browser.submit(f"/assignments/{assignment_in(desk.look())}/skip", reason="other")
    page = desk.look()
    assert "alert(1)" in page
    main = page.partition("<main")[2].partition("</main")[0]
    assert not re.search(r"<(script|img|iframe)\b|href=\"javascript", main, re.IGNORECASE)
    assert "style=" not in page


def test_my_answers_are_listed_newest_first_by_the_sides_i_saw(desk: Desk) -> None:
    page = desk.look()
    desk.browser.submit(f"/assignments/{assignment_in(page)}/answer", choice=values_in(page)[0])
    desk.browser.submit(f"/assignments/{assignment_in(desk.look())}/answer", choice="both_bad", comment="Both rude")
    mine = desk.browser.get(f"/campaigns/{desk.world.campaign}/mine").text
    assert mine.index("Both are bad") < mine.index("A is much better")
    assert "Both rude" in mine
    assert mine.count(f'action="{desk.path}/undo"') == 1


def test_my_answers_are_mine_alone(desk: Desk) -> None:
    page = desk.look()
    desk.browser.submit(f"/assignments/{assignment_in(page)}/answer", choice="tie", comment="a secret thought")
    with transaction() as session:
        person = people.create_user(session, "second@example.org", desk.world.users["annotator"].role)
        people.add_member(session, person, desk.world.campaign, CampaignRole.annotator, actor_id=None)
    other = Browser(desk.world.app).sign_in(person)
    mine = other.get(f"/campaigns/{desk.world.campaign}/mine").text
    assert "a secret thought" not in mine
    assert "No answers yet" in mine


CANARIES = ("canary-model-7b", "canary-checkpoint", "canary-run", "canary-meta")


def test_no_model_round_checkpoint_or_batch_reaches_an_annotator(desk: Desk) -> None:
    """Everything that an annotator's browser or program can fetch, searched for every name and id there is."""
    ids = plant_canaries(desk)
    seen = [desk.look(), desk.browser.get("/").text]
    first = assignment_in(seen[0])
    seen.append(desk.send(f"{desk.path}/next", script=True, holding=first).text)
    api = "/api/v1"
    leased = desk.browser.request("POST", f"{api}/campaigns/{desk.world.campaign}/assignments", json={})
    assert leased.status_code == 201
    seen.append(leased.text)
    body = {"ranking": [[c["id"] for c in leased.json()["completions"]]], "flags": ["both_bad"]}
    seen.append(
        desk.browser.request("PUT", f"{api}/assignments/{leased.json()['id']}/annotation?next=true", json=body).text
    )
    seen.append(desk.browser.request("POST", f"{api}/campaigns/{desk.world.campaign}/undo").text)
    seen.append(desk.browser.request("POST", f"{api}/assignments/{leased.json()['id']}/renew").text)
    seen.append(desk.send(f"/assignments/{first}/answer", script=True, choice="tie").text)
    seen.append(desk.send(f"{desk.path}/undo", script=True).text)
    desk.send(f"/assignments/{first}/answer", script=True, choice="tie", key="again")
    seen.append(desk.browser.get(f"/campaigns/{desk.world.campaign}/mine").text)
    for text in map(html.unescape, seen):
        assert "Question" in text or "Second" in text or "campaign" in text.lower()
        for secret in (*CANARIES, *ids):
            assert secret not in text


def plant_canaries(desk: Desk) -> list[str]:
    """Give every hidden thing of the campaign a name; returns the ids that must stay hidden."""
    with transaction() as session:
        campaign = session.get_one(Campaign, desk.world.campaign)
        policy = make_policy(session, campaign, uri="file:///canary-checkpoint")
        policy.name = "canary-model-7b"
        campaign.policy_id = policy.id
        live = Round(campaign_id=campaign.id, number=1, trigger="manual", recipe={"note": "canary-run"})
        session.add(live)
        for completion in session.scalars(select(Completion)):
            completion.source, completion.checkpoint_id = Source.checkpoint, policy.id
            completion.source_name, completion.meta = "canary-model-7b", {"note": "canary-meta"}
        session.flush()
        batch_ids = session.scalars(select(Batch.id)).all()
        return [str(policy.id), str(live.id), *map(str, batch_ids)]
