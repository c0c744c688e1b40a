"""What of a source tree is copied: --include."""

import os
import subprocess
from pathlib import Path

import pytest

from aiocp import copy_tree
from forked import aiocp
from trees import differences, everything


def make(top: Path) -> Path:
    """A source with files that end in .c at several depths, and directories that have none."""
    for name in (
        *("a.c", "a.o", "d/b.c", "d/b.o", "d/deep/er/c.c", "none/x.o", "none/deep/y.o"),
        *("docs/one", "docs/sub/two", "late/first.o", "late/deep/z.c"),
    ):
        path = top / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (top / "src" / "empty").mkdir()
    (top / "src" / "docs" / "void").mkdir()
    (top / "src" / "d" / "link.c").symlink_to("b.c")
    os.mkfifo(top / "src" / "d" / "fifo.c")
    for path in [*(top / "src").rglob("*"), top / "src"]:
        os.utime(path, (1_000_000_000, 1_000_000_000), follow_symlinks=False)
    return top / "src"


def names(top: Path) -> set[str]:
    return {str(path.relative_to(top)) for path in top.rglob("*")}


# --- --include ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (["--include=*.c"], ["--include=*.c"]),
        (["--include=/*.c"], ["--include=/*.c"]),
        (["--include=b.*", "--include", "/none/**"], ["--include=b.*", "--include=/none/**"]),
        (["--include=*.c", "--exclude=deep"], ["--exclude=deep", "--include=*.c"]),
        (["--exclude=d/", "--include=b.c"], ["--exclude=d/", "--include=b.c"]),
        (["--include=nothing"], ["--include=nothing"]),
    ],
)
def test_include(tmp_path: Path, ours: list[str], theirs: list[str]) -> None:
    """Of files only what matches, and no directories that have nothing of it, as rsync -m has it;
    those that are made get all their attributes."""
    make(tmp_path)
    command = [
        "rsync",
        "-am",
        "--specials",
        *theirs,
        "--include=*/",
        "--exclude=*",
        "src/",
        "rsync",
    ]
    subprocess.run(command, cwd=tmp_path, check=True)
    done = aiocp(["-aT", *ours, "src", "aiocp"], tmp_path)
    assert (0, "") == (done.returncode, done.stderr)
    assert differences(tmp_path / "rsync", tmp_path / "aiocp") == ""
    assert names(tmp_path / "rsync") == names(tmp_path / "aiocp")


@pytest.mark.parametrize("pattern", ["docs", "docs/", "/docs", "docs/**", "do*"])
def test_a_directory_that_is_included(tmp_path: Path, pattern: str) -> None:
    """Comes with everything below it, what is empty too, unless only what is in it is meant."""
    make(tmp_path)
    assert aiocp(["-aT", f"--include={pattern}", "src", "new"], tmp_path).returncode == 0
    expected = {"docs", "docs/one", "docs/sub", "docs/sub/two", "docs/void"}
    assert expected == names(tmp_path / "new")


def test_exclude_counts_for_more_than_include(tmp_path: Path) -> None:
    """In any order."""
    make(tmp_path)
    words = ["--exclude=b.c", "--include=*.c", "--exclude=deep"]
    for number, order in enumerate((words, words[::-1])):
        copy = f"copy{number}"
        assert aiocp(["-rT", *order, "src", copy], tmp_path).returncode == 0
        assert {"a.c", "d", "d/fifo.c", "d/link.c"} == names(tmp_path / copy)


def test_include_is_about_what_is_below(tmp_path: Path) -> None:
    """Not about what is named: a file that is an operand is copied whatever it is called."""
    make(tmp_path)
    (tmp_path / "into").mkdir()
    done = aiocp(["-r", "--include=a.c", "src", "src/a.o", "into"], tmp_path)
    assert (0, "") == (done.returncode, done.stderr)
    assert {"a.o", "src", "src/a.c"} == names(tmp_path / "into")


def test_include_leaves_what_is_there_alone(tmp_path: Path) -> None:
    """A directory that nothing comes into is not even looked at."""
    make(tmp_path)
    (tmp_path / "new" / "none").mkdir(parents=True)
    (tmp_path / "new" / "none").chmod(0o500)
    before = everything(tmp_path / "new")[b"/none"]
    assert aiocp(["-aT", "--include=*.c", "src", "new"], tmp_path).returncode == 0
    assert before == everything(tmp_path / "new")[b"/none"]


def test_a_directory_in_the_way_of_what_is_included(tmp_path: Path) -> None:
    """One error for it, whatever is below; nothing for one that nothing comes into."""
    make(tmp_path)
    (tmp_path / "new").mkdir()
    for name in ("late", "none"):
        (tmp_path / "new" / name).write_text("a file")
    done = aiocp(["-rT", "--include=*.c", "src", "new"], tmp_path)
    assert done.returncode == 1
    assert ["aiocp: cannot copy 'src/late' to 'new/late': make directory: Not a directory"] == (
        done.stderr.splitlines()
    )
    assert (tmp_path / "new" / "d" / "deep" / "er" / "c.c").read_text() == "d/deep/er/c.c"


@pytest.mark.parametrize("include", ["*.c", "nothing"])
def test_include_in_a_deep_tree(tmp_path: Path, include: str) -> None:
    """Directories far above what is included are made with their attributes."""
    deep = tmp_path / "src" / "/".join(["d"] * 100)
    deep.mkdir(parents=True)
    (deep / "a.c").write_text("deep")
    for path in [*(tmp_path / "src").rglob("d")]:
        os.setxattr(path, "user.of", b"x")
    done = aiocp(["-aT", f"--include={include}", "src", "new"], tmp_path)
    assert (0, "") == (done.returncode, done.stderr)
    if include == "*.c":
        assert differences(tmp_path / "src", tmp_path / "new") == ""
    else:
        assert not any(path.is_file() for path in (tmp_path / "new").rglob("*"))


def test_include_of_the_library(tmp_path: Path) -> None:
    """It is asked of files and of directories, but not of what is in one that it has taken."""
    source, asked = make(tmp_path), set()

    def include(path: bytes, is_directory: bool) -> bool:
        asked.add((path, is_directory))
        return path in (b"docs", b"d/b.c")

    copy_tree(source, tmp_path / "new", include=include)
    expected = {"d", "d/b.c", "docs", "docs/one", "docs/sub", "docs/sub/two", "docs/void"}
    assert expected == names(tmp_path / "new")
    assert (b"docs", True) in asked
    assert not any(path.startswith(b"docs/") for path, _ in asked)
