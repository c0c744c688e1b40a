"""The command, stopped by a signal: at once, with nothing left behind, and saying so."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from filesystems import sparse_file

KIB, MIB = 1 << 10, 1 << 20
OLD = random.Random(2).randbytes(100 * KIB)
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
SOON = 5  # seconds; a second is promised, on a machine that does nothing else

# many seconds' worth of blocks
SLOWLY = ["--depth=1", "--block-size=4096", "--sparse=never"]


@contextmanager
def command(*arguments: str | Path) -> Iterator[subprocess.Popen[str]]:
    """Start the command; kill it if it is still there in the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "aiocp", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def wait_for(process: subprocess.Popen[str], opened: str) -> None:
    """Wait until the process has a file open whose name in /proc/PID/fd matches."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for fd in Path(f"/proc/{process.pid}/fd").iterdir():
            try:
                if re.fullmatch(opened, os.readlink(fd)):
                    return
            except FileNotFoundError:  # closed meanwhile
                pass
        assert process.poll() is None
        time.sleep(0.001)
    pytest.fail(f"{opened} was not opened")


def unnamed_in(directory: Path) -> str:
    """What the name in /proc/PID/fd of a file made with O_TMPFILE matches."""
    return re.escape(f"{directory}/") + r"#\d+ \(deleted\)"


def stopped(process: subprocess.Popen[str]) -> signal.Signals:
    """See that the process ends soon with one line and the status that belongs to it."""
    begun = time.monotonic()
    stdout, stderr = process.communicate(timeout=30)
    assert time.monotonic() - begun < SOON
    assert stdout == ""
    match = re.fullmatch(r"aiocp: stopped by (SIG\w+): '[^']+' was not copied\n", stderr)
    assert match, stderr
    number = signal.Signals[match[1]]
    assert 128 + number == process.returncode
    return number


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return sparse_file(tmp_path / "source", 512 * MIB)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("old", [OLD, None])
@pytest.mark.parametrize("moment", range(3))
def test_a_signal_stops_the_copy(
    source: Path, tmp_path: Path, number: signal.Signals, old: bytes | None, moment: int
) -> None:
    """The exit status tells the signal, and what was there before is as it was."""
    to = tmp_path / "directory" / "copy"
    to.parent.mkdir()
    if old:
        to.write_bytes(old)
    with command(*SLOWLY, source, to) as process:
        wait_for(process, unnamed_in(to.parent))
        time.sleep(moment * random.Random(f"{number} {moment}").random() / 10)
        process.send_signal(number)
        assert number == stopped(process)
    assert [to.name] * bool(old) == os.listdir(to.parent)
    assert old is None or old == to.read_bytes()


def test_more_signals_change_nothing(source: Path, tmp_path: Path) -> None:
    """However many come, one of those that came together is named, and nothing is left."""
    to = tmp_path / "directory" / "copy"
    to.parent.mkdir()
    for _ in range(5):
        to.write_bytes(OLD)
        with command("--depth=64", "--sparse=never", source, to) as process:
            wait_for(process, unnamed_in(to.parent))
            while process.poll() is None:
                for each in SIGNALS:
                    process.send_signal(each)
            assert stopped(process) in SIGNALS
        assert ["copy"] == os.listdir(to.parent)
        assert OLD == to.read_bytes()


def test_the_first_of_several_files(source: Path, tmp_path: Path) -> None:
    """What was copied before stays, and the files after are not begun."""
    (tmp_path / "first").write_bytes(OLD)
    (tmp_path / "last").write_bytes(OLD)
    (tmp_path / "directory").mkdir()
    files = [tmp_path / "first", source, tmp_path / "last"]
    with command(*SLOWLY, *files, tmp_path / "directory") as process:
        while not (tmp_path / "directory" / "first").exists():
            assert process.poll() is None
        wait_for(process, unnamed_in(tmp_path / "directory"))
        process.send_signal(signal.SIGTERM)
        assert signal.SIGTERM == stopped(process)
    assert ["first"] == os.listdir(tmp_path / "directory")


@pytest.mark.parametrize("number", SIGNALS)
def test_waiting_for_names(tmp_path: Path, number: signal.Signals) -> None:
    """Nothing is begun while --files-from is read: the process just ends."""
    os.mkfifo(tmp_path / "names")
    with command("--files-from", tmp_path / "names", tmp_path, tmp_path / "copy") as process:
        with (tmp_path / "names").open("wb"):  # has waited until it is being read
            process.send_signal(number)
            assert ("", "") == process.communicate(timeout=30)
        assert process.returncode == -number
    assert ["names"] == os.listdir(tmp_path)


@pytest.mark.parametrize("number", SIGNALS)
def test_waiting_for_a_writer(tmp_path: Path, number: signal.Signals) -> None:
    """A FIFO that nobody has opened to write."""
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with command(tmp_path / "fifo", tmp_path / "directory" / "copy") as process:
        wait_for(process, unnamed_in(tmp_path / "directory"))
        process.send_signal(number)
        assert number == stopped(process)
    assert [] == os.listdir(tmp_path / "directory")


@pytest.mark.parametrize("number", SIGNALS)
def test_waiting_for_more(tmp_path: Path, number: signal.Signals) -> None:
    """A FIFO whose writer has written some and keeps it open."""
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "fifo")
    with (
        command(tmp_path / "fifo", tmp_path / "directory" / "copy") as process,
        (tmp_path / "fifo").open("wb", buffering=0) as fifo,
    ):
        for _ in range(30):  # more than a pipe holds: so it is being read
            fifo.write(bytes(64 * KIB))
        process.send_signal(number)
        assert number == stopped(process)
    assert [] == os.listdir(tmp_path / "directory")


@pytest.mark.parametrize("number", SIGNALS)
def test_waiting_for_a_reader(source: Path, tmp_path: Path, number: signal.Signals) -> None:
    """A FIFO as destination that nobody has opened to read."""
    os.mkfifo(tmp_path / "fifo")
    with command(source, tmp_path / "fifo") as process:
        wait_for(process, re.escape(str(source)))
        process.send_signal(number)
        assert number == stopped(process)


def test_waiting_for_room(source: Path, tmp_path: Path) -> None:
    """A FIFO as destination whose reader reads no more."""
    os.mkfifo(tmp_path / "fifo")
    with (
        command(source, tmp_path / "fifo") as process,
        (tmp_path / "fifo").open("rb", buffering=0) as fifo,
    ):
        assert fifo.read(1) == b"\0"
        process.send_signal(signal.SIGINT)
        assert signal.SIGINT == stopped(process)


def test_ignored_signals_stay_ignored(tmp_path: Path) -> None:
    """As nohup wants it: the copy goes on to its end."""
    source = sparse_file(tmp_path / "source", 8 * MIB)
    (tmp_path / "directory").mkdir()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with command(*SLOWLY, source, tmp_path / "directory" / "copy") as process:
            wait_for(process, unnamed_in(tmp_path / "directory"))
            while process.poll() is None:
                process.send_signal(signal.SIGHUP)
            assert ("", "") == process.communicate()
            assert process.returncode == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert bytes(8 * MIB) == (tmp_path / "directory" / "copy").read_bytes()


def test_in_place_says_that_it_is_incomplete(source: Path, tmp_path: Path) -> None:
    """There the old bytes cannot be had back, so the line says so."""
    to = tmp_path / "copy"
    to.write_bytes(OLD)
    with command("--in-place", *SLOWLY, source, to) as process:
        wait_for(process, re.escape(str(to)))
        while to.stat().st_size == len(OLD):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
        assert process.returncode == 130
        assert stderr.endswith("was not copied; written in place, it is incomplete now\n")


def test_at_any_moment(tmp_path: Path) -> None:
    """From the start of the interpreter to its end: the old bytes or the new ones, and no more.

    Before the command has taken the signals they do to it what they do to any Python program: for
    SIGINT a KeyboardInterrupt, where the interpreter is still starting a status of 1.
    """
    source = tmp_path / "source"
    source.write_bytes(random.Random(1).randbytes(MIB))
    to = tmp_path / "directory" / "copy"
    to.parent.mkdir()
    chance = random.Random(3)
    ends = set()
    for _ in range(30):
        to.write_bytes(OLD)
        number = chance.choice(SIGNALS)
        with command(source, to) as process:
            time.sleep(chance.random() * 0.3)
            process.send_signal(number)
            _, stderr = process.communicate(timeout=30)
            ends.add(process.returncode)
            starting = "KeyboardInterrupt" in stderr
            assert process.returncode in (0, 128 + number, -number, starting and 1)
        expected = OLD if process.returncode else source.read_bytes()
        assert expected == to.read_bytes()
        assert ["copy"] == os.listdir(to.parent)
    assert len(ends) > 1
