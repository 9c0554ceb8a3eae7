"""`tiebreak up`: the whole platform on one machine, and the children it consists of.

Embedded servers where no URL is set, the schema brought up to date, then web, GPU worker, housekeeping worker and beat
under `app.core.children`, which keeps them running and leaves none behind.
"""

import fcntl
import http.client
import json
import os
import socket
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from app.core import db
from app.core.children import Child, SupervisorError, run
from app.core.embedded import locked, prepare_data, provided
from app.core.errors import TiebreakError
from app.core.settings import settings

LOCK = "up.json"
GPU_GRACE = 30.0
"""A training run is asked for a last checkpoint before it is killed."""


def up(
    *,
    port: int = 8000,
    host: str = "127.0.0.1",
    workers: bool = True,
    prepare: Callable[[], Any] | None = None,
    on_ready: Callable[[str], Any] | None = None,
    once: bool = False,
    reload: bool = False,
) -> None:
    """Run the platform until SIGINT or SIGTERM and return with everything stopped.

    `prepare` runs when the database is there and migrated, before any child; `on_ready` gets the address when /readyz
    answers, in a thread of its own. With `once` the platform ends when `on_ready` does, and what that raised is raised
    here. `port` 0 takes a free one; `reload` is for developers.

    Raises `SupervisorError` or `EmbeddedError`, one sentence each.
    """
    data = prepare_data(settings().data)
    with only_one(data) as tell:
        port = usable_port(host, port)
        url = address(host, port)
        tell(url)
        os.environ["TIEBREAK_DATA"] = str(data)
        os.environ.setdefault("TIEBREAK_URL", url)
        settings.cache_clear()
        with provided():
            db.migrate()
            if prepare:
                prepare()
            run(
                platform(host, port, data, workers, reload),
                data / "logs",
                ready=lambda: answers(f"{url}/readyz"),
                on_ready=lambda: on_ready(url) if on_ready else None,
                once=once,
            )


def platform(host: str, port: int, data: Path, workers: bool = True, reload: bool = False) -> list[Child]:
    """The children, in the order in which they start; they stop in the opposite one."""
    python = (sys.executable, "-m")
    proxies = ("--forwarded-allow-ips", settings().trusted_proxies)
    serve = ("--host", host, "--port", str(port), "--no-access-log", "--no-server-header", *proxies)
    web = (*python, "uvicorn", "app.main:create_app", "--factory", *serve, "--timeout-graceful-shutdown", "5")
    quiet = ("-l", "INFO", "--without-gossip", "--without-mingle")
    gpu = (*python, "celery", "-A", "workers.gpu", "worker", "-Q", "gpu", "--pool", "solo", "-n", "gpu@%h", *quiet)
    chores = ("-Q", "housekeeping", "-c", "2", "-n", "housekeeping@%h")
    housekeeping = (*python, "celery", "-A", "workers.housekeeping", "worker", *chores, *quiet)
    schedule = ("--schedule", str(data / "run" / "beat-schedule"), "--pidfile", "")
    beat = (*python, "celery", "-A", "workers.housekeeping", "beat", *schedule, "-l", "INFO")
    watched = ("--reload", "--reload-dir", "app", "--reload-dir", "templates") if reload else ()
    children = [Child("web", (*web, *watched))]
    if workers:
        children += [Child("gpu", gpu, grace=GPU_GRACE), Child("housekeeping", housekeeping), Child("beat", beat)]
    return children


@contextmanager
def only_one(data: Path) -> Iterator[Callable[[str], None]]:
    """Hold the data directory for one `up`; raises `SupervisorError` where another one has it.

    Gives a function to write down the address for `running`.
    """
    handle = os.open(data / "run" / LOCK, os.O_RDWR | os.O_CREAT, 0o600)

    def tell(url: str) -> None:
        os.ftruncate(handle, 0)
        os.pwrite(handle, json.dumps({"pid": os.getpid(), "url": url}).encode(), 0)

    try:
        if not locked(handle, fcntl.LOCK_EX):
            raise SupervisorError(
                f"Tiebreak is already running on {data} (process {read_lock(handle).get('pid', 'unknown')}): stop that "
                "one, or choose another directory with --data."
            )
        tell("")
        yield tell
    finally:
        os.close(handle)


def read_lock(handle: int) -> dict[str, Any]:
    try:
        return dict(json.loads(os.pread(handle, 1024, 0)))
    except ValueError:
        return {}  # just being written


def running(patience: float = 90.0) -> str | None:
    """The address of the `up` that has this data directory, once it is ready; None where there is none."""
    try:
        handle = os.open(settings().data / "run" / LOCK, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        deadline = time.monotonic() + patience
        while not locked(handle, fcntl.LOCK_EX):
            url = str(read_lock(handle).get("url", ""))
            if url and answers(f"{url}/readyz"):
                return url
            if time.monotonic() > deadline:
                raise SupervisorError(
                    f"Tiebreak is running on {settings().data} but does not answer: see the logs there, or stop it."
                )
            time.sleep(0.2)
    finally:
        os.close(handle)
    return None


def usable_port(host: str, port: int) -> int:
    """The port, or a free one for 0; raises `SupervisorError` where nobody can listen there."""
    try:
        if not 0 <= port < 1 << 16:
            raise OverflowError("a port is a number up to 65535")  # getaddrinfo would take it modulo 65536
        family, kind, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
            return int(probe.getsockname()[1])
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SupervisorError(
            f"The web server cannot listen on {host} port {port} ({reason}): free it, or choose another with --port."
        ) from error


def address(host: str, port: int) -> str:
    """Where a browser on this machine finds a server that listens on `host`."""
    local = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"


def answers(url: str) -> bool:
    """Whether the platform says that it is ready."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never ask a proxy for this machine
    try:
        with opener.open(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (OSError, http.client.HTTPException):
        return False


def main() -> None:
    """`make dev`: everything, with a web process that starts again when a file changes."""
    try:
        up(port=int(sys.argv[1]), reload=True, on_ready=lambda url: sys.stdout.write(f"{url}\n"))
    except TiebreakError as error:
        sys.exit(f"tiebreak: {error.message}")


if __name__ == "__main__":
    main()
