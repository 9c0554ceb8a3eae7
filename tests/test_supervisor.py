"""`up` as a process: one per data directory, honest about ports, and gone without a trace."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import psutil
import pytest

from app import supervisor
from app.core.children import SupervisorError
from app.core.settings import settings

ROOT = Path(__file__).resolve().parents[1]
UP = """
import sys
from app import supervisor
from app.core.children import Child
from app.core.errors import TiebreakError
supervisor.platform = lambda host, port, *_: [Child("web", [sys.executable, "-c", {web!r}, str(port)])]
try:
    supervisor.up(port={port}, on_ready=lambda url: print(url, flush=True))
except TiebreakError as error:
    sys.exit(error.message)
"""
WEB = """
import http.server, sys
class Ready(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Ready).serve_forever()
"""


Start = Callable[..., tuple[psutil.Popen, str]]


@pytest.fixture
def up(tmp_path: Path, database_url: str, redis_url: str) -> Iterator[Start]:
    """Starts `up` with a small stand-in for the web process; gives the process and its first line."""
    started: list[psutil.Popen] = []

    def start(port: int = 0, **environment: str) -> tuple[psutil.Popen, str]:
        urls = {"DATABASE_URL": database_url, "REDIS_URL": redis_url, "TIEBREAK_DATA": str(tmp_path / "d")}
        process = psutil.Popen(
            [sys.executable, "-c", UP.format(web=WEB, port=port)],
            env={**os.environ, **urls, **environment},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process, process.stdout.readline().strip()

    yield start
    for process in started:
        process.kill() if process.poll() is None else None
        process.communicate()


def test_it_answers_once_it_says_so_and_leaves_nothing(up: Start) -> None:
    process, url = up(DATABASE_URL="", REDIS_URL="")
    family = process.children(recursive=True)
    assert urlopen(f"{url}/readyz").status == 200
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    gone, alive = psutil.wait_procs(family, timeout=5)
    assert not alive and len(gone) >= 5, "web, two keepers, two servers"


def test_a_second_up_on_the_same_data_says_so(up: Start) -> None:
    first, _ = up()
    second, _ = up()
    _, err = second.communicate(timeout=60)
    assert second.returncode == 1 and err.count("\n") == 1
    assert f"is already running on {first.environ()['TIEBREAK_DATA']} (process {first.pid}): stop that one" in err


def test_a_killed_up_frees_the_directory_and_the_port(up: Start) -> None:
    first, url = up()
    web = first.children()
    first.kill()
    psutil.wait_procs(web, timeout=5)
    _, again = up(port=int(url.rsplit(":", 1)[1]))
    assert again == url


def test_others_find_the_running_platform(up: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIEBREAK_DATA", str(tmp_path / "d"))
    settings.cache_clear()
    try:
        assert supervisor.running() is None
        process, url = up()
        assert supervisor.running() == url
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        assert supervisor.running() is None
    finally:
        settings.cache_clear()


def test_a_busy_port_is_one_sentence(up: Start) -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        process, _ = up(port=busy.getsockname()[1])
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1 and err.count("\n") == 1
    assert "(Address already in use): free it, or choose another with --port." in err


@pytest.mark.parametrize(("host", "port"), [("no.such.host.invalid", 8000), ("127.0.0.1", 99999), ("192.0.2.1", 8000)])
def test_a_place_where_nobody_can_listen_is_one_sentence(host: str, port: int) -> None:
    with pytest.raises(SupervisorError, match=f"cannot listen on {host} port {port} "):
        supervisor.usable_port(host, port)


def test_everything_listens_on_this_machine_alone_unless_asked() -> None:
    web, *workers = supervisor.platform("127.0.0.1", 8000, Path("/data"))
    assert web.argv[web.argv.index("--host") + 1] == "127.0.0.1"
    assert [child.name for child in workers] == ["gpu", "housekeeping", "beat"]
    assert [child.name for child in supervisor.platform("127.0.0.1", 8000, Path("/data"), workers=False)] == ["web"]


@pytest.mark.parametrize(
    ("host", "url"),
    [("127.0.0.1", "http://127.0.0.1:1"), ("0.0.0.0", "http://127.0.0.1:1"), ("::", "http://[::1]:1")],
)
def test_the_printed_address_is_one_that_a_browser_can_open(host: str, url: str) -> None:
    assert supervisor.address(host, 1) == url
