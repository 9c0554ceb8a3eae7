"""Write docs/states.md from the machines in the code: `python scripts/write_states.py`. A test notices a stale one."""

import ast
import importlib
import inspect
from enum import StrEnum
from pathlib import Path
from types import ModuleType

from app.core.db import ROOT

MODULES = ("campaigns", "comparisons", "annotation", "rounds")
TABLE = ("| state | what is true in it | may become |", "|---|---|---|")
PAGE = ROOT / "docs" / "states.md"
HEAD = """# State machines

Written by `scripts/write_states.py` from the code; do not edit. Every move is a compare-and-set on a row; what follows
from the clock (an expired lease, a lost run) is computed and never stored. `app/core/states.py` keeps the journal.
"""


def docstrings(enum: type[StrEnum]) -> dict[str, str]:
    """The string under each member of an enumeration, by member name."""
    body = ast.parse(inspect.getsource(enum)).body[0].body  # type: ignore[attr-defined]
    found = {}
    for before, after in zip(body, body[1:], strict=False):
        if isinstance(before, ast.Assign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            name = before.targets[0]
            assert isinstance(name, ast.Name)
            found[name.id] = " ".join(str(after.value.value).split())
    return found


def machines(module: ModuleType) -> list[tuple[str, type[StrEnum], dict[StrEnum, set[StrEnum]]]]:
    """`(name, states, moves)` of each class with a table of moves."""
    return [
        (name, type(next(iter(thing.MOVES))), thing.MOVES)
        for name, thing in inspect.getmembers(module, inspect.isclass)
        if thing.__module__ == module.__name__ and hasattr(thing, "MOVES")
    ]


def targets(states: set[StrEnum]) -> str:
    return ", ".join(sorted(state.value for state in states)) or "–"


def page() -> str:
    parts = [HEAD]
    for slice_name in MODULES:
        module = importlib.import_module(f"app.{slice_name}.models")
        for name, states, moves in machines(module):
            said = docstrings(states)
            rows = [f"| **{s.value}** | {said.get(s.name, '')} | {targets(moves[s])} |" for s in states]
            parts.append("\n".join([f"\n## {name}\n", *TABLE, *rows]))
    return "\n".join(parts) + "\n"


if __name__ == "__main__":
    Path(PAGE).write_text(page(), encoding="utf-8")
