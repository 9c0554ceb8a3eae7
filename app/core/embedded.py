"""The embedded servers: started by whoever needs them first, stopped when the last one leaves.

    with services(settings()) as urls:      # embedded only where DATABASE_URL or REDIS_URL is unset
        ...

Any number of processes may do this at once on one data directory: `tiebreak up`, a `tiebreak user create` beside it,
every worker of a test run. Each holds a shared lock while it uses a server; `app.core.keeper`, the server's parent,
ends with the last of them. For each server `data/run/` has

    NAME.users   shared lock: one user each;  exclusive lock: being stopped, newcomers wait
    NAME.start   exclusive lock: somebody is looking whether it runs, and starts it if not
    NAME.json    exclusive lock for the keeper's life; holds its pid and the server's URL (mode 0600)

All locks are flock(2): the kernel drops them however a process ends, so there is nothing stale to mistake for life.
"""

import errno
import fcntl
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from app.core import keeper
from app.core.servers import EmbeddedError, Postgres, Valkey, because
from app.core.settings import Settings, settings

log = logging.getLogger(__name__)

START_TIMEOUT = 120.0
"""Recovery after a crash replays the write-ahead log, which takes its time on a slow disk."""
STOP_GRACE = 15.0
FREE_BYTES_FIRST, FREE_BYTES_LATER = 500 << 20, 100 << 20
LOG_LIMIT = 10 << 20

Server = Postgres | Valkey


@dataclass(frozen=True)
class Urls:
    """Where the servers are, embedded or not."""

    database_url: str
    redis_url: str

    def environment(self) -> dict[str, str]:
        """What a child process needs to find them."""
        return {"DATABASE_URL": self.database_url, "REDIS_URL": self.redis_url}


@contextmanager
def services(given: Settings) -> Iterator[Urls]:
    """Have both servers for the length of the block; raises `EmbeddedError`, one sentence, where that cannot be."""
    with ExitStack() as stack:
        urls = []
        for url, kind in ((given.database_url, Postgres), (given.redis_url, Valkey)):
            if not url:
                data = prepare_data(given.data)
                url = stack.enter_context(serving(kind(data), data / "run"))
            urls.append(url)
        yield Urls(*urls)


@contextmanager
def provided() -> Iterator[Urls]:
    """`services` for this whole process: `settings()` and every child see the URLs from here on."""
    with services(settings()) as urls:
        os.environ.update(urls.environment())
        settings.cache_clear()
        yield urls


