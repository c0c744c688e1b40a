"""What is aimed at: a figure of a scenario's runs, and the least or the most that it is to be."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from bench_run import Run, Runs, ratio
from bench_sources import MIB

MEMORY_BEYOND = 32  # MiB, beyond depth x block size


@dataclass(frozen=True)
class Aim:
    """`figure` is None where it was not measured."""

    text: str
    figure: Callable[[Runs], float | None]
    least: float | None = None
    most: float | None = None

    def met(self, figure: float) -> bool:
        if self.least is not None:
            return figure >= self.least
        return self.most is None or figure <= self.most


def takes(peer: str, least: float, ours: str = "aiocp", *, inner: bool = False) -> Aim:
    """A peer takes at least so many times our time; `inner`: start-up excluded."""
    return Aim(
        f"{peer} takes >= {least:g} x the time of {ours}" + ", start-up excluded" * inner,
        lambda runs: ratio(runs, peer, ours, inner=inner),
        least=least,
    )


def within(peer: str, most: float, ours: str = "aiocp", *, inner: bool = False) -> Aim:
    """We take at most so many times a peer's time; `inner`: start-up excluded."""
    return Aim(
        f"{ours} takes <= {most:g} x the time of {peer}" + ", start-up excluded" * inner,
        lambda runs: ratio(runs, ours, peer, inner=inner),
        most=most,
    )


def cpu_within(peer: str, most: float) -> Aim:
    """We use at most so many times a peer's CPU time, start-up included."""

    def figure(runs: Runs) -> float | None:
        if peer not in runs:
            return None
        return median(run.cpu for run in runs["aiocp"]) / median(run.cpu for run in runs[peer])

    return Aim(f"aiocp uses <= {most:g} x the CPU time of {peer}", figure, most=most)


def cached_within(size: int, most: float) -> Aim:
    """At most so many times the bytes copied stay in the page cache."""
    text = f"left in the page cache <= {most:g} x the size"
    return _worst(text, lambda run: None if run.cached is None else run.cached / size, most)


def nothing_evicted() -> Aim:
    """What others keep in the page cache stays."""
    return _worst("evicted of another file: 0 bytes", lambda run: run.evicted, 0)


def reads_within(size: int) -> Aim:
    """Holes are not read."""
    return _worst(f"bytes read <= {size:,}", lambda run: float(run.told["bytes_read"]), size)


def memory_bounded() -> Aim:
    """Memory is that of the blocks, and a constant."""

    def beyond(run: Run) -> float:
        return float(run.peak_memory - run.told["depth"] * run.told["block_size"]) / MIB

    return _worst(f"memory <= depth x block size + {MEMORY_BEYOND} MiB", beyond, MEMORY_BEYOND)


def in_flight(size: int) -> Aim:
    """As many blocks in flight as asked for, or as there are."""

    def missing(run: Run) -> float:
        wanted = min(run.told["depth"], -(-size // int(run.told["block_size"])))
        return float(wanted - run.told["peak_in_flight"])

    return _worst("blocks missing in flight: 0", missing, 0)


def none_starved(blocks: int) -> Aim:
    """Each of many copies at once had all of its blocks in flight at its best."""
    text = f"a copy with the fewest in flight had {blocks} blocks: missing 0"
    return _worst(text, lambda run: blocks - float(run.told["least_in_flight"]), 0)


def _worst(text: str, value: Callable[[Run], float | None], most: float) -> Aim:
    """The largest figure of our runs counts."""

    def figure(runs: Runs) -> float | None:
        found = [value(run) for run in runs["aiocp"]]
        return max((each for each in found if each is not None), default=None)

    return Aim(text, figure, most=most)
