"""The calls that other programs rely on, over real HTTP semantics and a real database."""

import io
import json
import uuid
from collections.abc import Callable

import pyarrow.parquet as pq
import pytest

from app.accounts.models import Role, Scope
from tests.api.conftest import Program


def leased(annotator: Program, campaign: str) -> dict[str, object]:
    reply = annotator.post(f"/campaigns/{campaign}/assignments")
    assert reply.status_code == 201, reply.text
    found: dict[str, object] = reply.json()
    return found


def preference(assignment: dict[str, object], best: int = 0) -> list[list[str]]:
    ids = [c["id"] for c in assignment["completions"]]  # type: ignore[index,attr-defined]
    return [[ids[best]], [ids[1 - best]]]


def test_a_campaign_is_made_and_says_its_status(lead: Program) -> None:
    reply = lead.post("/campaigns", json={"name": "Kind", "kind": "pairwise", "overlap": 3, "scale": 5})
    assert reply.status_code == 201 and reply.json()["status"] == "draft"
    shown = lead.get(f"/campaigns/{reply.json()['id']}").json()
    assert (shown["overlap"], shown["scale"], shown["status"]) == (3, 5, "draft")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": " "}, "name"),
        ({"name": "x", "overlap": 0}, "overlap"),
        ({"name": "x", "scale": 3}, "scale"),
        ({"name": "x", "policy": "nobody"}, "policy"),
        ({"name": "x", "recipe": {"dpo": {"beta": -1}}}, "recipe.dpo.beta"),
        ({"name": "x", "kind": "telepathy"}, "kind"),
        ({"name": "x", "is_admin": True}, "is_admin"),
        ({}, "name"),
    ],
)
def test_a_bad_campaign_is_a_problem_that_names_the_field(lead: Program, body: dict[str, object], field: str) -> None:
    reply = lead.post("/campaigns", json=body)
    assert reply.status_code == 422 and reply.headers["content-type"] == "application/problem+json"
    assert field in reply.text


def test_activating_a_campaign_without_prompts_is_refused_with_what_to_do(lead: Program) -> None:
    made = lead.post("/campaigns", json={"name": "Empty"}).json()["id"]
    reply = lead.post(f"/campaigns/{made}/activate")
    assert reply.status_code == 409 and "add prompts" in reply.text


def test_ndjson_is_imported_and_its_bad_lines_are_named(lead: Program) -> None:
    made = lead.post("/campaigns", json={"name": "Import"}).json()["id"]
    lines = [json.dumps({"prompt": f"Q{n}", "completions": [{"text": "a"}, {"text": "b"}]}) for n in range(1, 1001)]
    lines[730] = lines[730][:-5]
    reply = lead.post(
        f"/campaigns/{made}/comparisons", content="\n".join(lines), headers={"Content-Type": "application/x-ndjson"}
    ).json()
    assert (reply["created"], reply["duplicates"]) == (999, 0)
    assert [bad["line"] for bad in reply["rejected"]] == [731]
    again = lead.post(f"/campaigns/{made}/comparisons", content="\n".join(lines)).json()
    assert (again["created"], again["duplicates"]) == (0, 999)


def test_an_import_may_be_larger_than_any_form(lead: Program) -> None:
    made = lead.post("/campaigns", json={"name": "Large"}).json()["id"]
    line = json.dumps({"prompt": "Why?" + "x" * 50_000, "completions": ["a", "b"]})
    reply = lead.post(f"/campaigns/{made}/comparisons", content="\n".join([line] * 60))
    assert reply.status_code == 200 and reply.json()["created"] == 1


def test_an_assignment_says_what_to_judge_and_nothing_of_where_it_came_from(annotator: Program, campaign: str) -> None:
    assignment = leased(annotator, campaign)
    assert set(assignment) == {"id", "comparison_id", "prompt", "completions", "expires_at"}
    assert assignment["prompt"][0]["role"] == "user"  # type: ignore[index]
    assert all(set(c) == {"id", "text"} for c in assignment["completions"])  # type: ignore[attr-defined]
    assert "secret" not in json.dumps(assignment)


def test_an_answer_is_stored_and_a_replay_is_the_same_200(annotator: Program, campaign: str) -> None:
    assignment = leased(annotator, campaign)
    body = {"ranking": preference(assignment), "strength": 2, "comment": "kinder", "elapsed_ms": 4200}
    path, key = f"/assignments/{assignment['id']}/annotation", {"Idempotency-Key": "k1"}
    first = annotator.put(path, json=body, headers=key)
    again = annotator.put(path, json=body, headers=key)
    assert first.status_code == again.status_code == 200 and first.json() == again.json()
    assert first.json()["ranking"] == body["ranking"]


def test_the_next_assignment_comes_with_the_receipt_until_none_is_left(annotator: Program, campaign: str) -> None:
    assignment, seen = leased(annotator, campaign), []
    while assignment:
        seen.append(assignment["comparison_id"])
        reply = annotator.put(
            f"/assignments/{assignment['id']}/annotation?next=true", json={"ranking": preference(assignment)}
        )
        assert reply.status_code == 200
        assignment = reply.json()["next"]
    assert len(seen) == len(set(seen)) == 10
    assert annotator.post(f"/campaigns/{campaign}/assignments").status_code == 204


