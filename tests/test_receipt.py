"""What --checksum prints and writes, by the tools that check it."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from filesystems import mounted, unavailable

KIB, MIB = 1 << 10, 1 << 20
CONTENT = random.Random(13).randbytes(3 * MIB + 777)
COMMAND = [sys.executable, "-m", "aiocp"]
TOOLS = {"sha256": "sha256sum", "blake2b": "b2sum", "xxh128": "xxh128sum"}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: files of several sizes, and a tree of them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tree" / "below").mkdir(parents=True)
    for name, size in (("empty", 0), ("one", 1), ("small", 5000), ("large", len(CONTENT))):
        (tmp_path / name).write_bytes(CONTENT[:size])
        (tmp_path / "tree" / name).write_bytes(CONTENT[:size])
        os.link(tmp_path / "tree" / name, tmp_path / "tree" / "below" / name)
    os.symlink("large", tmp_path / "tree" / "link")
    (tmp_path / "to").mkdir()
    return tmp_path


def aiocp(*arguments: str, **how: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, **how)


def check(receipt: str, algorithm: str = "sha256") -> list[str]:
    """The names in a receipt, all of them right."""
    if shutil.which(TOOLS[algorithm]) is None:
        unavailable(f"{TOOLS[algorithm]} is not installed")
    done = subprocess.run([TOOLS[algorithm], "-c", receipt], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return sorted(line.removesuffix(": OK") for line in done.stdout.splitlines())


def test_the_tools_check_it(here: Path) -> None:
    """Several operands, of any kind, in one receipt; with symbolic links there is nothing to sum.

    A file that has several names has a line for each.
    """
    for algorithm in TOOLS:
        done = aiocp(
            "-r",
            "--preserve=links",
            "--checksum",
            f"{algorithm}=sums",
            "empty",
            "large",
            "tree",
            "to",
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        names = ["empty", "large", "one", "small"]
        expected = [f"to/tree/{name}" for name in names]
        expected += [f"to/tree/below/{name}" for name in names]
        assert check("sums", algorithm) == sorted([*expected, "to/empty", "to/large"])
    (here / "to" / "tree" / "small").write_bytes(b"other")
    assert subprocess.run(["b2sum", "--quiet", "-c", "sums"], capture_output=True).returncode == 1


def test_names_with_anything_in_them(here: Path) -> None:
    names = [b"new\nline", b"back\\slash", b"return\r", b"\xff\xfe", b" ", b"-x", b"#", b"'"]
    for name in names:
        (here / "tree" / os.fsdecode(name)).write_bytes(name)
    done = aiocp("-r", "--checksum=sha256=sums", "tree", "copy")
    assert (done.returncode, done.stderr) == (0, "")
    printed = subprocess.check_output([*COMMAND, "--checksum=sha256", b"tree/\xff\xfe", b"\xff\n"])
    with (here / "sums").open("ab") as file:
        file.write(printed)
    sums = subprocess.run(["sha256sum", "-c", "--strict", "sums"], capture_output=True)
    assert (sums.returncode, sums.stdout.count(b": OK\n")) == (0, 8 + len(names) + 1)


def test_without_a_file_it_is_printed(here: Path) -> None:
    """And nothing else is: words go to standard error."""
    for how in ([], ["-v"], ["--debug"]):
        done = aiocp("--checksum", "sha256", *how, "large", "small", "to")
        assert done.returncode == 0
        (here / "sums").write_text(done.stdout)
        assert check("sums") == ["to/large", "to/small"]
        assert ("'large' -> 'to/large'" in done.stderr) == bool(how)
    done = aiocp("-v", "--checksum", "sha256=sums", "large", "to")
    assert done.stdout == "'large' -> 'to/large'\n"


def entries(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    """The objects of files and links that --json has printed."""
    assert (done.returncode, done.stderr) == (0, "")
    objects = [json.loads(line) for line in done.stdout.splitlines()]
    return [one for one in objects if one["type"] in ("file", "link")]


def test_with_json_it_is_in_the_object(here: Path) -> None:
    """Of each file; nothing else is printed."""
    expected = subprocess.check_output(["sha256sum", "large"], text=True).split()[0]
    for checksum in ("sha256", "sha256=sums"):
        (one,) = entries(aiocp("--json", "--checksum", checksum, "large", "copy"))
        assert one["checksum"] == expected
    assert check("sums") == ["copy"]
    (one,) = entries(aiocp("--json", "large", "copy"))
    assert one["checksum"] is None
    sums = {
        one["destination"]: one["checksum"]
        for one in entries(aiocp("--json", "-r", "--checksum", "sha256", "tree", "copied"))
    }
    assert len(sums) == 9
    assert sums.pop("copied/link") is None
    lines = [f"{digest}  {path}\n" for path, digest in sums.items()]
    (here / "sums").write_text("".join(lines))
    assert check("sums") == sorted(sums)


def test_an_old_receipt_is_replaced(here: Path) -> None:
    """As a copy would be: with its mode, behind a link; a new one has that of any new file."""
    (here / "sums").write_text("old " * 9000)
    (here / "sums").chmod(0o640)
    (here / "link").symlink_to("sums")
    assert aiocp("--checksum=sha256=link", "large", "copy").returncode == 0
    assert check("sums") == ["copy"]
    assert (here / "link").is_symlink()
    assert (here / "sums").stat().st_mode & 0o777 == 0o640
    assert aiocp("--checksum=sha256=new", "large", "copy", umask=0o027).returncode == 0
    assert (here / "new").stat().st_mode & 0o777 == 0o640


# --- what was not copied -------------------------------------------------------------------------


def test_it_has_what_is_in_place(here: Path) -> None:
    """Of operands and of trees; the exit status tells that something is missing."""
    done = aiocp("--checksum=sha256=sums", "nothing", "large", "to")
    assert done.returncode == 1
    assert check("sums") == ["to/large"]
    (here / "to" / "tree").mkdir()
    os.mkfifo(here / "to" / "tree" / "large")  # which nothing is written into
    done = aiocp("-r", "--checksum=sha256=sums", "tree", "to")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert len(check("sums")) == 7
    assert "to/tree/large" not in check("sums")
    done = aiocp("-n", "--checksum=sha256=sums", "large", "to")
    assert (done.returncode, (here / "sums").read_bytes()) == (0, b"")  # there is no new one


def test_where_nothing_is_copied_the_old_one_stays(here: Path) -> None:
    (here / "sums").write_text("old")
    assert aiocp("--checksum=sha256=sums", "nothing", "to").returncode == 1
    assert (here / "sums").read_text() == "old"
    assert aiocp("--checksum=sha256=new", "nothing", "to").returncode == 1
    assert not (here / "new").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_half_a_receipt_is_none(here: Path, number: signal.Signals) -> None:
    """When it is stopped the old one stays, and no other name."""
    os.mkfifo(here / "fifo")
    (here / "sums").write_text("old")
    before = sorted(os.listdir(here))
    process = subprocess.Popen(
        [*COMMAND, "--checksum=sha256=sums", "large", "fifo", "to"], stderr=subprocess.PIPE
    )
    while not (here / "to" / "large").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    process.communicate()
    assert process.returncode in (128 + number, -number)
    assert (here / "sums").read_text() == "old"
    assert sorted(os.listdir(here)) == before


@pytest.mark.root
def test_a_receipt_that_has_no_room(here: Path) -> None:
    """The copies are in place, and the message says what is not."""
    with mounted("tmpfs", MIB) as full:
        subprocess.run(["dd", "if=/dev/zero", f"of={full}/fill"], stderr=subprocess.DEVNULL)
        done = aiocp(f"--checksum=sha256={full}/sums", "large", "copy")
        assert done.returncode == 1
        assert done.stderr == (
            f"aiocp: cannot write '{full}/sums': write: No space left on device\n"
        )
        assert os.listdir(full) == ["fill"]
    assert (here / "copy").read_bytes() == CONTENT


def test_where_nothing_can_be_printed(here: Path) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [*COMMAND, "-r", "--checksum=sha256", "tree", "copy"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode == 1
    assert done.stderr.startswith("aiocp: cannot write to standard output: No space left")
    assert subprocess.call(["diff", "-r", "tree", "copy"]) == 0


# --- what is refused -----------------------------------------------------------------------------


def test_what_cannot_be_written_is_told_before_anything_is_copied(here: Path) -> None:
    """As wrong usage: the source and the copy, by any name, and what has to be written in place."""
    (here / "old").write_bytes(b"old")
    (here / "to old").symlink_to("old")
    os.mkfifo(here / "fifo")
    (here / "several").write_bytes(b"several")
    os.link(here / "several", here / "names")
    for file, words in {
        "large": "it is what is copied, or the copy",
        "./large": "it is what is copied, or the copy",
        "old": "it is what is copied, or the copy",
        "to old": "it is what is copied, or the copy",
        "missing/sums": "open destination: No such file or directory",
        "to": "open destination: Is a directory",
        "sums/": "open destination: Not a directory",
        "fifo": "not writing into a FIFO: File exists",
        "several": "it cannot be replaced as a whole",
        "/dev/null": "it cannot be replaced as a whole",
    }.items():
        done = aiocp(f"--checksum=sha256={file}", "large", "old")
        assert done.returncode == 2
        assert done.stderr == f"aiocp: cannot write {file!r}: {words}; try 'aiocp --help'\n"
    done = aiocp("--checksum=sha256=new", "large", "new")
    assert done.returncode == 2
    assert not (here / "new").exists()
    assert (here / "old").read_bytes() == b"old"


def test_a_name_that_a_copy_has_got(here: Path) -> None:
    """It is the copy's, also where there was a receipt before."""
    (here / "tree" / "sums").write_text("from the tree")
    (here / "copy").mkdir()
    for _ in range(2):
        done = aiocp("-rT", "--checksum=sha256=copy/sums", "tree", "copy")
        assert done.returncode == 1
        assert done.stderr.startswith("aiocp: cannot write 'copy/sums': ")
        assert (here / "copy" / "sums").read_text() == "from the tree"
    assert sorted(os.listdir("copy")) == sorted(os.listdir("tree"))


@pytest.mark.parametrize("how", [["-l"], ["-s"], ["--attributes-only"]])
def test_what_has_no_contents_to_sum(here: Path, how: list[str]) -> None:
    done = aiocp("--checksum=sha256", *how, "large", "copy")
    assert done.returncode == 2
    assert "--checksum is of contents" in done.stderr
    assert not (here / "copy").exists()


@pytest.mark.parametrize("value", ["md5", "sha", "sha256=", "", "=x"])
def test_there_are_three_algorithms(here: Path, value: str) -> None:
    done = aiocp(f"--checksum={value}", "large", "copy")
    assert done.returncode == 2
    assert "takes sha256, blake2b, xxh128, each also with =FILE, not" in done.stderr
    assert not (here / "copy").exists()


def test_lines_are_not_put_into_a_copy(here: Path) -> None:
    """Where what is copied goes to standard output."""
    done = aiocp("--checksum=sha256", "large", "/dev/stdout")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--checksum prints where the copy goes" in done.stderr
    arguments = ["--checksum=sha256=sums", "large", "/dev/stdout"]
    assert subprocess.check_output([*COMMAND, *arguments]) == CONTENT
