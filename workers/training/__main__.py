"""The training command line: one stage, one process, files in, files out.

    python -m workers.training STAGE --data FILE --model DIR_OR_HUB_ID --out DIR [--recipe r.json] [--set key=value …]

Stdout, when piped, is JSON lines and nothing else (`report.py`); whatever a library prints lands on stderr. Exit codes:
0 done, 2 the data, recipe or model cannot be used, 3 disk full, 4 out of memory, 75 stopped by SIGTERM or Ctrl-C and
resumable, 1 anything else.
"""

import argparse
import gc
import importlib
import inspect
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

from workers.training import parallel
from workers.training.errors import DataError, DiskFullError, OutOfMemoryError, TrainingError
from workers.training.report import Reporter
from workers.training.tracking import Trackers

STAGES = ("sft", "reward", "dpo", "kto", "ppo", "grpo", "rloo", "best_of_n", "sample", "evaluate", "tiny")
_NEEDED = {"ppo": ("model", "reward_model"), "evaluate": ("model", "baseline"), "tiny": ()}


class _UsageError(DataError):
    """The command line itself is wrong."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise _UsageError(f"{message} (see python -m workers.training --help)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage; returns the exit code."""
    with _private_stdout() as stdout:
        many = parallel.start().size > 1
        report = (parallel.SharedReporter if many else Reporter)("training", stdout=stdout)
        before = {number: signal.signal(number, _stopper(report)) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            return _report_on(argv, report)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            parallel.finish()


def _stopper(report: Reporter) -> Callable[[int, object], None]:
    """Ends the stage after its step, with its state written; a second Ctrl-C does not wait for that."""

    def stop(_number: int, _frame: object) -> None:
        report.ask_to_stop()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    return stop


def _report_on(argv: Sequence[str] | None, report: Reporter) -> int:
    """Run the stage and turn whatever happens into a last line and an exit code."""
    try:
        arguments = _parser().parse_args(argv)
        report.stage = arguments.stage
        if arguments.stop_with_parent:
            threading.Thread(target=_die_with_stdin, daemon=True).start()
        report.summary(_run(arguments, report))
        return 0
    except TrainingError as error:
        failure, trace = error, ""
    except Exception as error:
        failure = _explain(error)
        trace = traceback.format_exc().rstrip() if failure.kind == "internal" else ""
    report.error(failure.kind, str(failure), trace)
    return failure.exit_code


def _run(arguments: argparse.Namespace, report: Reporter) -> dict[str, float]:
    """Build the recipe, then import and call the stage."""
    stage: str = arguments.stage
    for name in _NEEDED.get(stage, ("model",)):
        if getattr(arguments, name) is None:
            raise _UsageError(f"{stage} needs --{name.replace('_', '-')}")
    if not parallel.alone() and stage not in parallel.STAGES:
        raise _UsageError(f"{stage} runs in one process: several are for {', '.join(parallel.STAGES)}")
    recipe = _recipe(stage, arguments.recipe, arguments.set)
    # Waiting threads must sleep: where other processes share the cores, spinning ones cost more than they win.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    # Thousands of modules are about to be made that live to the end: scanning them for garbage is half a second lost.
    gc.disable()
    train = importlib.import_module(f"workers.training.{stage}").train
    _quiet_libraries()
    gc.freeze()
    gc.enable()
    offered = {
        "model": arguments.model,
        "eval": arguments.eval,
        "reward_model": arguments.reward_model,
        "reference_model": arguments.reference_model,
        "rewards": arguments.rewards,
        "baseline": arguments.baseline,
        "initial": arguments.initial,
        "held_out_reward_model": arguments.held_out_reward_model,
        "demonstrations": arguments.demonstrations,
        "sycophancy": arguments.sycophancy,
        "previous": arguments.previous,
        "suite": arguments.suite,
        "server": arguments.server,
        "ptx_data": arguments.ptx_data,
        "resume": arguments.resume,
    }
    known = inspect.signature(train).parameters
    options = {name: value for name, value in offered.items() if name in known}
    report.peak_memory_mb = _peak_memory(report.peak_memory_mb)
    report.keep(arguments.out, resume=arguments.resume)
    if not arguments.track or not parallel.first():
        return dict(train(recipe, arguments.data, arguments.out, report, **options))
    trackers = Trackers(arguments.track, stage, arguments.out, recipe.model_dump())
    report.follow = trackers.log
    try:
        return dict(train(recipe, arguments.data, arguments.out, report, **options))
    finally:
        trackers.finish()


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m workers.training", description="Train, sample or evaluate a language model.")
    parser.add_argument("stage", choices=STAGES, help="what to do")
    parser.add_argument("--data", type=Path, required=True, help="JSONL: pairs, prompts, or demonstrations")
    parser.add_argument("--model", help="model directory or Hugging Face hub id to start from")
    parser.add_argument("--out", type=Path, required=True, help="directory for what comes out")
    parser.add_argument("--eval", type=Path, help="JSONL of held-out pairs or demonstrations")
    parser.add_argument("--reference-model", help="reference policy, where it is not the model itself (dpo, kto)")
    parser.add_argument("--reward-model", help="reward model directory (ppo, grpo, rloo, …)")
    parser.add_argument("--rewards", type=Path, help="JSON list of reward components (grpo, rloo, best_of_n)")
    parser.add_argument("--baseline", help="policy to compare with (evaluate)")
    parser.add_argument("--initial", help="first policy of all, for its KL (evaluate)")
    parser.add_argument("--held-out-reward-model", help="one that nothing was optimised against (evaluate)")
    parser.add_argument("--demonstrations", type=Path, help="JSONL whose loss is reported (evaluate)")
    parser.add_argument("--sycophancy", type=Path, help="JSONL of prompt, prompt_with_opinion, wrong (evaluate)")
    parser.add_argument(
        "--suite", type=Path, action="append", default=[], help="JSONL that a verifier scores (evaluate)"
    )
    parser.add_argument("--server", help="URL of an OpenAI-compatible server that draws (sample, evaluate)")
    parser.add_argument("--previous", type=Path, action="append", default=[], help="earlier report.json, oldest first")
    parser.add_argument("--ptx-data", type=Path, help="JSONL of demonstrations to keep in mind (ppo with ptx_coef)")
    parser.add_argument("--recipe", type=Path, help="JSON object of hyperparameters")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="one hyperparameter (JSON)")
    parser.add_argument("--resume", action="store_true", help="go on from the newest whole state in --out")
    parser.add_argument("--track", metavar="NAMES", help="report to tensorboard, wandb, mlflow as well (a,b)")
    parser.add_argument("--stop-with-parent", action="store_true", help="die as soon as stdin is closed")
    return parser


