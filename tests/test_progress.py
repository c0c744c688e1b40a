"""How far a copy is, as a terminal shows it: a bar that fits, is whole, and not in the way."""

import fcntl
import os
import pty
import random
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from aiocp.progress import Progress

COMMAND = [sys.executable, "-m", "aiocp"]
KIB, MIB = 1 << 10, 1 << 20


class Terminal:
    """A command on a terminal of so many columns: what it has written, and what is to be seen."""

    def __init__(self, columns: int, *arguments: str | Path, cwd: Path) -> None:
        self._ours, theirs = pty.openpty()
        self.resize(columns)
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            process_group=0,  # else the kernel may leave out SIGTSTP, as there is no shell to go on
        )
        os.close(theirs)
        self.written = b""

    def resize(self, columns: int) -> None:
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))

    def read(self) -> bool:
        """Take what there is now; False at the end."""
        while select.select([self._ours], [], [], 0)[0]:
            try:
                self.written += os.read(self._ours, 65536)
            except OSError:  # nobody has the other side any more
                return False
        return True

    def end(self) -> int:
        """Take the rest; the exit status."""
        while self.read():
            select.select([self._ours], [], [], 0.1)
        os.close(self._ours)
        return self.process.wait(timeout=60)

    def drawn(self) -> list[str]:
        """Each bar that was drawn, without what erases the rest of the line."""
        lines = self.written.decode().replace("\r\n", "\n").split("\r")[1:]
        return [line.split("\x1b[K")[0] for line in lines if not line.startswith("\x1b[K")]

    def screen(self, columns: int) -> list[str]:
        """The lines as they stand at the end, if none was too long to be one."""
        lines, at = [""], 0
        for part in re.findall(r"\r|\n|\x1b\[K|[^\r\n\x1b]+", self.written.decode()):
            if part == "\r":
                at = 0
            elif part == "\n":
                lines.append("")
            elif part == "\x1b[K":
                lines[-1] = lines[-1][:at]
            else:
                lines[-1] = lines[-1][:at] + part + lines[-1][at + len(part) :]
                at += len(part)
                assert at < columns or "|" not in part
        return lines


@contextmanager
def fed(columns: int, tmp_path: Path, *options: str) -> Iterator[tuple[Terminal, int]]:
    """A copy of a FIFO, and a descriptor to write to it."""
    os.mkfifo(tmp_path / "fifo")
    terminal = Terminal(columns, *options, "fifo", "copy", cwd=tmp_path)
    fifo = os.open(tmp_path / "fifo", os.O_WRONLY)
    try:
        yield terminal, fifo
    finally:
        terminal.process.kill()
        terminal.process.wait()


def feed(fifo: int, terminal: Terminal) -> None:
    """Have a little more copied, and take what is said of it."""
    os.write(fifo, bytes(KIB))
    time.sleep(0.01)
    assert terminal.read()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "a tree with a long name").mkdir()
    for number in range(40):
        content = random.Random(number).randbytes(100 * KIB)
        (tmp_path / "a tree with a long name" / f"file{number}").write_bytes(content)
    return tmp_path / "a tree with a long name"


@pytest.mark.parametrize("columns", [1, 10, 20, 40, 60, 80, 200])
def test_a_bar_fits(tree: Path, tmp_path: Path, columns: int) -> None:
    """In one line, which ends at 100 %, with as much as there is room for."""
    terminal = Terminal(columns, "-r", "--reflink=never", tree.name, "copy", cwd=tmp_path)
    assert terminal.end() == 0
    drawn = terminal.drawn()
    assert max(map(len, drawn)) < max(columns, 2)
    last = drawn[-1]
    assert terminal.written.endswith(b"\r\n")
    if columns >= 10:
        assert "100%" in last
    if columns >= 40:
        assert "3.91M/3.91M" in last
        assert re.search(r"\d[kMG]?B/s", last)
    if columns >= 80:
        assert "40/40 files" in last
        assert last.startswith("a tree with a long")
    if columns == 200:
        assert re.search(r"\|\N{FULL BLOCK}+\|", last)


def test_a_name_that_would_move_the_cursor(tmp_path: Path) -> None:
    (tmp_path / "bad\n\x1b[2Jname").write_bytes(bytes(MIB))
    terminal = Terminal(80, "bad\n\x1b[2Jname", "copy", cwd=tmp_path)
    assert terminal.end() == 0
    assert b"\x1b[2J" not in terminal.written
    assert terminal.drawn()[-1].startswith(r"'bad'$'\n\033")


def test_at_most_ten_times_a_second(tmp_path: Path) -> None:
    """However often something is done; and it goes on being drawn."""
    begun = time.monotonic()
    with fed(80, tmp_path) as (terminal, fifo):
        while len(terminal.drawn()) < 10:
            feed(fifo, terminal)
        os.close(fifo)
        assert terminal.end() == 0
        seconds = time.monotonic() - begun
    assert len(terminal.drawn()) <= 10 * seconds + 2  # the first, and the last


