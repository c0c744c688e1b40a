"""What a tree holds, counted ahead: what find(1) finds, and what the copy then does."""

import os
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from aiocp import copy_tree
from aiocp.count import Count
from aiocp.hard_links import HardLinks
from aiocp.outcome import Outcome
from aiocp.selection import EVERYTHING, Selection, select
from filesystems import mounted
from trees import make_deep, make_tree


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Of everything, and links to directories and to files, hard links among directories."""
    top = tmp_path / "source"
    make_tree(top)
    (top / "more" / "below").mkdir(parents=True)
    for number in range(300):
        (top / "more" / f"file{number}").write_bytes(b"x" * number)
    for number in range(0, 300, 3):
        (top / "more" / "below" / f"other{number}").hardlink_to(top / "more" / f"file{number}")
    (top / "elsewhere").symlink_to("more/below")
    (top / "to a file").symlink_to("more/file299")
    return top


def count(root: Path, **changed: Any) -> tuple[int, int]:
    """Entries and bytes, when it is through."""
    fd = os.open(root, os.O_RDONLY)
    arguments: dict[str, Any] = {
        "skip": lambda _: False,
        "links": None,
        "contents": True,
        "follow": False,
        "one_file_system": False,
        "selection": EVERYTHING,
        **changed,
    }
    counting = Count(fd, **arguments)
    while not counting.through():
        time.sleep(0.001)
    counting.close()
    os.close(fd)
    return counting.entries, counting.size


def find(root: Path, *tests: str, follow: bool = False, once: bool = False) -> tuple[int, int]:
    """Entries that are no directories, and bytes of regular files, of each inode `once`."""
    command: list[str | Path] = ["find", "-L" if follow else "-P", root, *tests]
    command += ["!", "-type", "d", "-printf", r"%y %s %i\0"]
    output = subprocess.run(command, capture_output=True).stdout  # it complains of loops of links
    found = [tuple(line.split()) for line in output.split(b"\0")[:-1]]
    files = [one for one in found if one[0] == b"f"]
    return len(found), sum(int(size) for _, size, _ in (set(files) if once else files))


def test_as_find(source: Path) -> None:
    assert find(source) == count(source)
    (source / "long").unlink()  # find(1) cannot follow it, so that it prints nothing
    assert find(source, follow=True) == count(source, follow=True)


def test_what_is_not_wanted(source: Path) -> None:
    """Neither files nor directories, with all that is in them."""

    def exclude(path: bytes, is_directory: bool) -> bool:
        return path.endswith(b"7") or (is_directory and path.endswith(b"below"))

    tests = ("-name", "*7", "-prune", "-o", "-type", "d", "-name", "below", "-prune", "-o")
    assert find(source, *tests) == count(source, selection=Selection(exclude))
    assert find(source) != count(source, selection=Selection(exclude))


def test_what_is_included(source: Path) -> None:
    """Wherever it is."""

    def include(path: bytes, is_directory: bool) -> bool:
        return path.endswith(b"7") and not is_directory

    included = count(source, selection=Selection(include=include))
    assert find(source, "-name", "*7") == included != count(source)


def test_names_of_one_file(source: Path) -> None:
    """Count as entries, and their bytes once; not at all if an earlier copy has them."""
    before = HardLinks()
    assert find(source, once=True) == count(source, links=before)
    entries, size = count(source, links=before)
    copied = source / "more" / "file297"
    seen = copied.stat()
    before.add((seen.st_dev, seen.st_ino), b"/", b"name", (1, 1))
    assert (entries, size - 297) == count(source, links=before)


@pytest.mark.root
def test_other_file_systems(source: Path) -> None:
    with mounted("tmpfs") as other:
        (other / "file").write_bytes(b"elsewhere")
        (source / "mount").mkdir()
        subprocess.run(["mount", "--bind", other, source / "mount"], check=True)
        try:
            assert find(source, "-xdev") == count(source, one_file_system=True)
            assert find(source) == count(source)
        finally:
            subprocess.run(["umount", source / "mount"], check=True)


def test_as_deep_as_it_may_be(tmp_path: Path) -> None:
    """Deeper than a path can name, and than directories are kept open."""
    source, copy = tmp_path / "deep", tmp_path / "copy"
    try:
        make_deep(source)
        result = copy_tree(source, copy, sync=False)
        done = result.files + result.links + result.specials
        assert (done, result.bytes) == count(source)
    finally:
        subprocess.run(["rm", "-rf", source, copy], check=True)  # shutil's needs a deep stack


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"preserve": ["links"]},
        {"follow_symlinks": True},
        {"follow_symlinks": True, "preserve": ["links"]},
        {"link": "hard"},
        {"attributes_only": True},
        {"exclude": lambda path, _: path.endswith(b"3")},
        {"reflink": "never", "sparse": "always", "verify": True},
    ],
)
def test_a_copy_ends_at_the_total(source: Path, tmp_path: Path, how: dict[str, Any]) -> None:
    """Less what was not copied: two files, for the total to be no mere echo of what is done."""
    (tmp_path / "copy" / "more" / "file7").mkdir(parents=True)
    (tmp_path / "copy" / "more" / "file199").mkdir()
    told: list[tuple[int, int]] = []
    files: list[tuple[int, int]] = []
    result = copy_tree(
        source,
        tmp_path / "copy",
        on_error=lambda _: None,
        progress=lambda *done: told.append(done),
        progress_files=lambda *done: files.append(done),
        **how,
    )
    missing = [error.filename for error in result.errors if not os.path.isdir(error.filename)]
    done = result.files + result.links + result.specials
    assert (done, done + len(missing)) == files[-1]
    lost = sum(os.path.getsize(file) for file in missing if os.path.exists(file))
    copied = 0 if how.get("link") or how.get("attributes_only") else result.bytes
    assert told[-1] == (copied, copied + (lost if copied else 0))


def test_what_is_left_alone_is_taken_off(source: Path, tmp_path: Path) -> None:
    """So that what remains is what is still to be done."""
    copy_tree(source / "more", tmp_path / "copy")
    for number in range(100, 200):
        (tmp_path / "copy" / f"file{number}").unlink()
    (tmp_path / "copy" / "file150").mkdir()
    files: list[tuple[int, int]] = []
    entries: list[Outcome] = []
    copy_tree(
        source / "more",
        tmp_path / "copy",
        replace=lambda *_: os.fsencode("file150") == _[0],
        on_entry=entries.append,
        on_error=lambda _: None,
        progress_files=lambda *done: files.append(done),
    )
    assert len([one for one in entries if one.method == "skipped"]) == 300
    assert files[-1] == (99, 100)


def test_a_copy_into_itself_is_not_counted(source: Path) -> None:
    """What the copy makes there would be counted for as long as it is made."""
    inside = source / "more" / "inside"
    inside.mkdir()
    inode = inside.stat().st_ino
    expected = count(source)
    for number in range(100):
        (inside / str(number)).write_bytes(b"copied")
    assert expected == count(source, skip=lambda seen: seen.st_ino == inode)
    assert expected != count(source)


def test_totals_are_told_from_the_beginning(tmp_path: Path) -> None:
    """While most is still to be copied; they never fall below what is done. None if not asked."""
    source = tmp_path / "source"
    source.mkdir()
    for number in range(3000):
        (source / str(number)).write_bytes(b"x" * 1000)
    told: list[tuple[int, int]] = []
    files: list[tuple[int, int]] = []
    arguments: dict[str, Any] = {
        "progress": lambda *done: told.append(done),
        "progress_files": lambda *done: files.append(done),
    }
    copy_tree(source, tmp_path / "copy", depth=8, **arguments)
    for calls, total in ((told, 3_000_000), (files, 3000)):
        assert all(done <= of for done, of in calls)
        assert (total, total) == calls[-1]
        assert any(done < total == of for done, of in calls)
    told.clear()
    files.clear()
    copy_tree(source, tmp_path / "again", totals=False, **arguments)
    assert ((3_000_000, 0), (3000, 0)) == (told[-1], files[-1])
    assert {0} == {of for _, of in told + files}


def test_nothing_is_left_when_a_copy_stops(source: Path, tmp_path: Path) -> None:
    """Neither the thread nor a descriptor."""

    def stop(*_: int) -> None:
        raise KeyError("enough")

    before = set(os.listdir("/proc/self/fd")), threading.enumerate()
    with pytest.raises(KeyError, match="enough"):
        copy_tree(source, tmp_path / "copy", progress=stop)
    assert before == (set(os.listdir("/proc/self/fd")), threading.enumerate())


@pytest.mark.parametrize("recursive", [False, True])
def test_what_is_listed(source: Path, recursive: bool) -> None:
    """Once, and only what is there."""
    files = ["more/file1", "./more//file1", "more/below", "missing", "../out", "to a file"]
    listed = select(None, None, files, recursive)
    below = find(source / "more" / "below") if recursive else (0, 0)
    named = find(source, "(", "-path", "*/more/file1", "-o", "-name", "to a file", ")")
    expected = (named[0] + below[0], named[1] + below[1])
    assert expected == count(source, selection=listed)
