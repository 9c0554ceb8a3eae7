"""A ranking: completions in ordered groups, best first, ties within a group. A value object; pure."""

import uuid
from dataclasses import dataclass
from typing import Any

from app.core.errors import Invalid


@dataclass(frozen=True)
class Ranking:
    groups: tuple[frozenset[str], ...]

    @classmethod
    def parse(cls, value: Any, of: list[str]) -> "Ranking":
        """The weak order that `value` spells over exactly the completions `of`. Raises `Invalid` otherwise."""
        if not isinstance(value, list) or not value or not all(isinstance(g, list) and g for g in value):
            raise Invalid("A ranking is a list of non-empty groups of completion ids, best group first.", "ranking")
        flat = [_canonical(i) for group in value for i in group]
        if len(flat) != len(set(flat)):
            raise Invalid("A completion stands twice in the ranking.", "ranking")
        if set(flat) != set(of):
            raise Invalid("The ranking must name each completion of this comparison once, and no other.", "ranking")
        return cls(tuple(frozenset(_canonical(i) for i in group) for group in value))

    @property
    def is_tie(self) -> bool:
        """Nothing is better than anything else."""
        return len(self.groups) == 1

    def pairs(self) -> list[tuple[str, str]]:
        """Every strictly ordered (better, worse), sorted within each pair of groups so that it is reproducible."""
        return [
            (better, worse)
            for i, upper in enumerate(self.groups)
            for lower in self.groups[i + 1 :]
            for better in sorted(upper)
            for worse in sorted(lower)
        ]

    def as_json(self) -> list[list[str]]:
        return [sorted(group) for group in self.groups]


def _canonical(value: Any) -> str:
    try:
        return str(uuid.UUID(str(value)))
    except ValueError:
        raise Invalid(f"{str(value)[:60]!r} is not a completion id of this comparison.", "ranking") from None
