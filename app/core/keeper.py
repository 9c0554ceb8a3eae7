"""Keep one server process running for as long as somebody uses it.

The users of an embedded server each hold a shared lock on its `users` file; the kernel drops the lock when a user
ends, however it ends. This small process is the server's parent: it starts it again when it crashes, and stops it
cleanly once it can take the lock for itself, that is, when nobody is left. So `kill -9` of every user leaves no server
behind, and a second command beside a running `tiebreak up` neither starts a second server nor stops the first.

While it lives it holds its own lock on the `state` file, where it writes its pid: that lock, not the pid, is the proof
of life. Imports the standard library only, to start fast and stay small.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

LOOK_EVERY = 0.25
STEADY_AFTER = 3.0
"""A server that has once lived this long is worth starting again for ever: a full disk may be emptied."""
FIRST_TRIES = 4
"""A server that never got so far is given up, so that whoever waits for it learns why."""


class Stop(Exception):
    """SIGTERM came: the last user asks for an end."""


def stop(_signal: int, _frame: object) -> None:
    raise Stop


def nothing(_signal: int, _frame: object) -> None:
    """For what a terminal sends to everybody. Not SIG_IGN, which the server would inherit."""


def unused(users: int) -> bool:
    """Whether nobody holds the users' lock any more; if so it is now held by us, and newcomers wait for our end."""
    try:
        fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def end(server: subprocess.Popen[bytes], ask: int, grace: float) -> None:
    """Ask the server to stop, insist after `grace` seconds, and wait until it has."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if server.poll() is None:
        server.send_signal(ask)
    try:
        server.wait(grace)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def keep(spec: dict[str, Any], users: int) -> int:
    """Run the server again and again until nobody uses it; returns this process's exit status."""
    steady, tries, pause = False, 0, 0.1
    while not unused(users):
        with open(spec["log"], "ab") as log:
            server = subprocess.Popen(spec["argv"], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=spec["env"])
        started = time.monotonic()
        try:
            while server.poll() is None:
                if unused(users):
                    raise Stop
                time.sleep(LOOK_EVERY)
            lived = time.monotonic() - started
            steady = steady or lived > STEADY_AFTER
            tries, pause = (0, 0.1) if lived > STEADY_AFTER else (tries + 1, min(pause * 2, 5.0))
            if not steady and tries >= FIRST_TRIES:
                return 1
            time.sleep(pause)
        except Stop:
            end(server, spec["stop_signal"], spec["grace"])
            return 0
    return 0


def main() -> int:
    """Read what to keep from standard input, where no other user's `ps` sees it."""
    spec = json.load(sys.stdin)
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, nothing)
    signal.signal(signal.SIGHUP, nothing)
    users = os.open(spec["users"], os.O_RDWR | os.O_CREAT, 0o600)
    state = os.open(spec["state"], os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(state, fcntl.LOCK_EX)
    os.ftruncate(state, 0)
    os.write(state, json.dumps({"pid": os.getpid(), "url": spec["url"]}).encode())
    with contextlib.suppress(Stop):
        return keep(spec, users)
    return 0


if __name__ == "__main__":
    sys.exit(main())
