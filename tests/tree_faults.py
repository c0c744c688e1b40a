"""Fail any call of a copy of a tree, and look what was copied and said.

tests/test_tree_faults.py does it for some calls, scripts/crash for many. A tree is copied with -a
under strace, once for each name of a system call, each error that it can give, and some of its
calls. Each copy is then held against the source: every entry is the new one whole, or what was
there before and named in an error line; the exit status is 1 if there are such lines and 0 if not;
nothing else is there.

strace cannot fail what AIO does (reads, writes and syncs in flight): tests/test_tree_media.py does.
"""

import contextlib
import errno
import io
import os
import random
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import aiocp.tree_copier  # noqa: F401 - what is loaded late would be counted
from aiocp import cli, command  # noqa: F401 - what the command loads late
from faults import Copy, Outcome, run_traced
from test_faults import NAMES
from trees import KIB, Facts, complaints, facts, flaws

FAULTS = {
    "openat": ["EIO", "EMFILE"],
    "stat": ["EIO"],
    "statx": ["EIO", "ENOSYS"],
    "fcntl": ["EMFILE"],
    "getdents64": ["EIO"],
    "readlinkat": ["EIO"],
    "read": ["EIO"],
    "readv": ["EIO"],
    "write": ["ENOSPC"],
    "writev": ["EIO"],
    "close": ["EIO"],
    "listxattr": ["EIO"],
    "getxattr": ["EIO"],
    "setxattr": ["EIO"],
    "chown": ["EIO"],
    "chmod": ["EIO"],
    "utimensat": ["EIO"],
    "fallocate": ["ENOSPC"],
    "ftruncate": ["EIO"],
    "ioctl": ["EIO", "EOPNOTSUPP"],
    "io_submit": ["EIO", "EAGAIN", "EINVAL"],
    "io_getevents": ["EINTR", "EINVAL"],
    "sync": ["EIO"],
    "clone": ["EAGAIN"],
    "mkdir": ["EIO"],
    "symlinkat": ["EIO"],
    "mknodat": ["EIO"],
    "link": ["EIO", "EEXIST"],
    "rename": ["EIO"],
    "unlinkat": ["EIO"],
}
CALLS = {
    **NAMES,
    "readv": ["preadv", "preadv2", "readv", "pread64"],
    "write": ["write"],
    "writev": ["pwritev", "pwritev2", "writev", "pwrite64"],
    "mkdir": ["mkdir", "mkdirat"],
    "chown": ["fchown", "fchownat"],
    "chmod": ["fchmod", "fchmodat", "fchmodat2"],
}
ERRORS = {name: errors for call, errors in FAULTS.items() for name in CALLS.get(call, [call])}
# what there is no way around, at any of its calls
FATAL = {
    "mkdir",
    "symlinkat",
    "mknodat",
    "link",
    "rename",
    "chown",
    "chmod",
    "utimensat",
    "setxattr",
}
FATAL |= {"fallocate", "getdents64", "readlinkat", "sync"}
FATAL_CALLS = {name for call in FATAL for name in CALLS.get(call, [call])}


def make(root: Path, seed: int) -> None:
    """A tree that makes every call: small and large files, in memory and not, links, nodes."""
    rng = random.Random(seed)
    for directory in ("", "one", "one/below", "two", "two/empty"):
        (root / directory).mkdir(parents=True)
    for directory in ("", "one", "one/below", "two"):
        for i in range(5):
            (root / directory / f"small{i}").write_bytes(rng.randbytes(i * 3000))
        (root / directory / f"link{seed}").symlink_to("small1")
        (root / directory / "link").symlink_to(f"small{seed}")
        os.mkfifo(root / directory / "fifo", 0o600)
    (root / "one" / "large").write_bytes(rng.randbytes(300 * KIB + 777))
    os.link(root / "small1", root / "two" / "hard")
    os.link(root / "one" / "small2", root / "one" / "below" / "hard")
    os.link(root / "fifo", root / "two" / "hard fifo")
    for name in ("one", "one/small3", "one/large", "two/small4"):
        os.setxattr(root / name, "user.number", b"%d" % seed)
    for i, path in enumerate(sorted(root.rglob("*"))):
        os.chown(path, 1000 + seed, 1000 + i, follow_symlinks=False)
        if not path.is_symlink():
            path.chmod(0o750 + i % 8)
        os.utime(path, (seed, 1000 * seed + i), follow_symlinks=False)


