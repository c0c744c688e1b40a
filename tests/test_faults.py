"""Every system call of a copy, every fault: the destination is the old bytes or the new ones.

A copy is traced, and then run again once for each of its calls and each error that the call can
give, with that error there, and once more with the call failing for ever from there on. Whatever
happens: exit status 0 if and only if the new bytes are in place, nothing else in the directory, one
line on standard error, and an end.

What strace cannot give honestly is a partial result (`retval=`): it fakes the result without making
the call. After a faked io_submit the kernel has none of the iocbs, so nobody could reap them, and
after a faked pwritev no byte is written. Short and partial results come from tests/fakes.py.
"""

import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pytest

import faults
from aiocp import copy_file
from aiocp.journal import Journal, Record
from aiocp.linux import File
from faults import Call, Copy, Outcome

KIB = 1 << 10
NEW = random.Random(1).randbytes(300 * KIB + 777)
OLD = random.Random(2).randbytes(100 * KIB)
NOBODY = 65534

FAULTS = {
    "openat": ["EIO", "EMFILE", "EACCES", "ENOENT", "EINTR"],
    "stat": ["EIO", "ENOENT", "EACCES"],
    "statx": ["ENOSYS", "EIO"],
    "fcntl": ["EINVAL", "EMFILE"],
    "ioctl": ["EIO"],
    "read": ["EIO", "EINTR"],
    "close": ["EIO", "ENOSPC"],
    "listxattr": ["EIO", "EOPNOTSUPP", "EPERM"],
    "getxattr": ["EIO", "EOPNOTSUPP"],
    "setxattr": ["ENOSPC", "EIO", "EPERM"],
    "chown": ["EIO", "EPERM"],
    "chmod": ["EIO", "EPERM"],
    "fallocate": ["ENOSPC", "EOPNOTSUPP", "EFBIG", "EINTR", "EIO"],
    "ftruncate": ["EIO", "EFBIG", "EPERM"],
    "mmap": ["ENOMEM"],
    "madvise": ["EINVAL", "ENOMEM"],
    "io_setup": ["EAGAIN", "ENOMEM", "ENOSYS", "EPERM"],
    "io_submit": ["EAGAIN", "EINVAL", "ENOMEM", "EINTR", "EIO"],
    "io_getevents": ["EINVAL", "EPERM", "EINTR", "ENOSYS"],
    "readv": ["EIO", "EINTR"],
    "writev": ["ENOSPC", "EIO", "EINTR"],
    "sync": ["EIO", "ENOSPC"],
    "clone": ["EAGAIN", "ENOMEM"],
    "link": ["EEXIST", "EIO", "ENOSPC", "EPERM"],
    "rename": ["EIO", "ENOSPC", "EINVAL", "ENOSYS"],
    "unlink": ["EIO", "EPERM"],
    "flock": ["EAGAIN", "EIO"],
}

# the names that a call has on one architecture or C library and not on the other
NAMES = {
    "stat": ["newfstatat", "fstat", "stat", "lstat"],
    "listxattr": ["flistxattr"],
    "getxattr": ["getxattr", "fgetxattr"],
    "setxattr": ["fsetxattr", "fremovexattr"],
    "chown": ["fchown"],
    "chmod": ["fchmod"],
    "io_getevents": ["io_getevents", "io_pgetevents"],
    "readv": ["preadv", "preadv2", "pread64"],
    "writev": ["pwritev", "pwrite64"],
    "sync": ["fdatasync", "fsync", "syncfs"],
    "clone": ["clone", "clone3"],
    "link": ["linkat"],
    "rename": ["rename", "renameat", "renameat2"],
    "unlink": ["unlink", "unlinkat"],
}
ERRORS = {name: errors for call, errors in FAULTS.items() for name in NAMES.get(call, [call])}

# what there is no way around, so that the copy has to fail
FATAL = {
    (name, error)
    for call, errors in {
        "chmod": ["EIO"],
        "chown": ["EIO"],
        "getxattr": ["EIO"],
        "fallocate": ["ENOSPC", "EFBIG", "EIO"],
        "ftruncate": ["EIO", "EFBIG", "EPERM"],
        "mmap": ["ENOMEM"],
        "readv": ["EIO"],
        "writev": ["ENOSPC", "EIO"],
        "sync": ["EIO", "ENOSPC"],
        "link": ["EEXIST", "EIO", "ENOSPC", "EPERM"],
        "rename": ["EIO", "ENOSPC"],
    }.items()
    for name in NAMES.get(call, [call])
    for error in errors
}

