"""Children that crash, hang and leave grandchildren, and supervisors that are killed. Real processes throughout."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from app.core import leash

ROOT = Path(__file__).resolve().parents[2]
linux = pytest.mark.skipif(sys.platform != "linux", reason="the leash is Linux's")

SLEEPER = "import time, pathlib, os; pathlib.Path('{0}').write_text(str(os.getpid())); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, '-c', sys.argv[1]], start_new_session=True)
""" + SLEEPER.replace("{0}", "{1}")
SUPERVISOR = """
import sys, pathlib
from app.core.children import Child, SupervisorError, run
children = [Child(name, [sys.executable, "-c", *code], grace=0.5) for name, *code in {children!r}]
try:
    run(children, pathlib.Path("."), on_ready=lambda: print("ready", flush=True), ready=lambda: {ready}, once={once})
except SupervisorError as error:
    sys.exit(error.message)
print("stopped")
"""


@contextmanager
def supervised(
    here: Path, *children: tuple[str, ...], ready: str = "True", once: bool = False
) -> Iterator[psutil.Popen]:
    """A supervisor in a process of its own, with its pid files and logs in `here`; stopped when the block ends."""
    code = textwrap.dedent(SUPERVISOR).format(children=list(children), ready=ready, once=once)
    process = psutil.Popen(
        [sys.executable, "-c", code],
        cwd=here,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate() if process.poll() is None else None
        process.wait(60)


def pid(file: Path, other_than: int = 0) -> int:
    """The pid in the file, once it is there and not the old one."""
    deadline = time.monotonic() + 60
    while True:
        if file.exists() and (text := file.read_text()) and int(text) != other_than:
            return int(text)
        assert time.monotonic() < deadline, f"nothing new in {file.name}"
        time.sleep(0.02)


def gone(number: int, seconds: float = 20) -> bool:
    try:
        psutil.Process(number).wait(seconds)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


def test_a_killed_child_comes_back_and_all_stop_on_a_signal(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    with supervised(tmp_path, ("a", SLEEPER.format(a)), ("b", SLEEPER.format(b))) as process:
        first = pid(a)
        os.kill(first, signal.SIGKILL)
        second = pid(a, other_than=first)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "ready\nstopped\n")
    assert "a ended (killed by SIGKILL); starting it again in 0.5 s" in err
    assert gone(second) and gone(pid(b))


def test_a_child_that_ignores_the_signal_is_killed_after_its_grace(tmp_path: Path) -> None:
    a = tmp_path / "a"
    with supervised(tmp_path, ("a", STUBBORN.format(a))) as process:
        child = pid(a)
        asked = time.monotonic()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert 0.4 < time.monotonic() - asked < 30 and gone(child)


@linux
def test_no_grandchild_outlives_a_killed_child(tmp_path: Path) -> None:
    """A grandchild in a session of its own, as a training run is, when its worker is killed with -9."""
    a, grand = tmp_path / "a", tmp_path / "grand"
    with supervised(tmp_path, ("a", PARENT.format("", a), SLEEPER.format(grand))):
        orphan, worker = pid(grand), pid(a)
        os.kill(worker, signal.SIGKILL)
        assert gone(orphan)
        pid(a, other_than=worker)
        second = pid(grand, other_than=orphan)
    assert gone(second), "nor does one outlive the supervisor's own end"


@linux
def test_no_child_outlives_a_killed_supervisor(tmp_path: Path) -> None:
    a = tmp_path / "a"
    with supervised(tmp_path, ("a", SLEEPER.format(a))) as process:
        child = pid(a)
        process.kill()
        assert gone(child)


def test_a_child_that_never_starts_ends_the_run_with_its_last_words(tmp_path: Path) -> None:
    with supervised(tmp_path, ("a", "raise SystemExit('no such model')"), ready="False") as process:
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.splitlines()[-1] == "a cannot start: no such model (see a.log; mend that and try again)."


def test_errors_in_a_log_reach_the_terminal_and_nothing_else_does(tmp_path: Path) -> None:
    code = "print('all is well'); print('ERROR: \\x1b[2Jit broke'); " + SLEEPER.format(tmp_path / "a")
    with supervised(tmp_path, ("a", code)) as process:
        pid(tmp_path / "a")
        time.sleep(0.4)
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert err == "a | ERROR: ?[2Jit broke\n"
    assert "all is well" in (tmp_path / "a.log").read_text()


def test_a_log_never_takes_the_disk(tmp_path: Path) -> None:
    """12 MB in one go: what is over the limit goes into the one old log."""
    code = "print('x' * 1000000, flush=True)\n" * 12 + SLEEPER.format(tmp_path / "a")
    with supervised(tmp_path, ("a", code)):
        pid(tmp_path / "a")
        deadline = time.monotonic() + 60
        while not (tmp_path / "a.log.1").exists() or (tmp_path / "a.log").stat().st_size > 0:
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_with_once_the_run_ends_when_the_errand_does(tmp_path: Path) -> None:
    with supervised(tmp_path, ("a", SLEEPER.format(tmp_path / "a")), once=True) as process:
        out, _ = process.communicate(timeout=60)
    assert out == "ready\nstopped\n"


def test_a_leashed_program_that_does_not_exist_is_named() -> None:
    done = subprocess.run(leash.command(["/no/such/program"]), capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == "cannot run /no/such/program: No such file or directory\n"
