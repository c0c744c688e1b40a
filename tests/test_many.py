"""Many copies by one Copier: what the functions promise, in one context and one set of buffers."""

import os
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from aiocp import Copier, context, copy_file, copy_tree, many
from aiocp.checksum import Algorithm
from aiocp.pace import Pace
from aiocp.slots import Slots
from test_leaks import contexts, descriptors
from trees import snapshot

MIB = 1 << 20


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.write_bytes(random.Random(5).randbytes(3 * MIB + 77))
    return path


@pytest.fixture(autouse=True)
def no_pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Where nothing idle is there before; no descriptor or context is left but idle ones."""
    there, before = contexts(), descriptors()
    idle: deque[Slots] = deque()
    monkeypatch.setattr(context, "_idle", idle)
    yield
    assert before == descriptors()
    assert contexts() == there + len(idle)
    while idle:
        idle.pop().close()


@pytest.fixture
def setups(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The depth of each context that is made."""
    made: list[int] = []
    setup = Slots.setup

    def count(self: Slots, maxevents: int) -> None:
        made.append(maxevents)
        setup(self, maxevents)

    monkeypatch.setattr(Slots, "setup", count)
    return made


def test_files_and_trees_share_a_context(source: Path, tmp_path: Path, setups: list[int]) -> None:
    """Also where its buffers are more than the pool of the process keeps."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "large").write_bytes(source.read_bytes())
    (tmp_path / "tree" / "small").write_bytes(b"small")
    with Copier(depth=48, block_size=4 * MIB, reflink="never") as copier:
        mapped = {slots.mapped for slots in copier._kept or ()}
        for number in range(3):
            result = copier.copy_file(source, tmp_path / f"copy{number}")
            assert (result.depth, result.block_size) == (48, 4 * MIB)
            tree = copier.copy_tree(tmp_path / "tree", tmp_path / f"tree{number}")
            assert (tree.depth, tree.files) == (48, 2)
            assert {slots.mapped for slots in copier._kept or ()} == mapped
    assert setups == [48]
    assert not sum(slots.mapped for slots in context._idle)
    for number in range(3):
        assert (tmp_path / f"copy{number}").read_bytes() == source.read_bytes()
        assert snapshot(tmp_path / "tree") == snapshot(tmp_path / f"tree{number}")


def test_options_are_those_of_the_copier_or_of_the_call(source: Path, tmp_path: Path) -> None:
    """Each goes to what has it."""
    source.chmod(0o640)
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(b"file")
    names: list[str] = []
    with Copier(
        direct="never",
        reflink="never",
        preserve=("mode", "timestamps"),
        on_entry=lambda outcome: names.append(outcome.destination),
    ) as copier:
        result = copier.copy_file(source, tmp_path / "copy")
        assert (result.method, result.depth) == ("aio-buffered", 64)
        assert (tmp_path / "copy").stat().st_mtime_ns == source.stat().st_mtime_ns
        copier.copy_file(source, tmp_path / "new", preserve=())
        assert (tmp_path / "new").stat().st_mtime_ns != source.stat().st_mtime_ns
        assert copier.copy_file(source, tmp_path / "link", link="hard").method == "hard-link"
        copier.copy_tree(tmp_path / "tree", tmp_path / "copied")
    assert names == [str(tmp_path / "copied"), str(tmp_path / "copied" / "file")]


def test_errors_are_those_of_the_functions(source: Path, tmp_path: Path, setups: list[int]) -> None:
    """And the next copy works."""
    with Copier() as copier:
        with pytest.raises(FileNotFoundError) as raised:
            copier.copy_file(tmp_path / "none", tmp_path / "copy")
        assert raised.value.filename2 == str(tmp_path / "copy")
        with pytest.raises(RuntimeError, match="enough"):
            copier.copy_file(source, tmp_path / "copy", reflink="never", progress=enough)
        with pytest.raises(FileNotFoundError):
            copier.copy_tree(tmp_path / "none", tmp_path / "copied")
        copier.copy_file(source, tmp_path / "copy", reflink="never")
    assert (tmp_path / "copy").read_bytes() == source.read_bytes()
    assert setups == [64]


def enough(*_: object) -> None:
    raise RuntimeError("enough")


def test_misuse_is_told(source: Path, tmp_path: Path) -> None:
    """Outside of its `with` statement, in two, with what cannot be."""
    copier = Copier()
    arguments: Any
    for call in (copier.copy_file, copier.copy_tree):
        with pytest.raises(ValueError, match="within its with statement"):
            call(source, tmp_path / "copy")
    with copier:
        with pytest.raises(ValueError, match="in use"):
            copier.__enter__()
        with pytest.raises(TypeError, match="follow_symlinks"):
            copier.copy_file(source, tmp_path / "copy", follow_symlinks=True)  # type: ignore[call-arg]
        with pytest.raises(ValueError, match="colour"):
            copier.copy_file(source, tmp_path / "copy", preserve=("colour",))
    with pytest.raises(ValueError, match="within its with statement"):
        copier.copy_file(source, tmp_path / "copy")
    with copier:  # again
        copier.copy_file(source, tmp_path / "copy")
    for arguments, message in (({"depth": 0}, "depth"), ({"block_size": 7}, "block size")):
        with pytest.raises(ValueError, match=message):
            Copier(**arguments)
    with pytest.raises(TypeError, match="colour"):
        Copier(colour="red")  # type: ignore[call-arg]


def test_a_copy_in_a_copy_and_threads_take_another_context(source: Path, tmp_path: Path) -> None:
    """None waits for the other, and each is whole."""
    with Copier(depth=4, block_size=65536, reflink="never") as copier:

        def nested(done: int, total: int) -> None:
            if not (tmp_path / "nested").exists():
                copier.copy_file(source, tmp_path / "nested")

        copier.copy_file(source, tmp_path / "copy", progress=nested)
        threads = [
            threading.Thread(target=copier.copy_file, args=(source, tmp_path / f"thread{n}"))
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for name in ("nested", "copy", "thread0", "thread1", "thread2", "thread3"):
        assert (tmp_path / name).read_bytes() == source.read_bytes()


def test_a_forked_child_takes_a_context_of_its_own(source: Path, tmp_path: Path) -> None:
    """It copies, and leaves that of its parent alone."""
    with Copier(depth=4, reflink="never") as copier:
        copier.copy_file(source, tmp_path / "before")
        child = os.fork()
        if not child:
            status = 1
            try:
                copier.copy_file(source, tmp_path / "child")
                copier.__exit__()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        copier.copy_file(source, tmp_path / "after")
    for name in ("before", "child", "after"):
        assert (tmp_path / name).read_bytes() == source.read_bytes()


@pytest.mark.parametrize(
    ("function", "options"), [(copy_file, many.FileOptions), (copy_tree, many.TreeOptions)]
)
def test_it_has_every_option(function: Callable[..., object], options: type) -> None:
    """Of the same type."""
    names = {"Algorithm": Algorithm, "Executor": Executor, "Pace": Pace}
    expected = get_type_hints(function, localns=names)
    for name in ("src", "dst", "depth", "block_size", "return"):
        del expected[name]
    assert get_type_hints(options, localns=names) == expected
