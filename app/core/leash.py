"""Run a program that does not outlive its parent.

`command(argv)` wraps an argv so that this file runs first (with a bare interpreter, some 20 ms), asks the kernel to
signal it when the parent dies, and becomes the program. A parent that is killed with -9 therefore leaves nothing
behind. Linux only; elsewhere the program simply runs, and whoever starts next clears up.

With `user` (`uid:gid`), the program gives up root first, because PostgreSQL refuses to run as root. Where that user
cannot reach `reach` (a checkout below a private home directory) it keeps one capability, to pass by permission bits,
rather than have us loosen the permissions of directories that are not ours.

Imports the standard library only: it runs before any site-packages are on the path.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_SET_CHILD_SUBREAPER, PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE = 1, 8, 36, 47, 2
CAP_DAC_OVERRIDE = 1
CAPABILITY_VERSION_3 = 0x20080522


def command(
    argv: Sequence[str],
    *,
    on_death: signal.Signals = signal.SIGTERM,
    parent: int = 0,
    user: str = "",
    reach: Sequence[Path] = (),
) -> list[str]:
    """`argv` on a leash: gets `on_death` when its parent dies. `parent` closes the gap before the leash is on."""
    places = os.pathsep.join(str(path) for path in reach)
    return [sys.executable, "-I", "-S", __file__, str(parent), str(int(on_death)), user, places, *argv]


def prctl(option: int, *values: int) -> None:
    """Call prctl(2); raises `OSError` with the kernel's reason."""
    libc = ctypes.CDLL(None, use_errno=True)
    padded = [ctypes.c_ulong(value) for value in (*values, 0, 0, 0, 0)[:4]]
    if libc.prctl(option, *padded) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def keep_file_access() -> None:
    """Keep CAP_DAC_OVERRIDE, alone, across the coming exec; raises `OSError` where the container forbids it."""
    libc = ctypes.CDLL(None, use_errno=True)
    bit = 1 << CAP_DAC_OVERRIDE
    header = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION_3, 0)
    sets = (ctypes.c_uint32 * 6)(bit, bit, bit, 0, 0, 0)  # effective, permitted, inheritable; then the high words
    if libc.capset(header, sets) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, CAP_DAC_OVERRIDE)


def become(user: str, reach: Sequence[str]) -> None:
    """Turn from root into `user` (`uid:gid`); exits with a sentence where that user could then not reach its files."""
    uid, gid = (int(part) for part in user.split(":"))
    linux = sys.platform == "linux"
    if linux:
        prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)
    hidden = [path for path in reach if not os.access(path, os.X_OK)]
    if not hidden:
        return
    try:
        if not linux:
            raise PermissionError
        keep_file_access()
    except OSError:
        sys.exit(f"cannot reach {hidden[0]} as user {uid}, as whom PostgreSQL has to run because it refuses root")


def main(arguments: list[str]) -> None:
    parent, on_death, user, reach, *argv = arguments
    signal.signal(int(on_death), signal.SIG_DFL)  # an ignored signal would stay ignored in the program
    if user and os.geteuid() == 0:
        become(user, [place for place in reach.split(os.pathsep) if place])
    if sys.platform == "linux":
        prctl(PR_SET_PDEATHSIG, int(on_death))  # after the change of user, which clears it
    if int(parent) and os.getppid() != int(parent):
        sys.exit("the parent died before this child had started")
    try:
        os.execvp(argv[0], argv)
    except OSError as error:
        sys.exit(f"cannot run {argv[0]}: {error.strerror}")


if __name__ == "__main__":
    main(sys.argv[1:])
