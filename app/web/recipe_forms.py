"""A round's recipe as a form. Names, descriptions and bounds come from the pydantic models, so the form cannot drift.

A control's name is its path in the recipe: `every_annotations`, `reward.learning_rate`, `ppo.lora.r`.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from app.rounds.recipes import DEFAULT_GATES, WHY, Gate, Metric, RoundRecipe

ABBREVIATIONS = {
    "kl": "KL",
    "sft": "SFT",
    "simpo": "SimPO",
    "eos": "end-of-text",
    "lora": "LoRA adapters",
    "lam": "λ of GAE",
    "coef": "coefficient",
}
NOT_IN_ROUNDS = {"save_adapter", "quantization"}
"""Fields of the stages that a round refuses or cannot use."""

YES = "yes"


@dataclass(frozen=True)
class Control:
    """One input of the form."""

    name: str
    label: str
    hint: str
    kind: Literal["whole", "number", "flag", "choice", "text"]
    default: Any
    optional: bool = False
    choices: tuple[str, ...] = ()
    bounds: str = ""
    is_part: bool = False
    """A box that says whether an optional part of the recipe is there; its controls follow."""
    part: str = ""
    """The box that this control depends on."""

    @property
    def options(self) -> list[tuple[str, str]]:
        return [(choice, choice) for choice in self.choices]

    @property
    def demand(self) -> str:
        """What a wrong value is answered with."""
        if self.kind == "choice":
            return f"Choose one of {', '.join(self.choices)}."
        if self.kind == "text":
            return f"Enter a shorter text{', or nothing' if self.optional else ''}."
        what = "a whole number" if self.kind == "whole" else "a number"
        return f"Enter {what}{' ' + self.bounds if self.bounds else ''}{', or nothing' if self.optional else ''}."

    def shown(self, value: Any) -> str:
        """A value as it stands in the input."""
        if value is None:
            return ""
        if isinstance(value, bool):
            return YES if value else ""
        return f"{value:.12g}" if isinstance(value, float) else str(value)


@dataclass(frozen=True)
class Stage:
    """The controls of one stage, folded away until somebody wants them."""

    name: str
    title: str
    text: str
    controls: list[Control]


STAGES = {
    "reward": "Reward model",
    "dpo": "Policy by DPO",
    "ppo": "Policy by PPO",
    "evaluate": "Evaluation",
    "sample": "Sampling of the next batch",
}


@cache
def rounds() -> dict[str, Control]:
    """The controls of the recipe's own fields: batch size, and what starts a round."""
    return {c.name: c for c in _controls(RoundRecipe, "")}


@cache
def stages() -> list[Stage]:
    found = []
    for name, title in STAGES.items():
        model: type[BaseModel] = RoundRecipe.model_fields[name].annotation  # type: ignore[assignment]
        text = (model.__doc__ or "").strip().split("\n")[0]
        found.append(Stage(name, title, text, list(_controls(model, f"{name}."))))
    return found


@cache
def every_control() -> dict[str, Control]:
    return rounds() | {c.name: c for stage in stages() for c in stage.controls}


def _controls(model: type[BaseModel], prefix: str) -> Iterator[Control]:
    for name, info in model.model_fields.items():
        if name in NOT_IN_ROUNDS:
            continue
        yield from _control(prefix + name, name, info)


def _control(path: str, name: str, info: FieldInfo) -> Iterator[Control]:
    kinds = [a for a in get_args(info.annotation) if a is not NoneType]
    optional = NoneType in get_args(info.annotation)
    kind = kinds[0] if optional else info.annotation
    label, hint = _label(name), info.description or ""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        if optional:  # a part that may be left out: a box to tick, and its own controls
            yield Control(path, label, (kind.__doc__ or "").strip().split("\n")[0], "flag", False, is_part=True)
            yield from (replace(control, part=path) for control in _controls(kind, f"{path}."))
        return
    if get_origin(kind) is Literal:
        yield Control(path, label, hint, "choice", info.default, optional, tuple(get_args(kind)))
    elif kind is bool:
        yield Control(path, label, hint, "flag", info.default)
    elif kind is str:
        yield Control(path, label, hint, "text", info.default, optional)
    elif kind in (int, float):
        yield Control(
            path, label, hint, "whole" if kind is int else "number", info.default, optional, bounds=_bounds(info)
        )


def _label(name: str) -> str:
    words = " ".join(ABBREVIATIONS.get(word, word) for word in name.split("_"))
    return words[0].upper() + words[1:]