def forget(root: Path) -> None:
    """Have half of the files out of memory, so that they are read from the disk."""
    for path in root.rglob("*[024e]"):
        if path.is_file():
            with path.open("rb") as file:
                os.fdatasync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Bench:
    """Where a tree is copied again and again, to nothing or `over` another one."""

    def __init__(self, top: Path, *, over: bool) -> None:
        self.top, self.over = top, over
        self.source, self.copy, self.log = top / "source", top / "copy", top / "log"
        make(self.source, 1)
        self.new: Facts = facts(self.source)
        self.old: Facts = {}
        if over:
            make(top / "old", 2)
            self.old = facts(top / "old")

    def run(self, *options: str) -> Outcome:
        """Copy under strace."""
        forget(self.source)
        if self.copy.exists():
            shutil.rmtree(self.copy)
        if self.over:
            subprocess.run(["cp", "-a", self.top / "old", self.copy], check=True)
        arguments = ["-aT", "--depth=4", str(self.source), str(self.copy)]
        return run_traced(Copy(arguments, str(self.top / "stderr")), options, self.log)

    def counts(self) -> dict[str, int]:
        """How often a copy makes each call: the thread that makes it most often."""
        outcome = self.run()
        assert (0, "") == outcome[:2]
        assert [] == list(flaws(self.new, self.old, facts(self.copy), []))
        calls = Counter(re.findall(r"^(\d+) +(\w+)\(", self.log.read_text(), re.MULTILINE))
        most: dict[str, int] = {}
        for (_, name), count in calls.items():
            most[name] = max(most.get(name, 0), count)
        return most

    def judge(self, outcome: Outcome) -> Iterator[str]:
        """What is wrong with what a copy has left and said."""
        if outcome.status is None:
            yield "it hung"
            return
        try:
            said = complaints(outcome.stderr, self.source, self.copy)
        except AssertionError:
            yield "its lines are not one for each, with both paths, operation and reason"
            return
        if outcome.status != bool(said):
            yield f"status {outcome.status}"
        yield from flaws(self.new, self.old, facts(self.copy), said)


def every_call(
    top: Path, points: Sequence[float], *, over: bool, cloned: bool = False
) -> list[str]:
    """Fail each call of a copy at `points`, from 0 (its first time) to 1 (its last), or each time
    if these are three; what went wrong by that. Where files are `cloned`, none is read."""
    with contextlib.redirect_stderr(io.StringIO()):
        cli.run(["loads what is loaded late"])
    bench = Bench(top, over=over)
    counts = bench.counts()
    copied = "ioctl" if cloned else "io_submit"
    missing = {"openat", copied, "linkat", "close", "fchmod", "fchown"} - counts.keys()
    wrong = [f"{name} is not called" for name in missing]
    for name, count in sorted(counts.items()):
        for error in ERRORS.get(name, []):
            some = {1 + round(point * (count - 1)) for point in points}
            for when in sorted(some if count > 3 else range(1, count + 1)):
                fault = f"inject={name}:error={error}:when={when}"
                outcome = bench.run("-e", f"trace={name}", "-e", fault)
                told = f"{fault} of {count}: %s; {outcome}"
                wrong += [told % each for each in bench.judge(outcome)]
                met = outcome.injected and error != "EEXIST"  # which there is a way around
                if met and outcome.status == 0 and name in FATAL_CALLS:
                    wrong.append(told % "not said")
                reason = os.strerror(getattr(errno, error))
                if met and outcome.status == 1 and reason not in outcome.stderr:
                    wrong.append(told % "the reason is another")
    return wrong
