"""What a probe has found, as lines or as JSON, and drawn if that is asked for."""

import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

from aiocp.errors import Cancel
from aiocp.ground import Submission
from aiocp.host import Host
from aiocp.probe import Answer, Probe, probe
from aiocp.progress import size
from aiocp.quoting import quoted, size_name
from aiocp.sweep import BLOCK_SIZES, CLOSE, DEPTHS, Recommendation

_WIDTH = 15  # of the names


def report(path: str, plot: str | None, as_json: bool, cancel: Cancel) -> bool:
    """Probe and print; whether all that was asked for could be had.

    Errors are told here, those of printing raised. Raises Cancelled.
    """
    try:
        drawing = _drawing(plot)
    except ImportError as error:
        return _failed(f"plot {quoted(plot or '')}", f"{error}: install aiocp[plot]")
    try:
        with drawing as picture:
            try:
                found = probe(path, cancel=cancel)
            except OSError as error:
                return _failed(f"probe {quoted(path)}", error.strerror)
            if as_json:
                print(json.dumps(as_dict(found)))
            else:
                print(*lines(found), sep="\n")
            if found.error is not None:
                sys.stdout.flush()
                return _failed(f"probe {quoted(path)}", found.error)
            if picture is not None:
                picture.draw(found)
    except OSError as error:
        if not hasattr(error, "operation"):  # of printing
            raise
        assert plot is not None
        return _failed(f"plot {quoted(plot)}", error.strerror)
    return True


def _drawing(plot: str | None) -> Any:
    """What is to be drawn, opened where it is entered. Raises ImportError."""
    if plot is None:
        return nullcontext()
    from aiocp.heat_map import picture

    return picture(plot)


def _failed(what: str, why: str | None) -> bool:
    print(f"aiocp: cannot {what}: {why}", file=sys.stderr)
    return False


def as_dict(value: Any) -> Any:
    """Named tuples as objects, all the way down."""
    if hasattr(value, "_asdict"):
        return {name: as_dict(each) for name, each in value._asdict().items()}
    return [as_dict(each) for each in value] if isinstance(value, tuple) else value


def lines(found: Probe) -> Iterator[str]:
    """All of it for people, the recommendation last."""
    for name, words in [*_facts(found), *_limits(found.host)]:
        yield f"{name + ':':{_WIDTH}} {words}"
    if found.recommended is not None:
        yield ""
        yield from _table(found)
        yield ""
        yield _reason(found.recommended)
        block_size = size_name(found.recommended.block_size)
        yield f"recommended: --depth {found.recommended.depth} --block-size {block_size}"


def _facts(found: Probe) -> Iterator[tuple[str, str]]:
    yield found.kind, quoted(found.path)
    if found.filesystem is None:
        yield "file system", "none that is mounted"
    else:
        yield "file system", f"{found.filesystem}, {found.source}, on {found.mount_point}"
    if found.size is not None:
        yield "size", size(found.size)
    if found.free is not None:
        yield "free", size(found.free)
    if found.direct_read is not None:
        yield "O_DIRECT", _direct(found)
    if found.o_tmpfile is not None:
        yield "O_TMPFILE", _answer(found.o_tmpfile)
    if found.reflink is not None:
        yield "reflink", _answer(found.reflink)
    if found.aio is not None:
        yield "AIO", _answer(found.aio)
        for name, submission in (("reads", found.reads), ("writes", found.writes)):
            if submission is not None and found.aio.yes:
                yield name, _submission(submission)
    setting = found.host.huge_pages or "none"
    if found.buffers is None or found.huge is None:
        yield "huge pages", setting
    else:
        yield "huge pages", f"{setting}; {size(found.huge)} of {size(found.buffers)} of buffers"


def _limits(host: Host) -> Iterator[tuple[str, str]]:
    if host.aio_max_nr is not None:
        yield "fs.aio-max-nr", f"{host.aio_max_nr}, of them {host.aio_nr} in use"
    yield "open files", "no limit" if host.open_files is None else str(host.open_files)
    yield "cgroup memory", "no limit" if host.memory_max is None else size(host.memory_max)
    limits = " ".join(f"{name}={limit}" for name, limit in host.io_max.items())
    yield "cgroup I/O", limits or "no limit"
    yield "seccomp", "filters system calls" if host.seccomp else "no filter"


def _answer(answer: Answer) -> str:
    words = "yes" if answer.yes else "no"
    return f"{words}: {answer.why}" if answer.why else words


def _direct(found: Probe) -> str:
    assert found.direct_read is not None
    words = _answer(found.direct_read)
    if found.alignment:
        words += f", in multiples of {found.alignment} bytes"
    if found.direct_read.yes and found.direct_write is not None and not found.direct_write.yes:
        words += f"; writes: {_answer(found.direct_write)}"
    return words


def _submission(one: Submission) -> str:
    words = "asynchronous" if one.asynchronous else "not asynchronous"
    return (
        f"{words}: {1e3 * one.in_submit:.2f} of {1e3 * one.seconds:.2f} ms in io_submit,"
        f" {one.depth} x {size_name(one.block_size)}"
    )


def _table(found: Probe) -> Iterator[str]:
    rates = {(point.depth, point.block_size): point.rate / 1e6 for point in found.sweep}
    copies = found.kind == "directory"
    yield "MB/s " + ("copied in it:" if copies else "read from it (nothing was written):")
    yield f"{'depth':>7}" + "".join(f"{size_name(block):>8}" for block in BLOCK_SIZES)
    for depth in DEPTHS:
        row = [rates.get((depth, block)) for block in BLOCK_SIZES]
        if any(row):
            cells = [f"{'-' if rate is None else f'{rate:,.0f}':>8}" for rate in row]
            yield f"{depth:7}" + "".join(cells)


def _reason(one: Recommendation) -> str:
    percent = round(100 * (1 - CLOSE))
    memory, rate, best = size_name(one.memory), one.rate / 1e6, one.best / 1e6
    if one.flat:
        return f"All within {percent} % of the best, {best:,.0f} MB/s: {memory} of memory will do."
    if one.rate == one.best:
        return (
            f"{rate:,.0f} MB/s take {memory} of memory; with less all are over {percent} % slower."
        )
    return (
        f"{rate:,.0f} MB/s take {memory} of memory, the least within {percent} % of the best,"
        f" {best:,.0f} MB/s."
    )