ALWAYS = {"openat", "stat", "statx", "fcntl", "close", "fallocate", "ftruncate", "chmod"}
AIO = {"io_setup", "io_submit", "io_getevents", "mmap"}
# by plain system calls
PLAIN = {"openat", "stat", "fcntl", "close", "readv", "writev", "sync"}


@dataclass(frozen=True)
class Case:
    """A way for a copy to go, and calls that it must have made, or the faults prove nothing."""

    name: str
    calls: set[str]
    old: bytes | None = None
    refused: tuple[str, ...] = ()
    uid: int = 0
    hard_linked: bool = False
    unreadable: bool = False  # the destination's directory
    new: bytes = NEW
    backup: bool = False  # to be made, with a link or, where there is none to be had, without
    verify: bool = False
    checksum: bool = False  # to be written into a file
    resume: bool = False  # what an earlier copy has begun, and leave what can be gone on with

    def __str__(self) -> str:
        return self.name

    def prepare(self, directory: Path) -> None:
        """Make a directory to copy into."""
        directory.mkdir()
        copy = directory / "copy"
        if self.old is not None:
            copy.write_bytes(self.old)
            copy.chmod(0o640)
            os.chown(copy, 1234, 2345)
            os.setxattr(copy, "user.note", b"kept")
        if self.hard_linked:
            os.link(copy, directory / "other")
        if self.uid:
            os.chown(directory, self.uid, self.uid)
        if self.unreadable:
            directory.chmod(0o333)


CASES = [
    Case("new", ALWAYS | AIO | {"link", "getxattr", "read"}),
    Case("replaced", ALWAYS | AIO | {"chown", "setxattr", "clone", "link", "rename"}, old=OLD),
    Case("new, without O_TMPFILE", ALWAYS | AIO | {"rename"}, refused=("O_TMPFILE",)),
    Case("replaced, without O_TMPFILE", ALWAYS | AIO | {"rename"}, OLD, ("O_TMPFILE",)),
    Case("replaced, without AIO", ALWAYS | {"readv", "writev", "sync"}, OLD, ("io_setup",)),
    Case("new, directory not readable", ALWAYS | AIO | {"sync"}, uid=NOBODY, unreadable=True),
    Case("in place", AIO | {"openat", "stat", "close", "ftruncate"}, OLD, hard_linked=True),
    Case("with a backup", ALWAYS | AIO | {"clone", "link", "rename"}, OLD, backup=True),
    Case("verified", ALWAYS | AIO | {"link"}, verify=True),
    Case("with a checksum", ALWAYS | AIO | {"link"}, checksum=True),
    Case("resumed", ALWAYS | AIO | {"rename", "unlink", "flock"}, OLD, ("patience",), resume=True),
    Case("small", PLAIN | {"link"}, new=NEW[:100_001]),
    Case("small, without O_TMPFILE", PLAIN | {"rename"}, refused=("O_TMPFILE",), new=NEW[:100_001]),
    Case("small, replaced", PLAIN | {"chown", "clone", "link", "rename"}, OLD, new=NEW[:100_001]),
]


@pytest.fixture
def directory(mount_point: Callable[[str], Path]) -> Iterator[Path]:
    """An empty directory on ext4 that any user can get to."""
    point = mount_point("ext4")
    point.parent.chmod(0o755)
    directory = point / "faults"
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)


class Round(NamedTuple):
    """What can be run in one go: calls, the error that those of each name give, for how long."""

    calls: list[Call]
    errors: dict[str, str]
    for_ever: bool


def rounds(calls: list[Call]) -> Iterator[Round]:
    """Every error of every call, and for ever the first one, or any of an AIO call."""
    for by_child in (False, True):
        yield from _rounds([call for call in calls if call.by_child is by_child])


