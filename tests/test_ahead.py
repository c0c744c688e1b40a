"""Looking ahead changes nothing of what a walk gives, but that each entry has its status."""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aiocp import ahead
from aiocp.ahead import Ahead
from aiocp.linux import File
from aiocp.selection import EVERYTHING, Selection, select
from aiocp.tree import Directory, Enter, Entry, Leave, walk
from trees import make_tree

Steps = list[tuple[str, bytes, bool]]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("ahead") / "tree"
    make_tree(tree)
    for i in range(5):
        for j in range(5):
            (tree / f"many/{i}/{j}").mkdir(parents=True)
            (tree / f"many/{i}/{j}/file").touch()
    (tree / "many/to a directory").symlink_to("0")
    return tree


def steps(
    tree: Path, listing: Any, errors: list[bytes] | None = None, **rules: Any
) -> Iterator[tuple[str, bytes, bool, os.stat_result | None]]:
    file = File.open(os.fsencode(tree), os.O_RDONLY | os.O_DIRECTORY)
    root = Directory(file, b"", None, b"")

    def failed(path: bytes, error: OSError) -> None:
        if errors is not None:
            errors.append(path)

    with closing(walk(root, failed, listing=listing, **rules)) as walking:
        for step in walking:
            path = step.directory.path
            if isinstance(step, Entry):
                yield "entry", step.directory.join(step.name), step.is_file, step.seen
            else:
                yield "enter" if isinstance(step, Enter) else "leave", path, False, None
                assert isinstance(step, Enter | Leave)


@pytest.fixture(autouse=True)
def _slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each look took long."""
    monkeypatch.setattr(ahead, "_SLOW", -1.0)


@pytest.fixture(
    params=[
        {},
        {"_SLOW": 1.0},
        {"_SLOW": 1e-6, "_SAMPLE": 2},
        {"_MOST": 1},
        {"_MANY": 2, "_SAMPLE": 3},
        {"_TOGETHER": 3, "_MANY": 2},
    ],
    ids=str,
)
def _bounds(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in request.param.items():
        monkeypatch.setattr(ahead, name, value)


@pytest.mark.usefixtures("_bounds")
@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize(
    "selection",
    [
        EVERYTHING,
        select(lambda path, is_directory: path.endswith(b"/1"), None, None, recursive=True),
        select(None, None, ["many/3", "d/f1", "many/0/4/file"], recursive=True),
    ],
    ids=["all", "excluded", "listed"],
)
def test_it_is_the_same_walk(tree: Path, selection: Selection, follow: bool) -> None:
    def plain(step: tuple[str, bytes, bool, object]) -> tuple[str, bytes, bool]:
        return step[:3]

    rules: dict[str, Any] = {"follow": follow, "selection": selection}
    expected = list(map(plain, steps(tree, None, **rules)))
    looking = Ahead(follow=follow)
    found = list(steps(tree, looking, **rules))
    looking.close()
    assert expected == list(map(plain, found))
    for kind, path, _, seen in found:
        at = os.fsencode(tree) + b"/" + path
        if kind == "entry" and (os.path.lexists(at) if not follow else os.path.exists(at)):
            assert seen is not None
            there = os.stat(at, follow_symlinks=follow)
            assert (there.st_ino, there.st_mtime_ns) == (seen.st_ino, seen.st_mtime_ns)


def test_what_is_not_entered_is_given_up(tree: Path) -> None:
    """Or nothing would be looked into any more, after so many."""
    looking = Ahead(follow=False)
    file = File.open(os.fsencode(tree), os.O_RDONLY | os.O_DIRECTORY)
    root = Directory(file, b"", None, b"")
    with closing(walk(root, lambda *_: None, listing=looking)) as walking:
        for step in walking:
            if isinstance(step, Enter) and step.directory.depth == 2:
                step.directory.skip = True
    looking.close()
    assert looking._under_way <= 1  # the last one


def swap(tree: Path) -> None:
    (tree / "b").rename(tree / "gone")
    (tree / "c").rename(tree / "b")


def link(tree: Path) -> None:
    (tree / "b").rename(tree / "gone")
    (tree / "b").symlink_to("c")


def remove(tree: Path) -> None:
    (tree / "b/of b").unlink()
    (tree / "b").rmdir()


@pytest.mark.parametrize(
    ("act", "entries", "errors"),
    [
        (swap, [b"a/of a", b"b/of c"], [b"c"]),
        (link, [b"a/of a", b"c/of c"], [b"b"]),
        (remove, [b"a/of a", b"c/of c"], [b"b"]),
    ],
)
def test_what_was_looked_at_is_something_else_by_now(
    tmp_path: Path, act: Callable[[Path], None], entries: list[bytes], errors: list[bytes]
) -> None:
    """It is the walk that opens it, and what that finds counts."""
    for name in "abc":
        (tmp_path / name).mkdir()
        (tmp_path / name / f"of {name}").touch()

    class Sorted(Ahead):
        def _look_ahead(self, directory: Directory, below: list[bytes]) -> None:
            below.sort()
            super()._look_ahead(directory, below)
            self._pool.submit(int).result()

    looking = Sorted(follow=False)
    found, failed, acted = [], list[bytes](), False
    for kind, path, _, _ in steps(tmp_path, looking, failed):
        if kind == "entry":
            found.append(path)
        if path == b"a" and not acted:
            for level in looking._levels:
                for future in level.looking.values():
                    assert future is not None
                    future.result()
            act(tmp_path)
            acted = True
    looking.close()
    assert (entries, errors) == (found, failed)


def test_a_directory_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is told of once, by the walk."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    real = os.scandir

    def scandir(fd: int) -> Any:
        if os.path.samestat(os.fstat(fd), os.stat(tmp_path / "b")):
            raise PermissionError(13, "Permission denied")
        return real(fd)

    monkeypatch.setattr(os, "scandir", scandir)
    looking, failed = Ahead(follow=False), list[bytes]()
    assert 6 == len(list(steps(tmp_path, looking, failed)))
    looking.close()
    assert [b"b"] == failed