def test_a_prefetch_is_not_what_the_caller_holds(annotator: Program, campaign: str) -> None:
    first = leased(annotator, campaign)
    second = annotator.post(f"/campaigns/{campaign}/assignments", json={"holding": [first["id"]]}).json()
    assert second["id"] != first["id"] and leased(annotator, campaign)["id"] == first["id"]


def test_a_foreign_assignment_does_not_exist(
    annotator: Program, campaign: str, program: Callable[..., Program]
) -> None:
    assignment = leased(annotator, campaign)
    other = program(Role.annotator, campaign)
    path = f"/assignments/{assignment['id']}/annotation"
    theirs = other.put(path, json={"ranking": preference(assignment)})
    nobodys = other.put(f"/assignments/{uuid.uuid4()}/annotation", json={"ranking": preference(assignment)})
    assert theirs.status_code == nobodys.status_code == 404
    assert theirs.json()["detail"] == nobodys.json()["detail"]


@pytest.mark.parametrize(
    "body",
    [
        {"ranking": []},
        {"ranking": [["x"], ["y"]]},
        {"ranking": "a"},
        {},
        {"ranking": [[]], "annotator_id": "somebody"},
    ],
)
def test_an_answer_that_is_none_is_a_422_and_stores_nothing(
    annotator: Program, campaign: str, body: dict[str, object]
) -> None:
    assignment = leased(annotator, campaign)
    assert annotator.put(f"/assignments/{assignment['id']}/annotation", json=body).status_code == 422
    assert annotator.get(f"/campaigns/{campaign}").json()["answers"] == 0


def test_a_skip_gives_the_comparison_to_somebody_else(
    annotator: Program, campaign: str, program: Callable[..., Program]
) -> None:
    skipped = leased(annotator, campaign)
    reply = annotator.post(f"/assignments/{skipped['id']}/skip", json={"reason": "broken_prompt"})
    assert reply.json() == {"id": skipped["id"], "status": "skipped"}
    assert leased(annotator, campaign)["comparison_id"] != skipped["comparison_id"]
    assert leased(program(Role.annotator, campaign), campaign)["comparison_id"] == skipped["comparison_id"]


def test_the_last_answer_can_be_undone_and_given_again(annotator: Program, campaign: str) -> None:
    assignment = leased(annotator, campaign)
    path = f"/assignments/{assignment['id']}/annotation"
    annotator.put(path, json={"ranking": preference(assignment)})
    assert annotator.post(f"/campaigns/{campaign}/undo").json()["id"] == assignment["id"]
    assert annotator.put(path, json={"ranking": preference(assignment, best=1)}).json()["version"] == 2


def test_every_exported_pair_is_the_judgement_that_was_sent(lead: Program, annotator: Program, campaign: str) -> None:
    said = {}
    for n in range(10):
        assignment = leased(annotator, campaign)
        ranking = preference(assignment, best=n % 2)
        annotator.put(f"/assignments/{assignment['id']}/annotation", json={"ranking": ranking, "strength": 3})
        said[assignment["comparison_id"]] = (ranking[0][0], ranking[1][0])
    reply = lead.get(f"/campaigns/{campaign}/preferences")
    rows = [json.loads(line) for line in reply.text.splitlines()]
    assert {r["comparison_id"]: (r["chosen_id"], r["rejected_id"]) for r in rows} == said
    assert all({"prompt", "chosen", "rejected", "margin", "weight"} <= set(r) for r in rows)
    table = pq.read_table(io.BytesIO(lead.get(f"/campaigns/{campaign}/preferences?format=parquet").content))
    assert table.num_rows == 10
    assert annotator.email not in reply.text


def test_agreement_says_when_there_is_not_enough_data(lead: Program, campaign: str) -> None:
    found = lead.get(f"/campaigns/{campaign}/agreement").json()
    assert found["alpha"] == {"value": None, "low": None, "high": None, "count": 0, "note": "not enough data"}


def test_starting_a_round_without_a_policy_or_with_too_little_is_refused(lead: Program, campaign: str) -> None:
    reply = lead.post(f"/campaigns/{campaign}/rounds", json={})
    assert reply.status_code == 409 and "policy" in reply.text


def test_a_token_can_do_what_its_scopes_say_and_no_more(program: Callable[..., Program], campaign: str) -> None:
    reader = program(Role.annotator, campaign, scopes=[Scope.read])
    assert reader.get(f"/campaigns/{campaign}").status_code == 200
    assert reader.post(f"/campaigns/{campaign}/assignments").status_code == 403


def test_without_a_token_there_is_nothing_to_see(http: object, campaign: str) -> None:
    reply = http.get(f"/api/v1/campaigns/{campaign}")  # type: ignore[attr-defined]
    assert reply.status_code == 401 and reply.headers["content-type"] == "application/problem+json"


def test_an_annotator_cannot_manage_and_a_foreign_lead_cannot_even_see(
    annotator: Program, campaign: str, program: Callable[..., Program]
) -> None:
    assert annotator.post(f"/campaigns/{campaign}/pause").status_code == 403
    assert program(Role.lead).get(f"/campaigns/{campaign}/preferences").status_code == 404
