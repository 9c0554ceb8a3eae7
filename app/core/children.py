"""Child processes, kept running: what `tiebreak up` is made of, without a word of what the children are.

`run` starts children, starts a crashed one again (at once, then ever more slowly), and on SIGINT or SIGTERM stops
them all in reverse order. Nothing is left behind: each child leads a process group that is killed with it, is on a
leash (`app.core.leash`) that ends it when this process is killed, and what a dead child leaves behind comes to us
(Linux) and is killed too. Each child's output goes to its own log file; only errors reach the terminal.

One thread does all of it: the leash ties a child to the thread that started it.
"""

import contextlib
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from app.core import leash
from app.core.embedded import LOG_LIMIT, rotate
from app.core.errors import TiebreakError

log = logging.getLogger(__name__)

LOOK_EVERY = 0.1
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
STEADY_AFTER = 20.0
"""A child that has lived this long is started again at once when it dies; before that, ever more slowly."""
STILLBORN = 3
"""So many deaths of the first child before it was ever ready, and it is not going to be."""
ERROR_LINE = re.compile(r"\b(ERROR|CRITICAL|FATAL)\b|^\w[\w.]*(Error|Exception): ")
LINES_PER_LOOK = 5
MARK = "TIEBREAK_SUPERVISOR"
"""In the environment of every child, and so of every orphan, the pid of its supervisor."""


class SupervisorError(TiebreakError):
    """The platform cannot start. The message is one sentence: what happened, why, what to do."""

    status = 503
    title = "Cannot start"


@dataclass(frozen=True)
class Child:
    """One process to keep running."""

    name: str
    argv: Sequence[str]
    env: Mapping[str, str] = field(default_factory=dict)
    grace: float = 10.0
    """Seconds from SIGTERM to SIGKILL."""


