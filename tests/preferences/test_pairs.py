import uuid

from app.annotation.ranking import Ranking
from app.preferences.pairs import Answered, pairs

A, B, C = (str(uuid.UUID(int=n)) for n in (1, 2, 3))


def answered(groups: list[list[str]], strength: int | None = None) -> Answered:
    ids = sorted(i for g in groups for i in g)
    return Answered(
        annotation_id="n",
        comparison_id="c",
        annotator="p",
        prompt=[{"role": "user", "content": "Why?"}],
        texts={i: f"text of {i}" for i in ids},
        ranking=Ranking.parse(groups, ids),
        strength=strength,
        strengths=3,
        held_out=False,
        batch_id="b",
        guidelines_version=1,
    )


def test_a_preference_becomes_one_pair_with_trls_columns() -> None:
    [(_, row)] = pairs([answered([[B], [A]], strength=3)])
    assert row["chosen"] == [{"role": "assistant", "content": f"text of {B}"}]
    assert row["rejected"] == [{"role": "assistant", "content": f"text of {A}"}]
    assert (row["margin"], row["weight"]) == (1.0, 1.0)


def test_a_slight_preference_has_a_small_margin() -> None:
    [(_, row)] = pairs([answered([[A], [B]], strength=1)])
    assert row["margin"] == 0.333333


def test_the_pairs_of_one_answer_weigh_one_together() -> None:
    rows = [row for _, row in pairs([answered([[A], [B], [C]])])]
    assert [(r["chosen_id"], r["rejected_id"]) for r in rows] == [(A, B), (A, C), (B, C)]
    assert abs(sum(r["weight"] for r in rows) - 1) < 1e-5


def test_a_tie_gives_no_pair() -> None:
    assert list(pairs([answered([[A, B]])])) == []
