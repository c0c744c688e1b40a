"""Faults from outside: a system call refused for good by seccomp, or made to fail by strace.

strace counts a process's calls of one name and makes the 100th fail. Copies therefore run each in a
process of its own, forked ready to go by a server (this file, run as a program), and to meet the
fault at its k-th call one first makes 100 - k calls of that name that do nothing.
"""

import contextlib
import ctypes
import io
import json
import os
import platform
import re
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from errno import ENOSYS, EOPNOTSUPP
from functools import partial
from pathlib import Path
from typing import NamedTuple

from filesystems import unavailable

TIMEOUT = 30  # seconds after which a copy hangs

# --- calls that this process is refused from now on ----------------------------------------------

_NUMBERS = {
    "x86_64": {"openat": 257, "fallocate": 285, "io_setup": 206, "cachestat": 451},
    "aarch64": {"openat": 56, "fallocate": 47, "io_setup": 0, "cachestat": 451},
}
_LIBC = ctypes.CDLL(None, use_errno=True)


class _Instruction(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_ushort),
        ("true", ctypes.c_ubyte),
        ("false", ctypes.c_ubyte),
        ("k", ctypes.c_uint),
    )


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.POINTER(_Instruction)))


def refuse(call: str, errno: int, argument: int = 0, bits: int = 0) -> None:
    """Have `call` fail with `errno` in this process and its children; see seccomp(2).

    With `bits` only where one of them is set in `argument`.
    """
    load, equal, any_set, answer = 0x20, 0x15, 0x45, 0x06
    code = [(load, 0, 0, 0), (equal, 0, 3 if bits else 1, _NUMBERS[platform.machine()][call])]
    if bits:
        code += [(load, 0, 0, 16 + 8 * argument), (any_set, 0, 1, bits)]
    code += [(answer, 0, 0, 0x50000 | errno), (answer, 0, 0, 0x7FFF0000)]
    instructions = [_Instruction(*each) for each in code]
    program = _Program(len(code), (_Instruction * len(code))(*instructions))
    no_new_privileges, set_seccomp, filtered = 38, 22, 2
    _prctl(no_new_privileges, 1, 0, 0, 0)
    _prctl(set_seccomp, filtered, ctypes.byref(program))


def _prctl(*arguments: object) -> None:
    if _LIBC.prctl(*arguments) < 0:
        unavailable(f"prctl{arguments[0]}: {os.strerror(ctypes.get_errno())}")


def refuse_tmpfile() -> None:
    """Have no O_TMPFILE, as on NFS."""
    refuse("openat", EOPNOTSUPP, argument=2, bits=os.O_TMPFILE & ~os.O_DIRECTORY)


def in_child(action: Callable[[], object]) -> OSError | None:
    """Do `action` in a forked child, which can refuse itself what it likes; the error it raised."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            action()
            os.write(writer, b"[]")
        except OSError as error:
            os.write(writer, json.dumps([error.errno, error.strerror]).encode())
        except BaseException:  # noqa: BLE001 - a child must not go on as its parent
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        answer = file.read()
    os.waitpid(child, 0)
    raised = json.loads(answer)  # nothing to load: another exception, whose traceback was printed
    return OSError(*raised) if raised else None


# --- calls that fail -----------------------------------------------------------------------------

_WHEN = 100  # the call of a process that strace makes fail
_BEGIN = "aiocp-begins-here"  # a name that is looked for, to be found in the trace


@dataclass(frozen=True)
class Copy:
    """A run of the command in a process of its own, its standard error in the file `stderr`."""

    arguments: Sequence[str]
    stderr: str
    refused: Sequence[str] = ()  # "O_TMPFILE" or system calls, which then do not exist
    uid: int = 0
    shift: tuple[int, int] = (0, 0)  # a system call's number, and how often to make it before


class Call(NamedTuple):
    """A system call that the copy made."""

    name: str
    number: int
    ordinal: int  # among the calls of its name that the process has made, from 1
    text: str
    by_child: bool  # made by the process that links and renames


class Outcome(NamedTuple):
    """What a run of the command ended with; `injected` is the trace's line of the fault."""

    status: int | None  # None: it hung
    stderr: str
    injected: str


def trace(copy: Copy, log: Path) -> list[Call]:
    """The system calls that a copy makes, from its first to its last."""
    run_all([copy], ["-n"], log)
    counts: dict[tuple[str, str], int] = {}
    calls, process = [], ""
    for line in log.read_text().splitlines():
        match = re.match(r"(\d+) +\[ *(\d+)\] (\w+)\((.*)", line)
        if match:
            pid, number, name, text = match.groups()
            counts[pid, name] = counts.get((pid, name), 0) + 1
            if _BEGIN in text:
                process = pid
            elif process:
                calls.append(Call(name, int(number), counts[pid, name], text, pid != process))
            if process == pid and name == "exit_group":
                break
    return calls


def inject(
    plan: Sequence[tuple[Copy, Call]], faults: dict[str, str], log: Path, *, for_ever: bool
) -> list[Outcome]:
    """Run each copy with that call failing, and with `for_ever` all later ones of its name too.

    `faults` are strace's by name: "error=EIO". The calls are either all made by the child that
    links and renames, which counts from 1, and of one name, or none is.
    """
    when = f"when={1 if plan[0][1].by_child else _WHEN}{'+' * for_ever}"
    shifted = []
    for copy, call in plan:
        assert call.ordinal < _WHEN
        times = 0 if call.by_child else _WHEN - call.ordinal
        shifted.append(replace(copy, shift=(call.number, times)))
    options = [f"--inject={name}:{fault}:{when}" for name, fault in sorted(faults.items())]
    return run_all(shifted, [f"--trace=clone,{','.join(faults)}", *options], log)