def _rounds(calls: list[Call]) -> Iterator[Round]:
    apart = {call.name for call in calls if call.by_child or call.name in NAMES["clone"]}
    groups = [{call.name for call in calls} - apart, *({name} for name in apart)]
    for group in groups:
        for i in range(max((len(ERRORS[name]) for name in group), default=0)):
            once = {name: ERRORS[name][i] for name in group if i < len(ERRORS[name])}
            lasting = {name: once[name] for name in once if i == 0 or name.startswith("io_")}
            # an interruption that lasts for ever is waited for, for ever
            lasting = {name: error for name, error in lasting.items() if error != "EINTR"}
            for for_ever, errors in ((False, once), (True, lasting)):
                failing = [call for call in calls if call.name in errors]
                if failing:
                    yield Round(failing, errors, for_ever)


@pytest.mark.root
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_call_every_fault(case: Case, directory: Path) -> None:
    """The exit status tells whether the new bytes are in place, and nothing else has changed."""
    source = directory / "source"
    source.write_bytes(case.new)
    copy = command(case, source, directory / "dry")
    calls = [call for call in faults.trace(copy, directory / "log") if ours(call.name, call.text)]
    made = {call.name for call in calls}
    for name in case.calls:
        assert made & set(NAMES.get(name, [name])), f"{name} was not traced"

    def run(numbered: tuple[int, Round]) -> list[str]:
        (directory / f"round{numbered[0]}").mkdir()
        return list(complaints(case, source, directory / f"round{numbered[0]}", numbered[1]))

    with ThreadPoolExecutor(4) as pool:  # the end of an AIO context is 30 ms of waiting
        wrong = [
            complaint for each in pool.map(run, enumerate(rounds(calls))) for complaint in each
        ]
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


def command(case: Case, source: Path, to: Path) -> Copy:
    """The command for a case, in a directory that is made for it."""
    case.prepare(to)
    if case.resume:
        begin(source, to)
    options = [
        "--depth=4",
        "--block-size=64K",
        str(source),
        str(to / "copy"),
        *["-b"] * case.backup,
        *["--verify"] * case.verify,
        *["--resume"] * case.resume,
        *[f"--checksum=sha256={to}/sums"] * case.checksum,
    ]
    return Copy(options, f"{to}.stderr", case.refused, case.uid)


def complaints(case: Case, source: Path, directory: Path, faulty: Round) -> Iterator[str]:
    """Run one round; what is wrong with what its copies have left."""
    places = [directory / str(i) for i in range(len(faulty.calls))]
    copies = [command(case, source, to) for to in places]
    plan = list(zip(copies, faulty.calls, strict=True))
    errors = {name: f"error={error}" for name, error in faulty.errors.items()}
    outcomes = faults.inject(plan, errors, directory / "log", for_ever=faulty.for_ever)
    for to, call, outcome in zip(places, faulty.calls, outcomes, strict=True):
        fault = f"{faulty.errors[call.name]}{' for ever' * faulty.for_ever} at {call}"
        # how often io_submit and io_getevents are called, and malloc's mmap, is not always the same
        varies = call.name.startswith(("io_", "mmap"))
        # nor can the thread that writes the journal be told from others
        varies = varies or (case.resume and (call.by_child or call.name in NAMES["clone"]))
        if not (outcome.injected or varies):
            yield f"{fault}: it was not met"
        met = ours(call.name, outcome.injected)
        fatal = (call.name, faulty.errors[call.name]) in FATAL
        if "iov_len=1}" in call.text:  # only asked whether memory can be read from
            fatal = False
        if case.backup and call.name in NAMES["link"]:
            fatal = call.by_child  # without a link the backup is renamed
        if case.resume:  # the copy can do without what is kept of it on its way
            fatal = False
        if met and outcome.status == 0 and fatal:
            yield f"{fault}: the status is 0"
        yield from (f"{fault}: {wrong}; {outcome}" for wrong in judge(case, to, outcome))


def ours(name: str, text: str) -> bool:
    """Whether to let a call fail: of mmap only that of the buffers, not malloc's."""
    return name in ERRORS and (name != "mmap" or "MAP_NORESERVE" in text)