def test_small_operands_are_not_drawn_more_often(tmp_path: Path) -> None:
    """All bars together are drawn ten times a second, and end as often."""
    (tmp_path / "into").mkdir()
    for number in range(300):
        (tmp_path / f"file{number}").write_bytes(b"small")
    names = [f"file{number}" for number in range(300)]
    begun = time.monotonic()
    terminal = Terminal(80, *names, "into", cwd=tmp_path)
    assert terminal.end() == 0
    assert len(terminal.drawn()) <= 2 * (10 * (time.monotonic() - begun) + 1)


def test_a_terminal_that_gets_narrower(tmp_path: Path) -> None:
    """What is drawn then fits in it; nothing is padded to what was there before."""
    with fed(120, tmp_path) as (terminal, fifo):
        while not any("[" in line for line in terminal.drawn()):
            feed(fifo, terminal)
        terminal.resize(20)
        before = len(terminal.drawn())
        while len(terminal.drawn()) < before + 3:
            feed(fifo, terminal)
        assert max(map(len, terminal.drawn()[before + 1 :])) < 20
        terminal.resize(120)
        before = len(terminal.drawn())
        while len(terminal.drawn()) < before + 3:
            feed(fifo, terminal)
        assert "[" in terminal.drawn()[-1]
        os.close(fifo)
        assert terminal.end() == 0


def test_stopped_and_continued(tmp_path: Path) -> None:
    """As by ^Z and fg: it goes on where it was, in the line where the cursor is then."""
    with fed(80, tmp_path) as (terminal, fifo):
        while len(terminal.drawn()) < 2:
            feed(fifo, terminal)
        terminal.process.send_signal(signal.SIGTSTP)
        _, status = os.waitpid(terminal.process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        terminal.read()
        stopped = len(terminal.drawn())
        terminal.process.send_signal(signal.SIGCONT)
        while len(terminal.drawn()) < stopped + 2:
            feed(fifo, terminal)
        os.write(fifo, b"end")
        os.close(fifo)
        assert terminal.end() == 0
    assert (tmp_path / "copy").read_bytes().endswith(b"\0end")
    assert terminal.screen(80)[-2].startswith("fifo: ")


@pytest.mark.parametrize("option", ["-v", "--json"])
def test_messages_go_above_the_bar(tree: Path, tmp_path: Path, option: str) -> None:
    """Names, objects and errors each stand in a line of their own, and the bar in the last."""
    (tmp_path / "copy" / "file7").mkdir(parents=True)
    names = ("-rT", tree.name, "copy")
    terminal = Terminal(500, option, "--reflink=never", "--depth=1", *names, cwd=tmp_path)
    assert terminal.end() == 1
    *lines, last = terminal.screen(500)
    assert last == ""
    said = [line for line in lines if re.fullmatch(r"'.*file\d+' -> '.*'|\{\"type.*\}", line)]
    assert len(said) == (39 if option == "-v" else 41)
    others = [line for line in lines if line not in said]
    assert re.match(
        r"aiocp: cannot copy '.*/file7' to 'copy/file7': .*: Is a directory$", others[0]
    )
    assert re.match(r"a tree with a long name: +98%\|.*\| .* 39/40 files \[", others[1])
    assert len(others) == (4 if option == "-v" else 2)  # with the summary


def test_sigusr1_tells_files_too(tmp_path: Path) -> None:
    """Of a tree; the bar makes room for it, and comes again."""
    (tmp_path / "tree").mkdir()
    os.mkfifo(tmp_path / "tree" / "fifo")
    command = ("-r", "--copy-contents", "tree", "copy")
    terminal = Terminal(100, *command, cwd=tmp_path)
    fifo = os.open(tmp_path / "tree" / "fifo", os.O_WRONLY)
    while b"aiocp: tree: " not in terminal.written:
        terminal.process.send_signal(signal.SIGUSR1)
        time.sleep(0.05)
        assert terminal.read()
    os.write(fifo, bytes(KIB))
    os.close(fifo)
    assert terminal.end() == 0
    assert terminal.drawn()[-1].startswith("tree: 100%")
    assert terminal.screen(100)[0].startswith("aiocp: tree: 0 B")


def test_lines_of_a_tree(tree: Path, tmp_path: Path) -> None:
    """Bytes and files, for a log."""
    command = [*COMMAND, "-r", "--reflink=never", "--progress", tree.name, "copy"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0
    assert re.fullmatch(
        r"aiocp: a tree with a long name: 3\.9 MiB of 3\.9 MiB, 100 %, 40 of 40 files,"
        r" \d+\.\d [KMG]iB/s, 0:\d\d, 0:00 to go",
        done.stderr.splitlines()[-1],
    )


def test_words() -> None:
    progress = Progress("tree")
    progress.update_files(12, 0)
    progress.update(5000, 0)
    assert progress.line().startswith("tree: 4.9 KiB, 12 files, ")
    progress.update_files(12, 4567)
    progress.update(5000, 10000)
    assert progress.line().startswith("tree: 4.9 KiB of 9.8 KiB, 50 %, 12 of 4,567 files, ")
