"""`tiebreak train`: the training command line under the name that people know, on a terminal and in a pipe."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from app.core.db import ROOT
from workers.training.__main__ import _parser

TIEBREAK = [sys.executable, "-c", "from app.cli import main; main()", "train"]
TINY = ["tiny", "--set", "hidden_size=16", "--set", "layers=1", "--set", "vocab_size=280", "--set", "batch_size=2"]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    rows = [{"prompt": [{"role": "user", "content": "say a"}], "completion": "aa"}] * 4
    path = tmp_path / "demonstrations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*TIEBREAK, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120, check=False)


def test_piped_it_prints_json_lines_and_last_the_summary(tmp_path: Path, data: Path) -> None:
    done = run(*TINY, "--set", "steps=2", "--data", data, "--out", tmp_path / "out")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stderr
    assert lines[0]["step"] == 2 and lines[-1]["stage"] == "tiny" and lines[-1]["steps"] == 2


def test_a_bad_record_says_file_line_and_field(tmp_path: Path, data: Path) -> None:
    with data.open("a") as file:
        file.write('{"prompt": [{"role": "user", "content": "say a"}]}\n')
    done = run(*TINY, "--set", "steps=1", "--data", data, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("demonstrations.jsonl, line 5, field 'completion': is missing")
    assert json.loads(done.stdout.splitlines()[-1])["error"]["kind"] == "data"


def test_every_option_of_the_training_command_line_is_passed_through() -> None:
    """Its help is the training library's own, and an option that only it knows is refused by it alone."""
    shown = run("--help").stderr
    for action in _parser()._actions:
        assert all(name in shown for name in action.option_strings), action.option_strings
    wrong = run("dpo", "--no-such-option")
    assert wrong.returncode == 2 and json.loads(wrong.stdout)["error"]["kind"] == "data"


def test_on_a_terminal_it_draws_a_bar_and_ctrl_c_stops_the_stage_itself(tmp_path: Path, data: Path) -> None:
    ours, theirs = pty.openpty()
    arguments = [*TINY, "--set", "steps=100000", "--data", str(data), "--out", str(tmp_path / "out")]
    child = subprocess.Popen([*TIEBREAK, *arguments], stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT)
    os.close(theirs)
    seen = b""
    while b"[#" not in seen and b"[." not in seen:
        seen += os.read(ours, 4096)
    child.send_signal(signal.SIGINT)
    try:
        while chunk := os.read(ours, 4096):
            seen += chunk
    except OSError:  # a terminal that nobody writes to any more ends like this on Linux
        pass
    os.close(ours)
    assert child.wait(timeout=60) == 75
    text = seen.decode()
    assert "\rtiny [" in text and "/100000  loss" in text and "{" not in text
