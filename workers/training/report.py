"""What a stage tells the world while it runs (torch-free).

Piped, stdout carries one JSON object per logged step and last the summary, and nothing else ever. On a terminal a
progress bar is drawn on stderr instead. Words for people always go to stderr.
"""

import json
import resource
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TextIO

JOURNAL = "steps.jsonl"


class Reporter:
    """Steps, summary and failures of one stage; also carries the wish to stop (`stopping`, set on SIGTERM)."""

    def __init__(self, stage: str, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self.stage = stage
        self.stdout = stdout or sys.stdout
        self.stderr = stderr or sys.stderr
        self.as_json = not self.stdout.isatty()
        self.stopping = False
        self.peak_memory_mb: Callable[[], float] = _peak_resident_mb
        self._started = self._loop_started = time.monotonic()
        self._bar_drawn = False
        self.steps = self.examples = self.tokens = 0
        self._journal: TextIO | None = None
        self.follow: Callable[[int, Mapping[str, float]], None] | None = None  # told of each step as well

    def keep(self, out: Path, *, resume: bool) -> None:
        """Write each step's line to `out` as well: what a reader of stdout had not taken down before it died."""
        out.mkdir(parents=True, exist_ok=True)
        self._journal = (out / JOURNAL).open("a" if resume else "w", encoding="utf-8", buffering=1)

    def ask_to_stop(self) -> None:
        """Stop after the step that is being made; a signal handler may call this."""
        self.stopping = True

    def begin(self) -> None:
        """The work proper starts: throughput is measured from here, `seconds` from the start of the process."""
        self._loop_started = time.monotonic()

    def count(self, examples: int, tokens: int) -> None:
        """Add to the throughput figures; `tokens` are real ones, padding is not counted."""
        self.examples += examples
        self.tokens += tokens

    def step(self, step: int, total_steps: int, metrics: Mapping[str, float]) -> None:
        """Report step `step` (from 1) of `total_steps`."""
        self.steps = step
        if self.follow:
            self.follow(step, metrics)
        if self.as_json:
            values = {name: _rounded(value) for name, value in metrics.items()}
            line = {"step": step, "total_steps": total_steps, "metrics": values}
            if self._journal:
                self._journal.write(json.dumps(line, allow_nan=False) + "\n")
            self._emit(line)
        if self.stderr.isatty():
            self._draw(step, total_steps, metrics)

    def log(self, message: str) -> None:
        """One line for people."""
        self.stderr.write(("\n" if self._bar_drawn else "") + message + "\n")
        self.stderr.flush()
        self._bar_drawn = False

    def summary(self, metrics: Mapping[str, float]) -> dict[str, Any]:
        """Print the last line and return it."""
        seconds = max(time.monotonic() - self._loop_started, 1e-9)
        result = {
            "stage": self.stage,
            "steps": self.steps,
            "seconds": round(time.monotonic() - self._started, 3),
            "examples_per_s": round(self.examples / seconds, 2),
            "tokens_per_s": round(self.tokens / seconds, 1),
            "metrics": {name: _rounded(value) for name, value in metrics.items()},
            "peak_memory_mb": round(self.peak_memory_mb(), 1),
        }
        if self.as_json:
            self._emit(result)
        else:
            self.log(f"{self.stage}: {self.steps} steps in {result['seconds']} s")
            for name, value in metrics.items():
                self.log(f"  {name:<28} {value:.4g}")
        return result

    def error(self, kind: str, message: str, trace: str = "") -> None:
        """Print the failure as the last line of both streams, after the trace of a defect."""
        if self.as_json:
            self._emit({"error": {"kind": kind, "message": message}})
        if trace:
            self.log(trace)
        self.log(message)

    def _emit(self, value: Mapping[str, Any]) -> None:
        self.stdout.write(json.dumps(value, allow_nan=False) + "\n")
        self.stdout.flush()

    def _draw(self, step: int, total: int, metrics: Mapping[str, float]) -> None:
        filled = round(30 * step / max(total, 1))
        shown = "  ".join(f"{name} {value:.3g}" for name, value in list(metrics.items())[:4])
        line = f"{self.stage} [{'#' * filled}{'.' * (30 - filled)}] {step}/{total}  {shown}"
        self.stderr.write("\r" + line[:118].ljust(118))
        self.stderr.flush()
        self._bar_drawn = True


def _rounded(value: float) -> float | None:
    """Seven significant digits; JSON has no NaN, so what is not finite becomes null."""
    return float(f"{value:.7g}") if abs(value) < float("inf") else None


def _peak_resident_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