def run_all(copies: Sequence[Copy], options: Sequence[str], log: Path) -> list[Outcome]:
    """Run the copies one after the other under `strace OPTIONS`, the trace in `log`."""
    plan = json.dumps([asdict(copy) for copy in copies])
    server = subprocess.Popen(
        [sys.executable, __file__, plan], stdout=subprocess.PIPE, text=True, stdin=subprocess.PIPE
    )
    assert server.stdout
    assert server.stdout.readline() == "ready\n"
    try:
        tracer = subprocess.Popen(
            ["strace", "-f", "-q", "-o", log, *options, "-p", str(server.pid)],
            stderr=subprocess.PIPE,
            text=True,
        )
    except FileNotFoundError:
        server.kill()
        server.communicate()
        unavailable("strace is not installed")
    _, complaint = tracer.communicate()  # until the server has ended, or it could not trace
    if tracer.returncode:
        server.kill()
    answer, _ = server.communicate()
    assert (server.returncode, tracer.returncode) == (0, 0), complaint
    ended = json.loads(answer)
    injected = _injections(log)
    return [
        Outcome(status, Path(copy.stderr).read_text(), injected.get(str(pid), ""))
        for copy, (pid, status) in zip(copies, ended, strict=True)
    ]


def write_errors_to(path: str | Path) -> None:
    """Have this process's standard error in a file, also where pytest has captured it."""
    os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), 2)
    sys.stderr = sys.__stderr__


def run_traced(copy: Copy, options: Sequence[str], log: Path) -> Outcome:
    """Run one copy, in a child forked from this process, under `strace OPTIONS`.

    strace counts from the copy's first call, and for each of its threads apart. What is loaded late
    is to be loaded before.
    """
    child = os.fork()
    if not child:
        os._exit(_run(copy, partial(signal.raise_signal, signal.SIGSTOP)))
    os.waitpid(child, os.WUNTRACED)
    command = ["strace", "-f", "-o", str(log), *options, "-p", str(child)]
    try:
        tracer = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    except FileNotFoundError:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        unavailable("strace is not installed")
    assert tracer.stderr
    complaint = tracer.stderr.readline()
    os.kill(child, signal.SIGCONT)
    pidfd = os.pidfd_open(child)
    hung = not select.select([pidfd], [], [], TIMEOUT)[0]
    os.close(pidfd)
    if hung:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    complaint += tracer.communicate()[1]
    assert "attached" in complaint, complaint
    lines = [line for line in log.read_text().splitlines() if "INJECTED" in line]
    injected = lines[0].split(maxsplit=1)[1] if lines else ""
    return Outcome(None if hung else status, Path(copy.stderr).read_text(), injected)


def _injections(log: Path) -> dict[str, str]:
    """The first fault of each process or its children."""
    found: dict[str, str] = {}
    lines = log.read_text().splitlines()
    children = [re.match(r"(\d+) .*\bclone.* = (\d+)$", line) for line in lines]
    parents = {match[2]: match[1] for match in children if match}
    for line in lines:
        if "INJECTED" in line:
            pid, text = line.split(maxsplit=1)
            found.setdefault(pid, text)
            found.setdefault(parents.get(pid, pid), text)
    return found


def serve(copies: Sequence[Copy]) -> None:
    """Run each copy in a child, ready to go; print what became of it.

    From the moment strace counts, this makes no call that strace makes fail.
    """
    import aiocp.partial
    import aiocp.receipt
    import aiocp.verify  # noqa: F401 - what is loaded late would be counted
    from aiocp import checksum, cli, command  # noqa: F401

    checksum.load("sha256")
    with contextlib.redirect_stderr(io.StringIO()):
        cli.run(["loads what is loaded late"])
    print("ready", flush=True)
    begun = time.monotonic()
    while "TracerPid:\t0\n" in Path("/proc/self/status").read_text():
        assert time.monotonic() < begun + TIMEOUT
        time.sleep(0.001)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    ended = []
    for copy in copies:
        child = os.fork()
        if not child:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            os._exit(_run(copy, partial(os.path.exists, _BEGIN)))
        ended.append((child, _status(child)))
    print(json.dumps(ended))


def _status(child: int) -> int | None:
    hung = False
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return None if hung else os.waitstatus_to_exitcode(status)
        if signal.sigtimedwait([signal.SIGCHLD], TIMEOUT) is None:
            hung = True
            os.kill(child, signal.SIGKILL)


def as_nobody(action: Callable[[], object]) -> bool:
    """Run `action` in a forked child as an ordinary user; whether it returned something true."""
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
            status = 0 if action() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _run(copy: Copy, go: Callable[[], object]) -> int:
    """The command, without the interpreter's start and end, when `go` returns; its exit status."""
    import aiocp.partial
    from aiocp import cli

    try:
        write_errors_to(copy.stderr)
        for each in copy.refused:
            if each == "O_TMPFILE":
                refuse_tmpfile()
            elif each == "patience":  # what can be resumed is marked all the time
                aiocp.partial.EVERY_BYTES = 0
            else:
                refuse(each, ENOSYS)
        if copy.uid:
            os.setgroups([])
            os.setgid(copy.uid)
            os.setuid(copy.uid)
        number, times = copy.shift
        for _ in range(times):
            _LIBC.syscall(number, -1, 0, 0, 0, 0, 0)
        go()
        return cli.run(list(copy.arguments))
    except BaseException:  # noqa: BLE001 - a child must not go on as its parent
        traceback.print_exc()
        return 70


if __name__ == "__main__":
    serve([Copy(**fields) for fields in json.loads(sys.argv[1])])