class Running:
    """A child, its process of the moment, and how often it has died."""

    def __init__(self, child: Child, logs: Path, say: Callable[[str], None]) -> None:
        self.child, self.say = child, say
        self.log = logs / f"{child.name}.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.deaths = 0
        self.started = self.due = time.monotonic()
        self.read = 0

    def start(self) -> None:
        rotate(self.log)
        self.log.touch(mode=0o600)
        self.read = self.log.stat().st_size
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                leash.command(self.child.argv, parent=os.getpid()),
                env={**os.environ, "PYTHONUNBUFFERED": "1", **self.child.env, MARK: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.started = time.monotonic()

    def look(self) -> bool:
        """Start the child if it is due; notice its death, say when it is tried again, and return whether it died."""
        if self.process is None:
            if time.monotonic() >= self.due:
                self.start()
            return False
        self.tell_errors()
        status = self.process.poll()
        if status is None:
            return False
        self.kill()
        self.deaths = 1 if time.monotonic() - self.started > STEADY_AFTER else self.deaths + 1
        pause = min(FIRST_PAUSE * 2 ** (self.deaths - 1), LONGEST_PAUSE)
        self.process, self.due = None, time.monotonic() + pause
        self.say(f"{self.child.name} ended ({describe(status)}); starting it again in {pause:g} s")
        return True

    def tell_errors(self) -> None:
        """Repeat on the terminal what is an error in the log, a few lines at a time."""
        with self.log.open("rb") as file:
            file.seek(self.read)
            fresh = file.read(1 << 20)
        whole = fresh[: fresh.rfind(b"\n") + 1]
        self.read += len(whole)
        errors = [line for line in whole.decode(errors="replace").splitlines() if ERROR_LINE.search(line)]
        for line in errors[:LINES_PER_LOOK]:
            self.say(f"{self.child.name} | {printable(line)[:300]}")
        if len(errors) > LINES_PER_LOOK:
            self.say(f"{self.child.name} | {len(errors) - LINES_PER_LOOK} more in {self.log}")
        if self.read > LOG_LIMIT:  # the child goes on appending, to a file that is empty again
            shutil.copyfile(self.log, self.log.with_suffix(".log.1"))
            os.truncate(self.log, 0)
            self.read = 0

    def last_words(self) -> str:
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return printable(lines[-1].strip()) if lines else "it said nothing"

    def ask_to_stop(self) -> None:
        if self.process and self.process.poll() is None:
            self.process.terminate()

    def kill(self) -> None:
        """Kill the child and whatever shares its process group."""
        if self.process:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def run(
    children: Sequence[Child],
    logs: Path,
    *,
    ready: Callable[[], bool] = lambda: True,
    on_ready: Callable[[], Any] | None = None,
    once: bool = False,
    say: Callable[[str], None] = lambda line: print(line, file=sys.stderr, flush=True),  # noqa: T201
    ready_within: float = 90.0,
) -> None:
    """Run the children until SIGINT or SIGTERM, then return with none of them left.

    The first starts alone, with the whole machine to itself, and the others once `ready()` is true. Then `on_ready`
    is called in a thread of its own; with `once` its end is the end of the run, and what it raises is raised here.
    Raises `SupervisorError` where the first child does not get ready.
    """
    family = [Running(child, logs, say) for child in children]
    errand: Errand | None = None
    deadline = time.monotonic() + ready_within
    with signals() as stopping, adopting():
        try:
            while not stopping.is_set() and not (once and errand and errand.done):
                awake = family if errand else family[:1]
                if [member for member in awake if member.look()]:
                    bury_orphans(family)
                if errand is None:
                    give_up_on_stillborn(family[0], deadline)
                    if ready():
                        errand = Errand(on_ready)
                stopping.wait(LOOK_EVERY)
        finally:
            stop(family, stopping)
            bury_orphans(family, patience=2.0)
    if errand and errand.done and errand.error:
        raise errand.error


class Errand:
    """A call in a thread of its own, so that the children are looked after meanwhile."""

    def __init__(self, call: Callable[[], Any] | None) -> None:
        self.call, self.done = call, False
        self.error: BaseException | None = None
        threading.Thread(target=self.go, name="on_ready", daemon=True).start()

    def go(self) -> None:
        try:
            if self.call:
                self.call()
        except BaseException as error:  # handed to the thread that asked
            self.error = error
            log.debug("the errand failed", exc_info=True)
        self.done = True


def give_up_on_stillborn(member: Running, deadline: float) -> None:
    """Before the platform was ever ready: raise rather than try for ever."""
    if member.deaths >= STILLBORN:
        raise SupervisorError(
            f"{member.child.name} cannot start: {member.last_words()} (see {member.log}; mend that and try again)."
        )
    if time.monotonic() > deadline:
        raise SupervisorError(f"{member.child.name} did not get ready in time: see {member.log} and try again.")


def stop(family: Sequence[Running], impatient: threading.Event) -> None:
    """Ask the last one first; kill whoever outlives its grace, and all at once on a second signal."""
    impatient.clear()
    asked = time.monotonic()
    for member in reversed(family):
        member.ask_to_stop()
    for member in reversed(family):
        while member.process and member.process.poll() is None:
            if impatient.is_set() or time.monotonic() - asked > member.child.grace:
                break
            time.sleep(0.02)
        member.kill()
        if member.process:
            member.tell_errors()


@contextlib.contextmanager
def signals() -> Iterator[threading.Event]:
    """An event that SIGINT, SIGTERM and a closed terminal set, instead of ending this process half-way."""
    event = threading.Event()
    watched = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda *_: event.set()) for number in watched]
    try:
        yield event
    finally:
        for number, handler in zip(watched, before, strict=True):
            signal.signal(number, handler)


@contextlib.contextmanager
def adopting() -> Iterator[None]:
    """Have orphaned grandchildren come to us rather than to init; Linux only."""
    linux = sys.platform == "linux"
    if linux:
        leash.prctl(leash.PR_SET_CHILD_SUBREAPER, 1)
    try:
        yield
    finally:
        if linux:
            leash.prctl(leash.PR_SET_CHILD_SUBREAPER, 0)


def orphans(family: Sequence[Running]) -> list[psutil.Process]:
    """Processes of ours that descend from a dead child, such as the training run of a killed worker."""
    known = {member.process.pid for member in family if member.process}
    found = []
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.Error):
            if process.pid not in known and process.environ().get(MARK) == str(os.getpid()):
                found.append(process)
    return found


def bury_orphans(family: Sequence[Running], patience: float = 0.0) -> None:
    """Kill the orphans, and those that their death makes."""
    deadline = time.monotonic() + patience
    while remaining := orphans(family):
        for process in remaining:
            with contextlib.suppress(psutil.Error):
                process.kill()
                process.wait(1)
        if time.monotonic() >= deadline:
            return


def describe(status: int) -> str:
    """How a process ended, in words."""
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"exit status {status}"


def printable(line: str) -> str:
    """A log line that cannot play tricks on the terminal."""
    return "".join(character if character.isprintable() else "?" for character in line)