def judge(case: Case, directory: Path, outcome: Outcome) -> Iterator[str]:
    """What is wrong with what a copy has left."""
    names = {"copy", "other"} if case.hard_linked else {"copy"}
    backup = directory / "copy~"
    if case.backup and outcome.status == 0:
        names.add(backup.name)
        if not backup.exists() or backup.read_bytes() != case.old:
            yield "status 0 without the backup"
    if case.checksum:
        yield from judge_sums(case, directory, outcome)
        names.add("sums")
    if case.resume:
        yield from judge_kept(case, directory, outcome)
        return
    there = sorted(os.listdir(directory))
    copy = directory / "copy"
    found = copy.read_bytes() if copy.exists() else None
    lines = outcome.stderr.splitlines()
    if outcome.status is None:
        yield "it hung"
    elif outcome.status == 0:
        if found != case.new:
            yield "status 0 without the new bytes"
        if lines:
            yield "status 0 with a message"
    elif case.checksum and "cannot write" in outcome.stderr:
        if found != (case.new if outcome.status == 1 else case.old):
            yield "it says that the receipt is missing, and the copy is"
    elif outcome.status == 1:
        pattern = r"aiocp: cannot copy '[^']+' to '[^']+': [a-z][^:]+: .+"
        if len(lines) != 1 or not re.fullmatch(pattern, lines[0]):
            yield "the message is not one line with files, operation and reason"
        if "copied, but" in outcome.stderr:
            names |= {backup.name} if case.backup else set()
            if found != case.new:
                yield "it says copied and is not"
        elif "incomplete" in outcome.stderr:
            if not case.hard_linked:
                yield "it says incomplete but was not in place"
        elif found != case.old:
            yield "status 1 with " + ("the new bytes" if found == case.new else "other bytes")
        if "EINTR" in outcome.injected:
            yield "EINTR is no failure"
    else:
        yield "neither status 0 nor 1"
    if not set(there) <= names:
        yield f"left behind: {there}"


def begin(source: Path, directory: Path) -> None:
    """Have what a copy has left that was killed after 128 KiB."""
    seen = source.stat()
    partial = directory / ".copy.aiocp-partial"
    partial.write_bytes(source.read_bytes()[: 128 * KIB])
    partial.chmod(0o600)
    os.truncate(partial, seen.st_size)
    times = seen.st_mtime_ns, seen.st_ctime_ns
    inode = partial.stat().st_ino
    with File.open(os.fsencode(directory), os.O_RDONLY) as opened:
        record = Record(seen.st_ino, seen.st_size, *times, inode, 64 * KIB, 128 * KIB)
        Journal(opened, b".copy.aiocp-journal").write(record)


def judge_kept(case: Case, directory: Path, outcome: Outcome) -> Iterator[str]:
    """What is wrong with what a copy has left that can be resumed: it says what it is, and another
    one makes it whole."""
    copy = directory / "copy"
    found = copy.read_bytes()
    if outcome.status == 0:
        if found != case.new:
            yield "status 0 without the new bytes"
        words = r"(nothing was kept meanwhile: .+|begun anew, as what was begun is not whole)"
        lines = rf"(aiocp: warning: '{copy}': resume: {words}\n)*"
    else:
        if outcome.status != 1:
            yield "neither status 0 nor 1"
        if found != (case.new if "copied, but" in outcome.stderr else case.old):
            yield "status 1 with other bytes"
        lines = r"aiocp: cannot copy '[^']+' to '[^']+': [a-z][^:]+: .+\n"
    if not re.fullmatch(lines, outcome.stderr):
        yield "the message is not one line with files, operation and reason"
    if outcome.status == 1 and "copied, but" not in outcome.stderr:
        copy_file(directory.parent.parent / "source", copy, resume=True)
        if copy.read_bytes() != case.new:
            yield "resumed to other bytes"
    if os.listdir(directory) != ["copy"] and "remove journal" not in outcome.stderr:
        yield f"left behind: {os.listdir(directory)}"


def judge_sums(case: Case, directory: Path, outcome: Outcome) -> Iterator[str]:
    """What is wrong with the receipt: it is whole, and of what is in place."""
    sums, words = directory / "sums", f"'{directory}/sums': [a-z][^:]+: .+"
    digest = subprocess.check_output(["sha256sum"], input=case.new).split()[0]
    if sums.exists():
        if sums.read_bytes() != digest + b"  %b/copy\n" % os.fsencode(directory):
            yield "not what sha256sum prints"
    elif outcome.status == 0:
        yield "status 0 without a receipt"
    if "cannot write" in outcome.stderr and not re.fullmatch(
        rf"aiocp: cannot write {words}\n", outcome.stderr
    ):
        yield "the message is not one line with file, operation and reason"
