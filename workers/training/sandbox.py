"""Running a program that a model wrote, so that it can harm nothing but itself.

A fresh interpreter (`-I -S`: no site-packages, no environment) in its own session and an empty directory, with no
environment and no stdin, confined by `confined.py`: limits on CPU, memory and output, no processes, no network, no
signals, nothing written. Where `unshare` is permitted it gets its own process tree, `/proc` and (absent) network as
well, so that it cannot read the trainer's environment either. On a wall-clock timeout the whole group is killed.

This protects the machine, not the grading: a program that sets out to fool its tests can (an object that equals
everything passes any `==`). Files that the trainer may read, the program may read; it has no way to send them.
"""

import contextlib
import functools
import json
import math
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from workers.training.errors import DataError

OUTPUT_BYTES = 1 << 20
_INSIDE = Path(__file__).with_name("confined.py")
_NAMESPACES = (
    ("--user", "--map-root-user", "--net", "--ipc", "--pid", "--mount-proc", "--fork", "--kill-child"),
    ("--user", "--map-root-user", "--net", "--ipc", "--pid", "--fork", "--kill-child"),
)
# Each line must fail; one that does not makes the sandbox unusable.
_PROBE = """
import os, socket
def refused(act, *given):
    try:
        act(*given)
    except OSError:
        return True
    return False
assert refused(os.fork)
assert refused(socket.socket)
assert refused(os.kill, os.getpid(), 0)
assert refused(open, "probe", "w")
assert refused(open, os.devnull, "r+b")
assert refused(os.mkdir, "probe")
"""


def passes(program: str, tests: Sequence[str], seconds: float = 5.0, memory_mb: int = 512) -> bool | None:
    """Whether `program` and then each of `tests` run through without an exception.

    None where that is not known: the time was up, or the process could not be started. Refuses on a machine that
    cannot confine programs.
    """
    if not _confines():
        raise DataError(
            "This machine cannot confine programs (a seccomp filter is needed: Linux on x86-64 or 64-bit ARM), "
            "so completions are not run: leave out the code verifier."
        )
    return _run(_wrapper(), program, tests, seconds, memory_mb)


@functools.cache
def _confines() -> bool:
    return _run(_wrapper(), _PROBE, [], 30.0, 512) is True


@functools.cache
def _wrapper() -> tuple[str, ...]:
    """The `unshare` command that works here, the strongest first; empty where none does."""
    found = shutil.which("unshare")
    for options in _NAMESPACES if found else ():
        command = (str(found), *options)
        if subprocess.run([*command, sys.executable, "-I", "-S", "-c", ""], capture_output=True).returncode == 0:
            return command
    return ()


def _run(wrapper: Sequence[str], program: str, tests: Sequence[str], seconds: float, memory_mb: int) -> bool | None:
    token = secrets.token_hex(16)
    job = {
        "program": program,
        "tests": list(tests),
        "token": token,
        "seconds": math.ceil(seconds),
        "memory_mb": memory_mb,
        "output_bytes": OUTPUT_BYTES,
    }
    with tempfile.TemporaryDirectory(prefix="answer-") as empty, tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                [*wrapper, sys.executable, "-I", "-S", str(_INSIDE)],
                cwd=empty,
                env={},
                stdin=subprocess.PIPE,
                stdout=output,  # a file, so that its size limit caps the output and nobody has to read along
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError:
            return None
        try:
            process.communicate(json.dumps(job).encode(), timeout=seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _kill(process)
        if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL, 128 + signal.SIGXCPU, 128 + signal.SIGKILL):
            return None  # the CPU limit, or somebody outside
        output.seek(max(0, os.fstat(output.fileno()).st_size - len(token)))
        return output.read() == token.encode()


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """The whole group, whether or not its leader has ended."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
