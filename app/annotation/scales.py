"""The pairwise preference scales. Pure.

A scale with an odd number of steps has a tie in the middle; one with an even number makes the annotator choose.
Strength counts from the middle outwards: 1 is the weakest preference there is.
"""

from dataclasses import dataclass

WORDS = {
    1: ["better"],
    2: ["slightly better", "much better"],
    3: ["slightly better", "better", "much better"],
    4: ["barely better", "slightly better", "better", "much better"],
}


@dataclass(frozen=True)
class Scale:
    steps: int

    @property
    def strengths(self) -> int:
        """How many degrees of preference there are on each side."""
        return self.steps // 2

    @property
    def has_tie(self) -> bool:
        return self.steps % 2 == 1

    @property
    def words(self) -> list[str]:
        """The steps from left to right, as an annotator reads them."""
        degrees = range(1, self.strengths + 1)
        left = [f"A {self.word(n)}" for n in reversed(degrees)]
        return [*left, *(["tie"] if self.has_tie else []), *(f"B {self.word(n)}" for n in degrees)]

    def word(self, strength: int) -> str:
        return WORDS[self.strengths][strength - 1]
