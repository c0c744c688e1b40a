"""The AIO context against the real kernel: the depth, the ladder down from AIO, the pool, forks."""

import errno
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from aiocp import context, copy_file
from aiocp.context import Context
from aiocp.slots import Slots
from filesystems import unavailable, write_cold

KIB, MIB = 1 << 10, 1 << 20


def strace(options: list[str], *arguments: str | Path) -> tuple[str, str]:
    """Run `aiocp --json ARGUMENTS` under strace; the file's object and the trace."""
    log = Path(arguments[-1]).parent / "strace.log"
    command: list[str | Path] = [
        "strace",
        "-f",
        "-o",
        log,
        *options,
        sys.executable,
        "-m",
        "aiocp",
        "--json",
    ]
    try:
        done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    except FileNotFoundError:
        unavailable("strace is not installed")
    assert done.returncode == 0, done.stderr
    trace = log.read_text()
    log.unlink()
    return done.stdout.splitlines()[0], trace


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_cold(tmp_path / "source", random.Random(1).randbytes(20 * MIB + 777))


def same(source: Path, copy: Path) -> bool:
    return subprocess.run(["cmp", source, copy]).returncode == 0


@pytest.mark.root
@pytest.mark.parametrize("depth", [1, 7, 64])
def test_what_the_kernel_sees(source: Path, tmp_path: Path, depth: int) -> None:
    """PREADV and PWRITEV, `depth` of them in flight, then one FDSYNC; nothing else carries data."""
    _, trace = strace(
        ["-v", "-e", "trace=io_setup,io_submit,io_getevents,io_pgetevents,write,pwrite64,pwritev"],
        "--depth",
        str(depth),
        "--block-size=128K",
        source,
        tmp_path / "copy",
    )
    blocks = -(-source.stat().st_size // (128 * KIB))
    operations = re.findall(r"IOCB_CMD_(\w+)", trace)
    assert [blocks, blocks] == [operations.count(name) for name in ("PREADV", "PWRITEV")]
    assert operations[-1] == "FDSYNC"  # of the file's data
    assert set(operations[:-1]) == {"PREADV", "PWRITEV"}
    assert f"io_setup({depth}," in trace
    assert not re.search(r"\b(pwrite64|pwritev)\(", trace)
    in_flight, most = 0, 0
    for call, result in re.findall(r"(io_submit|io_p?getevents)\(.* = (\d+)", trace):
        in_flight += int(result) if call == "io_submit" else -int(result)
        most = max(most, in_flight)
    assert depth == most
    assert in_flight == 0


@pytest.mark.parametrize(
    ("inject", "expected"),
    [
        ("io_setup:error=ENOSYS", {"method": "plain", "peak_in_flight": 1}),
        ("io_setup:error=EPERM", {"method": "plain"}),
        ("io_setup:error=ENOMEM", {"method": "plain"}),
        ("io_setup:error=EAGAIN", {"method": "plain"}),
        ("io_setup:error=EAGAIN:when=1..2", {"method": "aio-direct", "depth": 4}),
        ("io_submit:error=EAGAIN:when=1", {"method": "aio-direct"}),
        ("io_submit:error=EAGAIN:when=3", {"method": "aio-direct", "peak_in_flight": 16}),
        ("io_submit:error=ENOSYS", {"method": "plain", "peak_in_flight": 1}),
        ("io_submit:error=EPERM", {"method": "plain", "peak_in_flight": 1}),
        ("io_submit:error=EAGAIN", {"method": "plain", "peak_in_flight": 1}),
        ("io_getevents,io_pgetevents:error=EINTR:when=2..9", {"method": "aio-direct"}),
        ("io_submit:error=EINTR:when=2", {"method": "aio-direct"}),
        ("fallocate:error=EOPNOTSUPP", {"method": "aio-direct", "synced": True}),
    ],
)
@pytest.mark.root
def test_the_ladder(source: Path, tmp_path: Path, inject: str, expected: dict[str, Any]) -> None:
    """What AIO refuses is done with plain calls; the result says which rung it was."""
    call = inject.partition(":")[0]
    output, trace = strace(
        ["-e", f"trace={call}", "-e", f"inject={inject}"],
        "--depth=16",
        "--block-size=64K",
        source,
        tmp_path / "copy",
    )
    assert "INJECTED" in trace
    assert same(source, tmp_path / "copy")
    result = json.loads(output)
    assert expected == {name: result[name] for name in expected}


@pytest.mark.root
def test_refused_sync_is_done_plainly(source: Path, tmp_path: Path) -> None:
    """Before Linux 4.18 io_submit answers EINVAL to a sync: fdatasync does it then."""
    _, trace = strace(
        ["-e", "trace=fdatasync,fsync,io_submit", "-e", "inject=io_submit:error=EINVAL"],
        "--depth=1",
        "--block-size=1M",
        source,
        tmp_path / "copy",
    )
    assert ["fdatasync", "fsync"] == re.findall(r"(\w+)\(\d+\) += 0", trace)


def contexts() -> int:
    """How many AIO contexts this process has: each maps its ring."""
    return Path("/proc/self/maps").read_text().count("[aio]")


def test_a_context_is_used_again(source: Path, tmp_path: Path) -> None:
    """Destroying one takes 30 ms, so copies of any depth up to the largest share it."""
    copy_file(source, tmp_path / "copy", depth=64)
    kept = list(context._idle)
    before = contexts()
    for depth in (64, 1, 17):
        result = copy_file(source, tmp_path / "copy", depth=depth, block_size=64 * KIB)
        assert depth == result.peak_in_flight
    assert kept == list(context._idle)
    assert before == contexts()


def test_buffers_of_idle_contexts_are_bounded() -> None:
    """What is kept for reuse is at most a constant, whatever was used at once."""
    used = [Context(64, MIB) for _ in range(5)]
    for each in used:
        each.memory(63, MIB)[:] = b"x" * MIB
        each.close()
    assert sum(slots.mapped for slots in context._idle) <= context._KEEP_BYTES
    assert len(context._idle) <= context._KEEP_CONTEXTS


def test_idle_contexts_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the depth is halved, what is only kept for reuse is given back to fs.aio-max-nr."""
    for each in [Context(4, 4 * KIB) for _ in range(3)]:
        each.close()
    setup = Slots.setup

    def exhausted(self: Slots, maxevents: int) -> None:
        if context._idle:
            raise OSError(errno.EAGAIN, "exhausted")
        setup(self, maxevents)

    monkeypatch.setattr(Slots, "setup", exhausted)
    with Context(1000, 4 * KIB) as used:
        assert (used.depth, list(used.notes())) == (1000, [])


def test_a_child_forgets_its_parents_contexts(source: Path, tmp_path: Path) -> None:
    copy_file(source, tmp_path / "copy")
    assert context._idle
    child = os.fork()
    if not child:
        os._exit(len(context._idle))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert context._idle


def test_close_waits_for_what_is_in_flight(source: Path) -> None:
    """After close the kernel touches nothing of the buffers."""
    with source.open("rb") as file:
        for _ in range(20):
            used = Context(16, MIB)
            for slot in range(16):
                used.prep_read(slot, file.fileno(), 0, MIB, slot * MIB)
            used.submit()
            used.close()
            assert used._slots.in_flight == 0


def test_what_was_refused_is_noted(source: Path, tmp_path: Path) -> None:
    """The depth that fs.aio-max-nr left, and why plain calls were made, stand in the notes."""
    output, _ = strace(
        ["-e", "trace=io_setup", "-e", "inject=io_setup:error=EAGAIN:when=1..2"],
        "--depth=16",
        source,
        tmp_path / "copy",
    )
    assert json.loads(output)["notes"] == ["depth 4 instead of 16: fs.aio-max-nr is exhausted"]
    output, _ = strace(
        ["-e", "trace=io_setup", "-e", "inject=io_setup:error=ENOSYS"], source, tmp_path / "copy"
    )
    (note,) = json.loads(output)["notes"]
    assert note == "43 operations by plain system calls, AIO was refused: Function not implemented"


def test_perform_answers_as_the_system_call() -> None:
    """A refused operation's plain call gives the real errno."""
    with Context(2, 4 * KIB) as used:
        used.prep_read(0, 10_000, 0, 4096, 0)
        used.submit()
        assert used.reap() == [(0, -errno.EBADF)]
        assert used.reap() == []


def test_reap_waits_as_long_as_asked() -> None:
    """Also where nothing is in flight: whoever waits for a time does not go round and round."""
    with Context(1, 4096) as used:
        begun = time.monotonic()
        assert [] == used.reap(0.05)
        assert time.monotonic() - begun >= 0.05
