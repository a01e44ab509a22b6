"""Each restriction of the sandbox is tested in a real process."""

import errno
import json
import platform
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from worker.video import sandbox

ROOT = Path(sandbox.__file__).parents[2]
LIMITS = "memory_bytes=2**30, cpu_s=5, file_bytes=10**6"

needs_landlock = pytest.mark.skipif(
    sandbox.libc.syscall(sandbox.LANDLOCK_CREATE_RULESET, None, 0, sandbox.LANDLOCK_CREATE_RULESET_VERSION) < 1,
    reason="this kernel has no Landlock",
)
needs_seccomp = pytest.mark.skipif(
    platform.machine() not in sandbox.AUDIT_ARCHITECTURES, reason="no list of system calls for this architecture"
)


def run(body: str, *arguments: str, confined: str = f"sandbox.confine({LIMITS})") -> subprocess.CompletedProcess[str]:
    """Run Python code inside the sandbox; `tried(f)` returns the outcome of f."""
    prelude = f"""
import ctypes, json, mmap, os, resource, signal, socket, sys, threading, time
from worker.video import sandbox
def tried(action):
    try:
        action()
        return "done"
    except OSError as error:
        return error.errno
    except MemoryError:
        return "memory"
    except ValueError:  # raised by resource.setrlimit for EPERM
        return 1
applied = {confined}
"""
    return subprocess.run(
        [sys.executable, "-c", prelude + body, *arguments], capture_output=True, text=True, cwd=ROOT, timeout=30
    )


FORBIDDEN = {
    "open a file": "open(sys.argv[1])",
    "write a file": "open(sys.argv[1] + '.new', 'w')",
    "list a folder": "os.listdir('/')",
    "remove a file": "os.unlink(sys.argv[1])",
    "open a socket": "socket.socket()",
    "open a Unix socket": "socket.socketpair()",
    "fork": "os.fork()",
    "start a program": "os.execv('/bin/true', ['true'])",
    "signal the parent": "os.kill(os.getppid(), 0)",
    "read foreign memory": "open(f'/proc/{os.getppid()}/mem', 'rb')",
    "make memory executable": "mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)",
    "raise its limits": "resource.setrlimit(resource.RLIMIT_AS, (2**40, 2**40))",
    "trace": "sandbox.libc.ptrace(0, 0, 0, 0) and (_ for _ in ()).throw(OSError(ctypes.get_errno(), ''))",
    "make a folder": "os.mkdir(sys.argv[1] + '.d')",
    "look at a file's size": "os.stat(sys.argv[1])",
}


