import uuid

import pytest

from app.annotation.ranking import Ranking
from app.core.errors import Invalid

A, B, C = (str(uuid.UUID(int=n)) for n in (1, 2, 3))


def test_a_ranking_orders_every_pair_of_different_groups() -> None:
    assert Ranking.parse([[B], [A], [C]], [A, B, C]).pairs() == [(B, A), (B, C), (A, C)]


def test_tied_completions_make_no_pair_between_them() -> None:
    assert Ranking.parse([[A, B], [C]], [A, B, C]).pairs() == [(A, C), (B, C)]


def test_one_group_is_a_tie() -> None:
    ranking = Ranking.parse([[B, A]], [A, B])
    assert ranking.is_tie and ranking.pairs() == []


def test_an_id_in_capitals_is_the_same_id() -> None:
    assert Ranking.parse([[A.upper()], [B]], [A, B]).as_json() == [[A], [B]]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([], "non-empty groups"),
        ("AB", "non-empty groups"),
        ([[A], []], "non-empty groups"),
        ([[A], [A], [B]], "twice"),
        ([[A]], "each completion"),
        ([[A], [B], [C]], "no other"),
        ([[A], ["x"]], "is not a completion id"),
    ],
)
def test_a_ranking_that_is_not_a_weak_order_over_the_completions_is_refused(value: object, says: str) -> None:
    with pytest.raises(Invalid, match=says):
        Ranking.parse(value, [A, B])
