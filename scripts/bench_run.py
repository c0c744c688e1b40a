"""Time one command, or all peers of a scenario in turns.

The peers take turns, in an order that moves on by one each round, so that what else the machine
does meets all of them alike. Outside the clock are what brings the source's bytes into memory or
out of it before, and counting and comparing after.
"""

import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from aiocp.linux import cached_bytes
from bench_sources import BYSTANDER, KIB, same


@dataclass(frozen=True)
class Run:
    """One copy: seconds, bytes, and what the program said of itself.

    `peak_memory` is the largest process's resident set, never less than that of this program,
    whose the kernel hands down through fork and exec. `cached` is what of the source and the copy
    the page cache held afterwards, `evicted` what it lost of another file; None where the kernel
    does not say.
    """

    wall: float
    cpu: float
    peak_memory: int
    cached: int | None = None
    evicted: int | None = None
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def inner(self) -> float:
        """Seconds without start-up, where the program says them."""
        return float(self.told.get("elapsed", self.wall))


Runs = dict[str, list[Run]]


@dataclass(frozen=True)
class Peer:
    """A shell command that copies "$1" to the new "$2".

    `copies`: what it leaves there is to be equal. `told`: its time is what it says itself.
    `clones`: where it can, whatever it is told: there it is no peer.
    """

    command: str
    copies: bool = True
    told: bool = False
    clones: bool = False


class Failed(Exception):
    """A peer did not copy."""


class WrongCopy(Exception):
    """A peer said that it did."""


def note(line: str) -> None:
    """Say on stderr how far it is."""
    print(line, file=sys.stderr, flush=True)


def timed(command: str, source: Path, copy: Path) -> Run:
    """Run a peer's shell command."""
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        begun = time.perf_counter()
        child = subprocess.Popen(
            ["sh", "-c", command, "sh", source, copy], stdout=output, stderr=errors
        )
        try:
            _, status, usage = os.wait4(child.pid, 0)
        except BaseException:
            child.kill()
            child.wait()
            raise
        wall = time.perf_counter() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        for stream in (output, errors):
            stream.seek(0)
        if child.returncode:
            raise Failed(errors.read().strip() or f"exit status {child.returncode}")
        return Run(
            wall,
            usage.ru_utime + usage.ru_stime,
            usage.ru_maxrss * KIB,
            told=_told(output.read()),
        )


def _told(output: str) -> dict[str, Any]:
    """The first object that a program said in JSON; of fio's the time of its slowest job."""
    if not output.startswith("{"):
        return {}
    told: dict[str, Any] = json.JSONDecoder().raw_decode(output)[0]
    if "jobs" in told:
        return {"elapsed": max(job["job_runtime"] for job in told["jobs"]) / 1000}
    return told


def cached(*paths: Path) -> int | None:
    """Bytes of these files, and of those below these directories, in the page cache."""
    files = [file for path in paths for file in ([path] if path.is_file() else _below(path))]
    try:
        return sum(map(_cachestat, files))
    except OSError:
        return _fincore(files)


def _cachestat(file: Path) -> int:
    """For a TiB of holes fincore(1) takes ten seconds."""
    with file.open("rb") as opened:
        return cached_bytes(opened.fileno(), 0, 0)[0]


def _fincore(files: list[Path]) -> int | None:
    command = ["xargs", "-0", "fincore", "--bytes", "--noheadings", "--output", "RES"]
    names = b"\0".join(map(os.fsencode, files))
    answer = subprocess.run(command, input=names, capture_output=True)
    return sum(map(int, answer.stdout.split())) if answer.returncode == 0 else None


def _below(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file())


class Race:
    """The peers of a scenario on a source of theirs, `prepare` before each run."""

    def __init__(
        self, directory: Path, peers: dict[str, Peer], prepare: Callable[[Path], None]
    ) -> None:
        self._directory = directory
        self.source = directory / "source"
        self.peers = dict(peers)
        self._prepare = prepare
        self._copies = 0
        self._tiny: Path | None = None

    def make(self, make: Callable[[Path], object], *, tiny: bool) -> None:
        """Make the source, in a process whose memory does not count as the peers' afterwards; with
        `tiny` also what each peer is to copy before."""
        child = multiprocessing.get_context("fork").Process(
            target=make, args=(self.source,), daemon=True
        )
        child.start()
        child.join()
        if child.exitcode:
            raise Failed("the source could not be made")
        if tiny:
            self._tiny = file = self._directory / "tiny"
            if self.source.is_dir():
                self._tiny.mkdir()
                file = self._tiny / "file"
            file.write_bytes(bytes(4096))

    def run(self, rounds: int, *, compare_all: bool, keep: bool) -> Runs:
        """Let every peer copy so often; drop those that cannot. `keep` the copies until the end."""
        runs: Runs = {}
        names = list(self.peers)
        for number in range(rounds):
            for name in list(names):
                try:
                    run = self._copy(self.peers[name], compare_all or number == 0, keep)
                except Failed as failure:
                    if number or name == "aiocp":
                        raise Failed(f"{name}: {failure}") from None
                    note(f"without {name}: {str(failure).splitlines()[-1]}")
                    names.remove(name)
                    del self.peers[name]
                    continue
                runs.setdefault(name, []).append(run)
                note(f"round {number + 1}: {name:<20} {run.wall:8.3f} s  cpu {run.cpu:.3f} s")
            names.append(names.pop(0))
        return runs

    def _start(self, peer: Peer) -> None:
        """Have a peer's program in memory, as that of somebody who uses it: it copies next to
        nothing. Only the source is cold."""
        if self._tiny is None:
            return
        copy = self._tiny.with_name("tiny-copy")
        with suppress(Failed):  # told when it is timed
            timed(peer.command, self._tiny, copy)
        remove(copy)

    def _copy(self, peer: Peer, compare: bool, keep: bool) -> Run:
        self._copies += 1
        copy = self._directory / f"copy-{self._copies}"
        bystander = self._directory / BYSTANDER
        self._prepare(self.source)
        self._start(peer)
        before = cached(bystander) if bystander.exists() else None
        run = timed(peer.command, self.source, copy)
        left = cached(bystander) if before is not None else None
        run = replace(
            run,
            wall=run.inner if peer.told else run.wall,
            cached=cached(self.source, copy),
            evicted=None if before is None or left is None else before - left,
        )
        if compare and peer.copies and not same(self.source, copy):
            raise WrongCopy(f"wrong copy by: {peer.command}")
        if not keep:
            remove(copy)
        return run


def remove(copy: Path) -> None:
    """Take a file or a tree away."""
    subprocess.run(["rm", "-rf", "--one-file-system", copy], check=True)


def ratio(runs: Runs, name: str, ours: str = "aiocp", *, inner: bool = False) -> float | None:
    """How many times our time a peer takes: the median over the rounds."""
    if name not in runs or ours not in runs:
        return None
    pairs = zip(runs[name], runs[ours], strict=True)
    if inner:
        return median(peer.inner / our.inner for peer, our in pairs)
    return median(peer.wall / our.wall for peer, our in pairs)
