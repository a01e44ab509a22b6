"""Sandbox of the decoder process: resource limits, no new files, no sockets, no processes.

A file that exploits a codec runs code with the privileges of the process that decodes it. That process therefore
opens everything it needs (libraries, video, spool) and then drops the right to open anything: afterwards it can read
and write its open files, allocate memory within its limit, start threads, and exit. None of this needs root.

- Resource limits and no_new_privs: on every Linux.
- Landlock (Linux 5.13 or later): no access to files, directories, TCP ports, abstract sockets or other processes.
- seccomp: an allow-list of system calls, without socket, execve, fork and ptrace, and without executable memory.

C structures and numbers: Linux's `landlock.h`, `seccomp.h`, `filter.h` and `unistd.h`.
"""

import ctypes
import errno
import os
import platform
import resource
import signal
import struct
import sys

PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS = 1, 38
LANDLOCK_CREATE_RULESET, LANDLOCK_RESTRICT_SELF = 444, 446  # the same on every architecture
LANDLOCK_CREATE_RULESET_VERSION = 1
# By ABI version: number of file system rights, network rights and scopes.
LANDLOCK_RIGHTS = {1: (13, 0, 0), 2: (14, 0, 0), 3: (15, 0, 0), 4: (15, 2, 0), 5: (16, 2, 0), 6: (16, 2, 2)}

SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC = 1, 1
SECCOMP_RET_ALLOW, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
LOAD, EQUAL, AT_LEAST, ANY_BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # operations of classic BPF
NUMBER_AT, ARCHITECTURE_AT, FIRST_ARGUMENT_AT = 0, 4, 16  # offsets in struct seccomp_data
CLONE_THREAD, PROT_EXEC = 0x10000, 4

# System calls from this number on are rejected with ENOSYS, so that C libraries fall back (clone3 to clone); lower
# numbers are rejected with EPERM.
NEW_CALLS = 424

# (x86-64, aarch64), the most frequent first; without ioctl, prctl and calls that take a path.
ALLOWED_CALLS = {
    "futex": (202, 98),
    "write": (1, 64),
    "read": (0, 63),
    "lseek": (8, 62),
    "writev": (20, 66),
    "readv": (19, 65),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "brk": (12, 214),
    "madvise": (28, 233),
    "sched_yield": (24, 124),
    "clock_gettime": (228, 113),
    "clock_nanosleep": (230, 115),
    "nanosleep": (35, 101),
    "getrusage": (98, 165),
    "getrandom": (318, 278),
    "fstat": (5, 80),
    "fcntl": (72, 25),
    "dup": (32, 23),
    "close": (3, 57),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "sched_getaffinity": (204, 123),
    "sysinfo": (99, 179),
    "getpid": (39, 172),
    "gettid": (186, 178),
    "getppid": (110, 173),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
NEWFSTATAT = (262, 79)  # fstat in glibc 2.33 and later; only without a path (AT_EMPTY_PATH)
AT_EMPTY_PATH = 0x1000
CLONE = (56, 220)
MMAP, MPROTECT = (9, 222), (10, 226)
AUDIT_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

libc = ctypes.CDLL(None, use_errno=True)


def die_with(parent_pid: int) -> None:
    """Let the kernel kill this process when its parent thread ends; exit now if the parent has ended already."""
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit("the parent is gone")


def confine(*, memory_bytes: int, cpu_s: int, file_bytes: int, open_files: int = 32) -> tuple[str, ...]:
    """Irrevocably drop all rights that decoding does not need. Call it before any thread is started.

    Args:
        memory_bytes: Limit of the address space.
        cpu_s: Limit of the CPU time of all threads, seconds; the kernel ends the process with SIGXCPU.
        file_bytes: Maximum length of written files.
        open_files: Limit of file descriptors.

    Returns:
        The restrictions applied: "rlimits", "no_new_privs", "landlock <version>", "seccomp"; the last two only if
        supported by the kernel (seccomp also by the architecture).
    """
    # RLIMIT_NPROC is not set: it counts all processes and threads of the user.
    limits = {
        resource.RLIMIT_AS: memory_bytes,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: file_bytes,
        resource.RLIMIT_NOFILE: open_files,
        resource.RLIMIT_CORE: 0,
    }
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit fails instead of killing the process
    for limit, value in limits.items():
        _, hard = resource.getrlimit(limit)
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))
    _prctl(PR_SET_NO_NEW_PRIVS, 1)
    applied = ["rlimits", "no_new_privs"]
    if version := _landlock():
        applied.append(f"landlock {version}")
    if _seccomp():
        applied.append("seccomp")
    return tuple(applied)


