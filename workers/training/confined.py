"""The inside of the sandbox: gives up every power, then runs a program and its tests (standard library only).

Run as a script by `sandbox.py` in a fresh interpreter, `python -I -S confined.py`. The job comes as JSON on stdin:
`{"program", "tests": [...], "token", "seconds", "memory_mb", "output_bytes"}`. The token is written to stdout only
when the program and all of its tests have run without an exception, so that leaving early proves nothing.

Two fences, neither of which needs a privilege. Resource limits: CPU time, address space, size of what is written, open
files, no further processes. And a seccomp filter that answers "not permitted" to whatever would start a process, reach
the network, signal or inspect another process, open a file for writing or change one, mount, or raise a limit. It
holds for root as well, whom RLIMIT_NPROC and file permissions do not stop. Files can still be read.
"""

import ctypes
import json
import os
import resource
import struct
import sys

# Numbers of the refused system calls: {machine: (AUDIT_ARCH constant, numbers, {call: index of its flags argument})}.
# The last ones open files and are refused only when their flags ask for more than reading.
_MACHINES: dict[str, tuple[int, tuple[int, ...], dict[int, int]]] = {
    "x86_64": (
        0xC000003E,
        (
            *(56, 57, 58, 435, 59, 322),  # clone fork vfork clone3 execve execveat
            *(41, 53, 42, 425),  # socket socketpair connect io_uring_setup
            *(62, 200, 234, 129, 297, 424, 434, 438),  # kill tkill tgkill rt_(tg)sigqueueinfo pidfd_*
            *(101, 310, 311, 298, 321, 323),  # ptrace process_vm_* perf_event_open bpf userfaultfd
            *(437, 85, 76, 82, 264, 316, 83, 258, 84, 87, 263),  # openat2 creat truncate rename* mkdir* rmdir unlink*
            *(86, 265, 88, 266, 133, 259),  # link* symlink* mknod*
            *(90, 91, 268, 452, 92, 93, 94, 260, 188, 189, 190, 197, 198, 199),  # chmod* chown* setxattr* removexattr*
            *(165, 166, 155, 161, 272, 308, 428, 429, 430, 442),  # mount umount2 pivot_root chroot unshare setns …
            *(160, 302, 112, 109),  # setrlimit prlimit64 setsid setpgid
            *(29, 64, 68, 248, 249, 250),  # shmget semget msgget add_key request_key keyctl
            *(163, 167, 168, 169, 170, 171, 172, 173, 179, 103),  # acct swap* reboot set*name iopl ioperm quotactl …
            *(159, 164, 227, 175, 176, 313, 246, 320),  # clocks, kernel modules, kexec
            *(132, 235, 261, 280, 141, 142, 144, 203, 314),  # utime* futimesat, setpriority sched_set*
        ),
        {2: 1, 257: 2},  # open openat
    ),
    "aarch64": (
        0xC00000B7,
        (
            *(220, 435, 221, 281),
            *(198, 199, 203, 425),
            *(129, 130, 131, 138, 240, 424, 434, 438),
            *(117, 270, 271, 241, 280, 282),
            *(437, 45, 38, 276, 34, 35),
            *(37, 36, 33),
            *(52, 53, 452, 54, 55, 5, 6, 7, 14, 15, 16),
            *(40, 39, 41, 51, 97, 268, 428, 429, 430, 442),
            *(164, 261, 157, 154),
            *(194, 190, 186, 217, 218, 219),
            *(89, 224, 225, 142, 161, 162, 60, 116),
            *(171, 170, 112, 105, 106, 273, 104, 294),
            *(88, 140, 118, 119, 122, 274),
        ),
        {56: 2},
    ),
}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_ALLOW, _REFUSE, _KILL = 0x7FFF0000, 0x00050001, 0x80000000  # the refusal is EPERM
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06


def main() -> None:
    """Read the job, step into the cage, run it; never returns."""
    job = json.loads(sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    limit(job["seconds"], job["memory_mb"], job["output_bytes"])
    forbid()
    scope: dict[str, object] = {"__name__": "answer"}  # not "__main__": a demonstration at the end need not run
    for source in (job["program"], *job["tests"]):
        exec(compile(source, "<answer>", "exec"), scope)  # noqa: S102 - what this file is for
    sys.stdout.flush()
    os.write(1, job["token"].encode())
    os._exit(0)


def limit(seconds: int, memory_mb: int, output_bytes: int) -> None:
    """Hard resource limits of this process."""
    wanted = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_AS: memory_mb << 20,
        resource.RLIMIT_FSIZE: output_bytes,
        resource.RLIMIT_NOFILE: 32,
        resource.RLIMIT_NPROC: 0,
        resource.RLIMIT_CORE: 0,
    }
    for what, most in wanted.items():
        resource.setrlimit(what, (most, most))


def forbid() -> None:
    """Load the filter; `OSError` where this kernel or machine has none."""
    program = b"".join(struct.pack("HBBI", *instruction) for instruction in _filter(*_MACHINES[os.uname().machine]))
    libc = ctypes.CDLL(None, use_errno=True)
    instructions = ctypes.create_string_buffer(program, len(program))
    header = ctypes.create_string_buffer(struct.pack("HP", len(program) // 8, ctypes.addressof(instructions)))
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.byref(header), 0, 0):  # NO_NEW_PRIVS, SECCOMP by filter
        raise OSError(ctypes.get_errno(), "this kernel refuses a seccomp filter")


def _filter(arch: int, refused: tuple[int, ...], opening: dict[int, int]) -> list[tuple[int, int, int, int]]:
    """Classic BPF over `struct seccomp_data` (nr at 0, arch at 4, arguments from 16): (code, if true, if false, k)."""
    steps = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, 0)]
    steps += [(_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]  # the x32 calls have other numbers
    for number in refused:
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)]
    for number, flags in opening.items():
        steps += [(_EQUAL, 0, 4, number), (_LOAD, 0, 0, 16 + 8 * flags), (_ANY_BIT, 0, 1, _WRITING)]
        steps += [(_RETURN, 0, 0, _REFUSE), (_RETURN, 0, 0, _ALLOW)]
    return [*steps, (_RETURN, 0, 0, _ALLOW)]


if __name__ == "__main__":
    main()