def _bounds(info: FieldInfo) -> str:
    """`from 1 to 65,536`, `above 0, at most 1`."""
    said: dict[str, Any] = {}
    for limit in info.metadata:
        said |= {key: getattr(limit, key) for key in ("ge", "gt", "le", "lt") if hasattr(limit, key)}
    if "ge" in said and "le" in said:
        return f"from {said['ge']:,} to {said['le']:,}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return ", ".join(f"{word} {said[key]:,}" for key, word in words.items() if key in said)


def values(recipe: RoundRecipe) -> dict[str, str]:
    """What the inputs show for a recipe."""
    found = {c.name: c.shown(_at(recipe, c)) for c in every_control().values()}
    gates = {gate.metric: gate for gate in recipe.gates}
    for metric in get_args(Metric):
        for side in ("at_least", "at_most"):
            value = getattr(gates.get(metric), side, None)
            found[f"gate.{metric}.{side}"] = "" if value is None else f"{value:g}"
    return found


def _at(recipe: RoundRecipe, control: Control) -> Any:
    here: Any = recipe
    for part in control.name.split("."):
        here = getattr(here, part, None)
        if here is None:
            # Absent and part of something left out: what it would be.
            return None if control.optional else control.default
    return True if isinstance(here, BaseModel) else here


def gate_rows() -> list[tuple[str, str, str]]:
    """Metric, its name, and why it matters."""
    return [(metric, _label(metric), WHY[metric]) for metric in get_args(Metric)]


def changed(typed: Mapping[str, str], stage: Stage) -> int:
    """How many inputs of a stage differ from the defaults."""
    return sum(typed.get(c.name, "").strip() != c.shown(c.default) for c in stage.controls)


@dataclass
class Read:
    """What a submitted form says: what differs from the defaults, and what is wrong by control."""

    overrides: dict[str, Any] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


def read(form: Mapping[str, str]) -> Read:
    """The overrides behind a form; every fault is noted at once, beside its control."""
    result = Read()
    for control in every_control().values():
        if control.part and form.get(control.part) != YES:
            continue
        value = _value(result, control, form.get(control.name, "").strip())
        if value != control.default:
            _put(result.overrides, control.name, {} if control.is_part else value)
    _read_gates(result, form)
    try:
        RoundRecipe.model_validate(result.overrides)
    except ValidationError as error:
        for fault in error.errors():
            name = ".".join(str(part) for part in fault["loc"])
            known = every_control().get(name)
            result.errors.setdefault(name if known else "form", known.demand if known else fault["msg"])
    return result


def _value(result: Read, control: Control, raw: str) -> Any:
    """What was typed into a control, as the recipe holds it; its default where it was nothing, or nonsense."""
    if control.kind == "flag":
        return raw == YES
    if not raw:
        return None if control.optional else control.default
    if control.kind in ("choice", "text"):
        return raw
    number = _number(raw)
    if number is None or (control.kind == "whole" and number != int(number)):
        result.errors[control.name] = control.demand
        return control.default
    return int(number) if control.kind == "whole" else number


def _number(raw: str) -> float | None:
    """A finite number, written with or without separators between thousands."""
    try:
        number = float("".join(raw.replace(",", "").split()))
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _put(overrides: dict[str, Any], name: str, value: Any) -> None:
    *path, last = name.split(".")
    for part in path:
        overrides = overrides.setdefault(part, {})
    overrides[last] = value


def _read_gates(result: Read, form: Mapping[str, str]) -> None:
    """A gate for each metric that has a threshold. None of them typed at all is a form without gates: the defaults."""
    gates = []
    if not any(f"gate.{metric}.at_least" in form for metric in get_args(Metric)):
        return
    for metric in get_args(Metric):
        sides: dict[str, float] = {}
        for side in ("at_least", "at_most"):
            raw = form.get(f"gate.{metric}.{side}", "").strip()
            number = _number(raw)
            if number is not None:
                sides[side] = number
            elif raw:
                result.errors[f"gate.{metric}"] = "Enter a number, or nothing for no threshold."
        if len(sides) == 2 and sides["at_least"] > sides["at_most"]:
            result.errors[f"gate.{metric}"] = "The lowest value that passes is above the highest: nothing could pass."
        elif sides:
            gates.append(Gate(metric=metric, **sides))
    if sorted(gates, key=lambda g: g.metric) != sorted(DEFAULT_GATES, key=lambda g: g.metric):
        result.overrides["gates"] = [gate.model_dump(mode="json", exclude_none=True) for gate in gates]