def _prctl(option: int, value: int) -> None:
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl({option}, {value})")


def _landlock() -> int:
    """Restrict every right that this kernel supports. Returns the ABI version, 0 without Landlock."""
    version = libc.syscall(LANDLOCK_CREATE_RULESET, None, ctypes.c_size_t(0), LANDLOCK_CREATE_RULESET_VERSION)
    if version < 1:
        return 0  # not built in, or disabled
    rights = LANDLOCK_RIGHTS[min(version, max(LANDLOCK_RIGHTS))]
    attributes = struct.pack("QQQ", *((1 << count) - 1 for count in rights))
    size = 8 if version < 4 else 16 if version < 6 else 24
    ruleset = libc.syscall(LANDLOCK_CREATE_RULESET, attributes, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    try:
        if libc.syscall(LANDLOCK_RESTRICT_SELF, ruleset, 0):
            raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    finally:
        os.close(ruleset)
    return int(version)


def _seccomp() -> bool:
    """Install the allow-list in all threads. Returns False where it is not supported."""
    program = seccomp_program(platform.machine())
    if program is None:
        return False
    instructions = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(instructions))
    number = {"x86_64": 317, "aarch64": 277}[platform.machine()]
    if libc.syscall(number, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, header):
        if ctypes.get_errno() in (errno.ENOSYS, errno.EINVAL):
            return False  # not supported by this kernel
        raise OSError(ctypes.get_errno(), "seccomp")
    return True


def seccomp_program(machine: str) -> bytes | None:
    """The allow-list as a classic BPF program, 8 bytes per instruction; None for an unknown architecture.

    Each check is a comparison with a jump over its own return, so no offset depends on another check.
    """
    if machine not in AUDIT_ARCHITECTURES:
        return None
    column, audit_architecture = AUDIT_ARCHITECTURES[machine]
    reject = SECCOMP_RET_ERRNO | errno.EPERM

    def step(operation: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
        return struct.pack("HBBI", operation, if_true, if_false, value)

    def allow_by_flag(call: tuple[int, int], argument: int, flag: int, *, allow_if_set: bool) -> bytes:
        yes, no = SECCOMP_RET_ALLOW, reject
        return b"".join(
            [
                step(EQUAL, call[column], 0, 4),
                step(LOAD, FIRST_ARGUMENT_AT + 8 * argument),
                step(ANY_BIT, flag, 0, 1),
                step(RETURN, yes if allow_if_set else no),
                step(RETURN, no if allow_if_set else yes),
            ]
        )

    return b"".join(
        [
            step(LOAD, ARCHITECTURE_AT),
            step(EQUAL, audit_architecture, 1, 0),
            step(RETURN, SECCOMP_RET_KILL_PROCESS),
            step(LOAD, NUMBER_AT),
            *(step(EQUAL, call[column], 0, 1) + step(RETURN, SECCOMP_RET_ALLOW) for call in ALLOWED_CALLS.values()),
            allow_by_flag(MMAP, 2, PROT_EXEC, allow_if_set=False),
            allow_by_flag(MPROTECT, 2, PROT_EXEC, allow_if_set=False),
            allow_by_flag(NEWFSTATAT, 3, AT_EMPTY_PATH, allow_if_set=True),
            allow_by_flag(CLONE, 0, CLONE_THREAD, allow_if_set=True),
            step(AT_LEAST, NEW_CALLS, 0, 1),
            step(RETURN, SECCOMP_RET_ERRNO | errno.ENOSYS),
            step(RETURN, reject),
        ]
    )
