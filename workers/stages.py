"""One run, from claim to end: fetch its inputs, execute the training command, store and record what it made.

The database is written here, in the supervisor, never in the child; no time limit and no signal handler raises into a
commit. Each write names the epoch of our claim, so that a supervisor that slept through its lease changes nothing.
"""

import json
import logging
import os
import shutil
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy.exc import OperationalError

from app.campaigns.models import Campaign
from app.checkpoints import lineage
from app.checkpoints.models import CheckpointKind
from app.comparisons import batches
from app.core import artifacts
from app.core.db import transaction
from app.core.errors import TiebreakError
from app.core.settings import settings
from app.rounds import runs
from app.rounds.models import Round, Run, Stage
from workers.child import Child
from workers.training.report import JOURNAL

log = logging.getLogger(__name__)

FLUSH_SECONDS = 0.7
STALL_SECONDS = 1800
INTERRUPTED = 75
HOPELESS = {2, 3, 4}
"""Exit codes of the training command (bad data or model, disk, memory) for which another attempt is pointless."""

OPTIONS = {
    "data": "--data",
    "model": "--model",
    "eval": "--eval",
    "reward_model": "--reward-model",
    "baseline": "--baseline",
    "initial": "--initial",
}


def scratch(run_id: uuid.UUID) -> Path:
    """Where a run works on this machine. It outlives an attempt, so that the next one can resume."""
    return settings().data.resolve() / "work" / str(run_id)


@dataclass
class Outcome:
    exit_code: int
    result: dict[str, Any] = field(default_factory=dict)
    """The summary, or `{"error": …}`."""
    last_words: str = ""
    """The last line on standard error."""
    stalled: bool = False

    @property
    def message(self) -> str:
        said: str = self.result.get("error", {}).get("message") or self.last_words
        if self.stalled:
            return f"The run printed nothing for {STALL_SECONDS // 60} minutes and was stopped."
        if self.exit_code == -9:
            return "The run was killed by the system (signal 9), most often for lack of memory."
        return said or f"The run ended with exit code {self.exit_code}."

    @property
    def kind(self) -> str:
        return self.result.get("error", {}).get("kind") or ("killed" if self.exit_code < 0 else "internal")


def execute(run_id: uuid.UUID, stopping: threading.Event) -> None:
    """Do a queued run if nobody else has it. Returns when it has ended, or has been handed back."""
    with transaction() as session:
        run = runs.claim(session, run_id, f"{socket.gethostname()}:{os.getpid()}")
    if run is None:
        return
    try:
        outcome = _supervise(run, stopping)
        _settle(run, outcome)
    except runs.Fenced:
        log.warning("run %s: our claim (epoch %s) is over; stopped", run.id, run.epoch)
    except Exception as error:  # whatever it was, the lead must see it and the row must not stay running
        log.exception("run %s failed in the supervisor", run.id)
        kind = "disk" if isinstance(error, OSError) and error.errno == 28 else "internal"
        first_line = str(error).partition("\n")[0][:300]
        message = error.message if isinstance(error, TiebreakError) else f"{type(error).__name__}: {first_line}"
        with transaction() as session:
            runs.fail(session, runs.held(session, run.id, run.epoch), kind, message, retry=kind != "disk")


def command(run: Run, work: Path) -> list[str]:
    """The arguments of the training command for this run, its inputs fetched."""
    arguments = [run.stage.value, "--out", str(work / "out"), "--stop-with-parent"]
    for role, option in OPTIONS.items():
        where = run.inputs.get(role)
        if where is None:
            continue
        local = where.removeprefix(lineage.HUB) if where.startswith(lineage.HUB) else None
        arguments += [option, local or str(artifacts.download(where, settings().data.resolve() / "cache"))]
    recipe = work / "recipe.json"
    recipe.write_text(json.dumps(run.recipe))
    arguments += ["--recipe", str(recipe)]
    if run.attempt > 1 or (work / "out").exists():
        arguments.append("--resume")
    return arguments


def journal(work: Path) -> list[dict[str, Any]]:
    """The steps that the training command has logged in this scratch directory; a torn last line is left out."""
    steps: list[dict[str, Any]] = []
    path = work / "out" / JOURNAL
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):
            steps.append(json.loads(line))
    return steps


def _supervise(run: Run, stopping: threading.Event) -> Outcome:
    """Run the child, passing on what it prints and keeping our claim alive. Raises `Fenced` when we lost it."""
    work = scratch(run.id)
    work.mkdir(parents=True, exist_ok=True)
    # What an earlier attempt's child logged and its supervisor did not live to write down; known steps are passed over.
    steps = journal(work)
    child = Child(command(run, work))
    outcome = Outcome(exit_code=0)
    words: list[str] = []
    beat_at, heard_at = 0.0, time.monotonic()
    try:
        while True:
            ended = child.exit_code is not None
            printed = child.lines(0 if ended else FLUSH_SECONDS)
            for source, line in printed:
                _sort(source, line, steps, words, outcome)
            now = time.monotonic()
            heard_at = now if printed else heard_at
            if now - heard_at > STALL_SECONDS:
                outcome.stalled = True
                child.stop()
            if stopping.is_set():
                child.stop()
            if steps or words or now > beat_at:
                if _report(run, steps, words):
                    child.stop()
                beat_at = now + settings().heartbeat_seconds
            if ended:
                outcome.exit_code = child.exit_code or 0
                return outcome
    finally:
        child.kill()


