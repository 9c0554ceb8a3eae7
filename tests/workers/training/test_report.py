"""What goes to stdout and what to stderr."""

import io
import json

from workers.training.report import Reporter


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_piped_stdout_is_one_json_object_per_step_and_last_the_summary() -> None:
    out, err = io.StringIO(), io.StringIO()
    report = Reporter("dpo", out, err)
    report.count(4, 100)
    report.step(1, 2, {"loss": 0.123456789, "bad": float("nan")})
    report.log("a word for people")
    report.summary({"accuracy": 0.5})
    step, summary = (json.loads(line) for line in out.getvalue().splitlines())
    assert step == {"step": 1, "total_steps": 2, "metrics": {"loss": 0.1234568, "bad": None}}
    assert list(summary) == [
        "stage", "steps", "seconds", "examples_per_s", "tokens_per_s", "metrics", "peak_memory_mb"
    ]  # fmt: skip
    assert (summary["stage"], summary["steps"], summary["metrics"]) == ("dpo", 1, {"accuracy": 0.5})
    assert err.getvalue() == "a word for people\n"


def test_on_a_terminal_a_bar_is_drawn_and_no_json_appears() -> None:
    out, err = _Terminal(), _Terminal()
    report = Reporter("dpo", out, err)
    report.step(1, 2, {"loss": 0.5})
    report.summary({"accuracy": 0.5})
    assert out.getvalue() == ""
    assert "[###############...............] 1/2  loss 0.5" in err.getvalue()
    assert "accuracy" in err.getvalue()


def test_a_failure_is_the_last_line_of_both() -> None:
    out, err = io.StringIO(), io.StringIO()
    Reporter("dpo", out, err).error("data", "It is wrong.")
    assert json.loads(out.getvalue()) == {"error": {"kind": "data", "message": "It is wrong."}}
    assert err.getvalue() == "It is wrong.\n"