@needs_seccomp
@pytest.mark.parametrize("what", FORBIDDEN)
def test_a_confined_process_cannot(what: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    ended = run(f"print(tried(lambda: {FORBIDDEN[what]}))", str(secret))
    assert ended.stdout.strip() in (str(errno.EPERM), str(errno.EACCES)), ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


@needs_landlock
def test_landlock_alone_blocks_files(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    confined = "(sandbox._prctl(sandbox.PR_SET_NO_NEW_PRIVS, 1), sandbox._landlock())"
    body = """
print(json.dumps([
    tried(lambda: open(sys.argv[1])), tried(lambda: open(sys.argv[1] + '.new', 'w')), tried(lambda: os.listdir('/')),
    tried(lambda: socket.create_connection(('127.0.0.1', 9))),
]))
"""
    assert json.loads(run(body, str(secret), confined=confined).stdout) == [errno.EACCES] * 4


@needs_seccomp
def test_seccomp_alone_blocks_files(tmp_path: Path) -> None:
    confined = "(sandbox._prctl(sandbox.PR_SET_NO_NEW_PRIVS, 1), sandbox._seccomp())"
    ended = run("print(tried(lambda: open(sys.argv[1])))", str(tmp_path), confined=confined)
    assert ended.stdout.strip() == str(errno.EPERM), ended.stderr


def test_a_sandboxed_process_can_use_its_open_files_threads_and_memory(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    body = """
seen = []
threads = [threading.Thread(target=lambda: seen.append(len(bytearray(10**7)))) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
os.write(spool, b'frames')
os.lseek(spool, 0, 0)
time.sleep(0.001)
print(json.dumps([seen, os.read(spool, 9).decode(), os.fstat(spool).st_size, applied]))
"""
    confined = f"(spool := os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)) and sandbox.confine({LIMITS})"
    ended = run(body, str(spool), confined=confined)
    assert ended.returncode == 0, ended.stderr
    seen, read, size, applied = json.loads(ended.stdout)
    assert (seen, read, size) == ([10**7] * 4, "frames", 6)
    assert applied[:2] == ["rlimits", "no_new_privs"]


def test_memory_beyond_the_limit_is_refused() -> None:
    assert run("print(tried(lambda: bytearray(2 * 2**30)))").stdout.strip() == "memory"


def test_processor_time_beyond_the_limit_ends_the_process() -> None:
    ended = run("while True: pass", confined="sandbox.confine(memory_bytes=2**30, cpu_s=1, file_bytes=10**6)")
    assert ended.returncode in (-signal.SIGXCPU, -signal.SIGKILL)


def test_a_file_beyond_the_limit_is_an_error_and_does_not_kill(tmp_path: Path) -> None:
    body = """
def fill():
    while os.write(spool, b'x' * 10**5): pass
print(tried(fill), os.fstat(spool).st_size)
"""
    confined = f"(spool := os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)) and sandbox.confine({LIMITS})"
    assert run(body, str(tmp_path / "spool"), confined=confined).stdout.split() == [str(errno.EFBIG), "1000000"]


def test_limits_are_not_raised_above_the_hard_limits() -> None:
    body = """
def fill():
    while True: last[0] = os.dup(1)
last = [0]
print(tried(fill), last[0])
"""
    confined = (
        "(resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20)), "
        "sandbox.confine(memory_bytes=2**30, cpu_s=5, file_bytes=9, open_files=100))"
    )
    assert run(body, confined=confined).stdout.split() == [str(errno.EMFILE), "19"]


def test_a_process_whose_parent_is_gone_does_not_start() -> None:
    assert "the parent is gone" in run("", confined="sandbox.die_with(1)").stderr


# --- the seccomp program, interpreted for every architecture


def verdict(program: bytes, architecture: int, number: int, arguments: tuple[int, ...] = ()) -> int:
    """The result of the kernel's interpreter for one system call (linux/filter.h)."""
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("=iIQ6Q", number, architecture, 0, *padded)
    instructions = list(struct.iter_unpack("HBBI", program))
    accumulator = position = 0
    while True:
        operation, if_true, if_false, value = instructions[position]
        position += 1
        if operation == 0x20:
            (accumulator,) = struct.unpack_from("=I", data, value)
        elif operation == 0x06:
            return int(value)
        else:
            holds = {0x15: accumulator == value, 0x35: accumulator >= value, 0x45: bool(accumulator & value)}[operation]
            position += if_true if holds else if_false


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_exactly_the_listed_system_calls_pass(machine: str, column: int) -> None:
    program = sandbox.seccomp_program(machine)
    assert program is not None
    architecture = sandbox.AUDIT_ARCHITECTURES[machine][1]
    passed = {n for n in range(1000) if verdict(program, architecture, n) == sandbox.SECCOMP_RET_ALLOW}
    listed = {call[column] for call in sandbox.ALLOWED_CALLS.values()}
    # Without arguments memory is not executable, and clone and newfstatat lack the flag that allows them.
    assert passed == listed | {sandbox.MMAP[column], sandbox.MPROTECT[column]}


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_calls_that_are_both_needed_and_dangerous_are_allowed_by_their_arguments(machine: str, column: int) -> None:
    program = sandbox.seccomp_program(machine)
    assert program is not None
    architecture = sandbox.AUDIT_ARCHITECTURES[machine][1]

    def passes(call: tuple[int, int], *arguments: int) -> bool:
        return verdict(program, architecture, call[column], arguments) == sandbox.SECCOMP_RET_ALLOW

    thread, process = 0x3D0F00, 17  # flags of pthread_create and fork
    assert passes(sandbox.CLONE, thread)
    assert not passes(sandbox.CLONE, process)
    assert passes(sandbox.MMAP, 0, 4096, 3)
    assert not passes(sandbox.MMAP, 0, 4096, 7)
    assert not passes(sandbox.MPROTECT, 0, 4096, 5)
    assert passes(sandbox.NEWFSTATAT, 3, 0, 0, sandbox.AT_EMPTY_PATH)
    assert not passes(sandbox.NEWFSTATAT, 3, 0, 0, 0)


def test_new_system_calls_return_enosys_so_that_libraries_fall_back() -> None:
    program = sandbox.seccomp_program("x86_64")
    assert program is not None
    clone3, openat2 = 435, 437
    for number in (clone3, openat2):
        assert verdict(program, 0xC000003E, number) == sandbox.SECCOMP_RET_ERRNO | errno.ENOSYS


def test_a_foreign_architecture_ends_the_process() -> None:
    program = sandbox.seccomp_program("x86_64")
    assert program is not None
    i386 = 0x40000003
    assert verdict(program, i386, 0) == sandbox.SECCOMP_RET_KILL_PROCESS
    assert sandbox.seccomp_program("riscv64") is None