def prepare_data(path: Path) -> Path:
    """Make the data directory; a read-only or full disk is told in one sentence before anything is half done."""
    data = path.expanduser().absolute()
    try:
        if not data.exists():
            data.mkdir(parents=True, mode=0o711 if os.geteuid() == 0 else 0o700)
        for part in ("run", "logs"):
            (data / part).mkdir(exist_ok=True, mode=0o711)
        data = data.resolve()
        if not os.access(data, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise EmbeddedError(
            f"The data directory {data} cannot be written ({error.strerror}): choose another with --data or "
            "TIEBREAK_DATA, or mend its permissions."
        ) from error
    needed = FREE_BYTES_LATER if (data / "postgres").exists() else FREE_BYTES_FIRST
    free = shutil.disk_usage(data).free
    if free < needed:
        raise EmbeddedError(
            f"The disk that holds {data} has {free >> 20} MB free and {needed >> 20} MB are needed: free some space, "
            "or choose another place with --data or TIEBREAK_DATA."
        )
    return data


@contextmanager
def serving(server: Server, run: Path) -> Iterator[str]:
    """Use one server: start it if nobody has, stop it if nobody else is left."""
    users = os.open(run / f"{server.key}.users", os.O_RDWR | os.O_CREAT, 0o600)
    process: subprocess.Popen[bytes] | None = None
    try:
        what = f"{server.name} is still being stopped by another process"
        wait_for(lambda: locked(users, fcntl.LOCK_SH), STOP_GRACE + 10, what)
        with starting(run / f"{server.key}.start", server.name):
            try:
                process = join(server, run)
            except OSError as error:
                raise EmbeddedError(f"{server.name} cannot be started: {because(str(error))}.") from error
        yield server.url
    finally:
        leave(server, run, users)
        os.close(users)
        if process:
            with suppress(subprocess.TimeoutExpired):
                process.wait(0 if keeper_of(run / f"{server.key}.json") else 5)


def join(server: Server, run: Path) -> subprocess.Popen[bytes] | None:
    """Attach to the running server, or start it; returns the keeper if it is our child."""
    state = run / f"{server.key}.json"
    if keeper_of(state):
        what = f"{server.name} is running but does not answer"
        wait_for(lambda: server.ready() or not keeper_of(state), START_TIMEOUT, what)
        if keeper_of(state):
            return None
    process, said = start(server, run)
    if process is None and server.repair(said):
        log.warning("%s could not read its files; they were set aside and it starts empty", server.name)
        process, said = start(server, run)
    if process is None:
        raise EmbeddedError(f"{server.name} did not start: {because(said)} (see {log_of(server, run)}).")
    return process


def start(server: Server, run: Path) -> tuple[subprocess.Popen[bytes] | None, str]:
    """Start the server and wait until it answers; gives its keeper, or None and what it said before it gave up."""
    server.prepare()
    process, offset = launch(server, run)
    what = f"{server.name} did not get ready (see {log_of(server, run)})"
    wait_for(lambda: process.poll() is not None or server.ready(), START_TIMEOUT, what)
    if process.poll() is None:
        return process, ""
    return None, log_of(server, run).read_bytes()[offset:].decode(errors="replace")


def log_of(server: Server, run: Path) -> Path:
    return run.parent / "logs" / f"{server.key}.log"


def launch(server: Server, run: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start the keeper, in a session of its own so that Ctrl-C reaches us alone; also says where its log begins."""
    log_file = log_of(server, run)
    rotate(log_file)
    log_file.touch(mode=0o600)
    spec = {
        "argv": server.argv(),
        "env": server.environment(),
        "url": server.url,
        "log": str(log_file),
        "users": str(run / f"{server.key}.users"),
        "state": str(run / f"{server.key}.json"),
        "stop_signal": int(server.stop_signal),
        "grace": STOP_GRACE,
    }
    offset = log_file.stat().st_size
    with log_file.open("ab") as output:
        argv = [sys.executable, "-I", "-S", keeper.__file__]
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=output, stderr=output, cwd="/", start_new_session=True
        )
    assert process.stdin
    with process.stdin:
        process.stdin.write(json.dumps(spec).encode())
    return process, offset


def leave(server: Server, run: Path, users: int) -> None:
    """Give up our share. If it was the last, stop the server and wait until it is down."""
    if not locked(users, fcntl.LOCK_EX):
        return
    state = run / f"{server.key}.json"
    pid = keeper_of(state)
    if not pid:
        return
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    try:
        wait_for(lambda: not keeper_of(state), STOP_GRACE + 5, "")
    except EmbeddedError:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)  # the server is on its leash and goes too


def keeper_of(state: Path) -> int:
    """The pid of the living keeper, 0 when there is none."""
    try:
        handle = os.open(state, os.O_RDWR)
    except FileNotFoundError:
        return 0
    try:
        if locked(handle, fcntl.LOCK_EX):
            return 0
        return int(json.loads(os.read(handle, 4096))["pid"])
    except ValueError:
        return 0  # it has only just begun to write; the caller asks again
    finally:
        os.close(handle)


def locked(handle: int, how: int) -> bool:
    """Try to take a lock; False when another process holds it."""
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def starting(path: Path, name: str) -> Iterator[None]:
    """One starter at a time."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        what = f"{name} is still being started by another process"
        wait_for(lambda: locked(handle, fcntl.LOCK_EX), START_TIMEOUT + 10, what)
        yield
    finally:
        os.close(handle)


def wait_for(happened: Callable[[], bool], seconds: float, what: str) -> None:
    """Look again and again; raises `EmbeddedError` saying `what` has not changed."""
    deadline, pause = time.monotonic() + seconds, 0.01
    while not happened():
        if time.monotonic() > deadline:
            raise EmbeddedError(f"{what} after {seconds:.0f} s: end the processes that use it and try again.")
        time.sleep(pause)
        pause = min(pause * 1.5, 0.25)


def rotate(log_file: Path) -> None:
    """Keep one old log, so that a log never takes the disk."""
    if log_file.exists() and log_file.stat().st_size > LOG_LIMIT:
        log_file.replace(log_file.with_suffix(".log.1"))
