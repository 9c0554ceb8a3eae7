"""Hostile programs: each is stopped, quickly, and nothing outside notices."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from workers.training import sandbox
from workers.training.errors import DataError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are confined on Linux only")


def passes(program: str, *tests: str, seconds: float = 20.0) -> bool | None:
    return sandbox.passes(program, tests, seconds=seconds, memory_mb=256)


def test_a_program_passes_when_it_and_all_tests_run_through() -> None:
    assert passes("import math, json, re, random\ndef f(x): return x + 1", "assert f(1) == 2") is True
    assert passes("def f(x): return x + 2", "assert f(1) == 2") is False
    assert passes("def f(:") is False
    assert passes("if __name__ == '__main__': raise SystemExit") is True


@pytest.mark.parametrize(
    "escape", ["import sys; sys.exit(0)", "import os; os._exit(0)", "print('ok'); raise SystemExit"]
)
def test_leaving_before_the_tests_is_not_passing(escape: str) -> None:
    assert passes(escape, "assert True") is False


@pytest.mark.parametrize(
    "program", ["while True: pass", "import time; time.sleep(99)", "import signal; signal.pause()"]
)
def test_what_does_not_end_is_unscorable_and_gone(program: str) -> None:
    started = time.monotonic()
    assert passes(program, seconds=1.0) is None
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    "program",
    [
        "import os\nwhile True: os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "import threading; threading.Thread(target=print).start()",
        "x = bytearray(10**9)",
        "import sys\nwhile True: sys.stdout.write('x' * 100_000)",
        "import os; os.kill(os.getppid(), 9)",
        "import os; os.kill(-1, 9)",
        "import socket; socket.create_connection(('127.0.0.1', 80))",
        "open('here', 'w')",
        "import os; os.remove('/etc/hostname')",
        "import os; os.chmod('/tmp', 0)",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
        "import ctypes; ctypes.CDLL(None).unshare(0x10000000) and 1 / 0",
        "input()",
        "def f(): f()\nf()",
        "import ctypes; ctypes.string_at(0)",
    ],
)
def test_hostile_programs_fail(program: str) -> None:
    assert passes(program) is False


def test_files_outside_stay_as_they_are(tmp_path: Path) -> None:
    """Not even root may write: tests run as root in many a container."""
    tmp_path.chmod(0o777)
    victim = tmp_path / "victim"
    victim.write_text("whole")
    victim.chmod(0o666)
    for act in ("open(p, 'w')", "open(p, 'a')", "open(p, 'r+')", "os.truncate(p, 0)", "os.remove(p)",
                "os.rename(p, p + '2')", "os.link(p, p + '2')", "os.symlink(p, p + '2')", "os.mkdir(p + '2')",
                "os.utime(p)", "os.nice(0) or os.setpriority(0, 0, 5)",
                "os.open(p, os.O_RDONLY | os.O_TRUNC)"):  # fmt: skip
        program = f"import os; p = {str(victim)!r}\ntry: {act}\nexcept PermissionError: pass\nelse: 1 / 0"
        assert passes(program) is True, act
    assert victim.read_text() == "whole" and [p.name for p in tmp_path.iterdir()] == ["victim"]


def test_no_secret_of_the_environment_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_OF_MINE", "hush")
    assert passes("import os; assert set(os.environ) <= {'LC_CTYPE'}") is True
    if not sandbox._wrapper():
        pytest.skip("no namespaces here: /proc of other processes can be read")
    looking = (
        "import glob\nfor name in glob.glob('/proc/[0-9]*/environ'):\n"
        "    assert b'TOKEN_OF_MINE' not in open(name, 'rb').read()"
    )
    assert passes(looking) is True


def test_it_starts_in_an_empty_directory_that_is_removed() -> None:
    assert passes("import os; assert os.listdir() == [] and os.getcwd().split('/')[-1].startswith('answer-')") is True
    assert passes("import sys; assert sys.stdin.read() == ''") is True


def test_without_namespaces_it_holds_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_wrapper", lambda: ())
    assert passes("x = 1", "assert x == 1") is True
    for program in (
        "import os; os.kill(os.getppid(), 9)",
        "import os\nwhile True: os.fork()",
        "import socket; socket.socket()",
    ):
        assert passes(program) is False
    assert passes("while True: pass", seconds=1.0) is None


def test_where_programs_cannot_be_confined_they_are_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_confines", lambda: False)
    with pytest.raises(DataError, match="cannot confine programs"):
        passes("x = 1")


def test_an_interpreter_that_does_not_start_makes_a_completion_unscorable(monkeypatch: pytest.MonkeyPatch) -> None:
    assert passes("x = 1") is True  # the probe has been made
    monkeypatch.setattr(sandbox, "_wrapper", lambda: ("/no/such/program",))
    assert passes("x = 1") is None


def test_the_inside_needs_nothing_but_the_standard_library() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(sandbox._INSIDE)], input=b"{}", capture_output=True, env={}, cwd=os.sep
    )
    assert b"KeyError" in done.stderr
