"""A training command as a child process that we own.

In its own process group, so that a cancel reaches everything it started; its standard input is a pipe whose end tells
it that we died, so that `kill -9` of the worker leaves no orphan at work.
"""

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
GRACE_SECONDS = 25
"""From SIGTERM (finish the step, write the state) to SIGKILL. Below the usual 30 s of whoever stops us."""


class Child:
    """Runs `python -m workers.training …` and hands out its lines as they come."""

    def __init__(self, arguments: list[str]) -> None:
        self._lines: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "workers.training", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=ROOT,
            start_new_session=True,
            env={k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "REDIS_URL")},
        )
        assert self._process.stdout and self._process.stderr
        self._readers = [
            threading.Thread(target=self._read, args=(name, pipe), daemon=True)
            for name, pipe in (("out", self._process.stdout), ("err", self._process.stderr))
        ]
        for reader in self._readers:
            reader.start()
        self._stop_at: float | None = None

    def _read(self, name: str, pipe: IO[bytes]) -> None:
        for raw in pipe:
            line = raw.decode("utf-8", "replace").replace("\x00", "").rstrip()
            if line:
                self._lines.put((name, line))

    def lines(self, seconds: float) -> list[tuple[str, str]]:
        """What it printed, as (`out` or `err`, line); waits up to `seconds` for the child to end."""
        if self._stop_at and time.monotonic() > self._stop_at:
            self.kill()
        try:
            self._process.wait(timeout=seconds)
            for reader in self._readers:
                reader.join(timeout=5)
        except subprocess.TimeoutExpired:
            pass
        found = []
        while not self._lines.empty():
            found.append(self._lines.get())
        return found

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative for the signal that ended it."""
        return self._process.poll()

    def stop(self) -> None:
        """Ask it to write its state and end; after the grace it is killed."""
        if self._stop_at is None and self.exit_code is None:
            self._stop_at = time.monotonic() + GRACE_SECONDS
            self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it and everything it started, now; returns when it is gone."""
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return