def _recipe(stage: str, file: Path | None, settings: Sequence[str]) -> Any:
    from pydantic import ValidationError

    from workers.training.recipes import RECIPES

    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = dict(json.loads(file.read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise DataError(f"The recipe {file.name} is not a readable JSON object ({error}).") from error
    for setting in settings:
        key, sign, text = setting.partition("=")
        if not sign:
            raise _UsageError(f"--set {setting}: write key=value")
        try:
            values[key] = json.loads(text)
        except ValueError:
            values[key] = text
    try:
        return RECIPES[stage](**values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "recipe"
        raise DataError(f"Recipe of {stage}, field '{field}': {first['msg']}.") from error


def _explain(error: Exception) -> TrainingError:
    """The failure behind a foreign exception: memory, disk, or a bug of ours."""
    from workers.training.checkpoints import is_disk_full

    text = f"{type(error).__name__}: {error}"
    if is_disk_full(error):
        return DiskFullError("The disk is full. What was saved before is intact; free some space and resume.")
    lowered = text.lower()
    if isinstance(error, MemoryError) or "out of memory" in lowered or "can't allocate memory" in lowered:
        return OutOfMemoryError(_memory_advice())
    return TrainingError(f"{text.splitlines()[0][:500]} (this is a defect: the trace is in the log)")


def _memory_advice() -> str:
    """What the nets that were about to train need, or as much of it as is loaded, and what to lower."""
    import torch

    from workers.training import memory, nets

    things = gc.get_objects()
    estimates = [thing.estimate for thing in things if isinstance(thing, nets.Net) and thing.estimate is not None]
    if estimates:
        return f"Out of memory. Training takes {', and '.join(map(str, estimates))}. {memory.ADVICE}"
    loaded = {id(p): p for thing in things if isinstance(thing, torch.nn.Module) for p in thing.parameters()}
    weights = sum(p.numel() * p.element_size() for p in loaded.values())
    return f"Out of memory. Weights alone take {weights / 2**20:.0f} MB. {memory.ADVICE}"


@contextmanager
def _private_stdout() -> Iterator[TextIO]:
    """The real stdout, for the reporter alone; whatever anybody else prints meanwhile goes to stderr."""
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)
    try:
        with os.fdopen(os.dup(real), "w", encoding="utf-8") as private:
            yield private
    finally:
        sys.stdout.flush()
        os.dup2(real, 1)
        os.close(real)


def _die_with_stdin() -> None:
    """The supervisor holds the other end of stdin: when it is gone, however it died, so are we."""
    while os.read(0, 4096):
        pass
    os._exit(75)


def _quiet_libraries() -> None:
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def _peak_memory(resident: Any) -> Any:
    import torch

    if torch.cuda.is_available():
        return lambda: torch.cuda.max_memory_allocated() / 2**20
    return resident


if __name__ == "__main__":
    sys.exit(main())
