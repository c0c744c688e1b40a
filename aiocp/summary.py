"""What a command has done as a whole."""

import time
from collections import Counter
from typing import NamedTuple

from aiocp.outcome import Outcome
from aiocp.result import CopyResult, TreeResult, Worker

_KINDS = {"file": "files", "directory": "directories", "link": "links", "special": "specials"}
_SINGLE = {"directories": "directory", "specials": "special file"}


class Summary(NamedTuple):
    """What was copied: counts, `bytes` of contents, `errors`; what was `skipped` is in no other.

    `methods` counts files by how they were carried, as Outcome calls it; `direct` tells whether
    that was with O_DIRECT on both sides for all of them. `depth` and `peak_in_flight` are those of
    the operand that had most in flight. `synced` and `verified` hold for all that is counted.
    `elapsed` is in seconds, `rate` in bytes per second. `signal` is the name of what stopped it.
    `workers` are those of all operands.
    """

    files: int
    directories: int
    links: int
    specials: int
    skipped: int
    bytes: int
    holes: int
    methods: dict[str, int]
    depth: int
    peak_in_flight: int
    direct: bool
    synced: bool
    verified: bool
    errors: int
    elapsed: float
    rate: float
    signal: str | None
    exit_status: int
    workers: tuple[Worker, ...]

    def lines(self, *, dry_run: bool = False) -> list[str]:
        """In words; for a dry run what would have been."""
        counts = [
            _count(getattr(self, name), name)
            for name in ("files", "directories", "links", "specials", "errors")
            if getattr(self, name) or name == "files"
        ]
        if self.skipped:
            counts.append(f"{self.skipped:,} skipped")
        if dry_run:
            return [f"would copy {', '.join(counts)}: {self.bytes:,} bytes"]
        how = ", ".join(f"{count:,} {method}" for method, count in self.methods.items())
        done = [f"{self.peak_in_flight:,} of {self.depth:,} in flight"] * bool(self.depth)
        done.append("synced" if self.synced else "not synced")
        done += ["verified"] * self.verified
        pace = f"in {self.elapsed:.3f} s, {self.rate / 1e6:,.0f} MB/s"
        return [
            f"{', '.join(counts)}: {self.bytes:,} bytes {pace}",
            f"{how}{'; ' * bool(how)}{', '.join(done)}",
            *map(_work, self.workers),
        ]


def _count(number: int, name: str) -> str:
    """3 files, 1 directory."""
    words = "special files" if name == "specials" else name
    return f"{number:,} {words if number != 1 else _SINGLE.get(name, name[:-1])}"


def _work(worker: Worker) -> str:
    batches = f"{worker.batches:,} batch{'es' * (worker.batches != 1)}"
    return (
        f"{worker.name}: {batches}, {_count(worker.files, 'files')}: {worker.bytes:,} bytes in"
        f" {worker.busy:.3f} s, {worker.rate / 1e6:,.0f} MB/s;"
        f" {worker.peak_in_flight:,} of {worker.depth:,} in flight"
    )


def _together(one: Worker, other: Worker) -> Worker:
    """What a worker has done of two operands."""
    busy, size = one.busy + other.busy, one.bytes + other.bytes
    most = max(one, other, key=lambda each: (each.peak_in_flight, each.depth))
    return most._replace(
        batches=one.batches + other.batches,
        files=one.files + other.files,
        bytes=size,
        busy=busy,
        rate=size / busy if busy else 0.0,
    )


class Tally:
    """Adds up what is told of a copy; the clock runs from when it is made."""

    def __init__(self, *, sync: bool, verify: bool) -> None:
        self._begun = time.perf_counter()
        self._counts: Counter[str] = Counter()
        self._methods: Counter[str] = Counter()
        self._most = (0, 0)  # in flight, of the depth
        self._workers: dict[str, Worker] = {}
        self._synced, self._verified = sync, verify

    def entry(self, entry: Outcome | CopyResult) -> None:
        """Add what was copied, or left alone."""
        if entry.method == "skipped":
            self._counts["skipped"] += 1
            return
        self._counts[_KINDS[entry.kind]] += 1
        self._counts["bytes"] += entry.size
        if entry.kind == "file":
            self._methods[entry.method] += 1

    def error(self) -> None:
        """Add what was not copied."""
        self._counts["errors"] += 1

    def result(self, result: CopyResult | TreeResult) -> None:
        """Add what is known of an operand as a whole."""
        self._counts["holes"] += result.holes
        self._most = max(self._most, (result.peak_in_flight, result.depth))
        self._synced &= result.synced
        self._verified &= result.verified
        for worker in result.workers:
            known = self._workers.get(worker.name)
            self._workers[worker.name] = _together(known, worker) if known else worker

    def summary(self, exit_status: int, signal: str | None = None) -> Summary:
        """All of it, for now; what a `signal` has stopped is not known to be synced."""
        elapsed = time.perf_counter() - self._begun
        counts, methods = self._counts, self._methods
        return Summary(
            files=counts["files"],
            directories=counts["directories"],
            links=counts["links"],
            specials=counts["specials"],
            skipped=counts["skipped"],
            bytes=counts["bytes"],
            holes=counts["holes"],
            methods=dict(methods),
            depth=self._most[1],
            peak_in_flight=self._most[0],
            direct={*methods} == {"aio-direct"},
            synced=self._synced and signal is None,
            verified=self._verified and signal is None,
            errors=counts["errors"],
            elapsed=elapsed,
            rate=counts["bytes"] / elapsed,
            signal=signal,
            exit_status=exit_status,
            workers=tuple(self._workers.values()),
        )