def _sort(source: str, line: str, steps: list[dict[str, Any]], words: list[str], outcome: Outcome) -> None:
    """A line of the child: a step's metrics, the summary, an error, or words for the log."""
    value = None
    if source == "out" and line.startswith("{"):
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            value = None
    if value is None:
        words.append(line)
        outcome.last_words = line
    elif "metrics" in value and "step" in value:
        steps.append(value)
    else:
        outcome.result = value


def _report(run: Run, steps: list[dict[str, Any]], words: list[str]) -> bool:
    """Write and forget what has been collected; True when the run should stop. A lost database is waited for."""
    try:
        with transaction() as session:
            stop = runs.beat(session, run.id, run.epoch)
            if steps or words:
                runs.record(session, runs.held(session, run.id, run.epoch), steps, words)
    except OperationalError:
        log.warning("run %s: the database is away; going on", run.id)
        return False
    steps.clear()
    words.clear()
    return stop


def _settle(run: Run, outcome: Outcome) -> None:
    """Record how the attempt ended."""
    if outcome.exit_code == 0 and "error" not in outcome.result:
        _store(run, outcome)
        shutil.rmtree(scratch(run.id), ignore_errors=True)
        return
    with transaction() as session:
        held = runs.held(session, run.id, run.epoch)
        if held.cancel_requested_at:
            runs.cancelled(session, held)
        elif outcome.exit_code == INTERRUPTED and not outcome.stalled:
            runs.hand_back(session, held)
        else:
            runs.fail(session, held, outcome.kind, outcome.message, retry=outcome.exit_code not in HOPELESS)
        keep = held.state is runs.RunState.queued
    if not keep:
        shutil.rmtree(scratch(run.id), ignore_errors=True)


def _store(run: Run, outcome: Outcome) -> None:
    """Put the outputs into the store under this claim's epoch, then record them, all or nothing."""
    out = scratch(run.id) / "out"
    place = artifacts.url("runs", str(run.id), f"e{run.epoch}")
    if run.stage in (Stage.reward, Stage.dpo, Stage.ppo):
        manifest = artifacts.upload(out / "checkpoint", f"{place}/checkpoint")
        outputs = {"checkpoint": f"{place}/checkpoint"}
    else:
        name = "completions.jsonl" if run.stage is Stage.sample else "report.json"
        with (out / name).open(encoding="utf-8") as lines:
            artifacts.write_text(f"{place}/{name}", lines)
        outputs = {name.split(".")[0]: f"{place}/{name}"}
    with transaction() as session:
        held = runs.held(session, run.id, run.epoch)
        if held.cancel_requested_at:
            runs.cancelled(session, held)
            return
        if "checkpoint" in outputs:
            parent = held.parents.get("model")
            lineage.record_output(
                session,
                campaign_id=held.campaign_id,
                run_id=held.id,
                name=_name(held, session.get(Round, held.round_id) if held.round_id else None),
                kind=CheckpointKind.reward if held.stage is Stage.reward else CheckpointKind.policy,
                uri=outputs["checkpoint"],
                manifest_sha256=manifest,
                parent_id=uuid.UUID(parent) if parent else None,
                metrics=outcome.result.get("metrics", {}),
            )
        elif held.inputs.get("use") == "batch":
            campaign = session.get_one(Campaign, held.campaign_id)
            rows = (json.loads(line) for line in artifacts.read_text(outputs["completions"]))
            made = batches.add_sampled(
                session, campaign, run_id=held.id, checkpoint_id=uuid.UUID(held.parents["model"]), rows=rows
            )
            outputs["comparisons"] = str(made)
        runs.succeed(session, held, outcome.result, outputs)


def _name(run: Run, of: Round | None) -> str:
    what = "reward model" if run.stage is Stage.reward else f"policy ({run.stage.value.upper()})"
    return f"Round {of.number} {what}" if of else what.capitalize()


def sweep() -> None:
    """Remove what ended runs left on this machine's disk (their worker was killed before it could)."""
    work = settings().data.resolve() / "work"
    for path in work.glob("*-*") if work.exists() else []:
        with transaction() as session:
            try:
                run = session.get(Run, uuid.UUID(path.name))
            except ValueError:
                continue
        if run is None or run.state in runs.FINAL:
            shutil.rmtree(path, ignore_errors=True)
