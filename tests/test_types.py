"""What an editor and mypy know of the public names."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import aiocp
from aiocp import aio, shutil

PROGRAM = '''
"""All of the public API, as a program would use it."""

import asyncio
import os
import threading
from pathlib import Path
from typing import assert_type

import aiocp
from aiocp import (
    Cancelled,
    Copier,
    CopyResult,
    Outcome,
    SourceChanged,
    TreeResult,
    VerificationFailed,
    aio,
    copy_file,
    copy_tree,
    shutil,
)


def report(done: int, total: int) -> None:
    print(f"{done} of {total}")


def told(outcome: Outcome) -> None:
    assert_type(outcome.source, str)
    assert_type(outcome.backup, str | None)
    assert_type(outcome.removed, bool)


def newer(path: bytes, source: os.stat_result, existing: os.stat_result) -> bool:
    return source.st_mtime_ns > existing.st_mtime_ns


def backups(path: bytes, is_directory: bool) -> bool:
    return not is_directory and path.endswith(b"~")


def files(stop: threading.Event) -> None:
    result = copy_file(
        "disk.img",
        Path("backup"),
        depth=64,
        block_size=1 << 20,
        direct="auto",
        sparse="always",
        reflink="never",
        preserve=("mode", "timestamps"),
        backup="numbered",
        progress=report,
        cancel=stop,
    )
    assert_type(result, CopyResult)
    assert_type(result.size + result.holes + result.peak_in_flight, int)
    assert_type(result.rate, float)
    assert_type(result.method, str)
    assert_type(result.notes, tuple[str, ...])
    assert_type(copy_file(b"one", b"two", link="hard").backup, str | None)
    shutil.copy2("one", Path("two"), follow_symlinks=False)


def trees(stop: threading.Event) -> None:
    errors: list[OSError] = []
    result = copy_tree(
        "photos",
        "backup",
        exclude=backups,
        replace=newer,
        on_entry=told,
        on_error=errors.append,
        progress=report,
        cancel=stop,
    )
    assert_type(result, TreeResult)
    assert_type(result.errors, tuple[OSError, ...])
    assert_type(result.files + result.bytes + result.syncs, int)
    assert_type(result.synced, bool)


def many() -> None:
    with Copier(depth=64, preserve=("mode",), on_entry=told, progress=report) as copier:
        assert_type(copier, Copier)
        assert_type(copier.copy_file("one", Path("two"), in_place=True), CopyResult)
        assert_type(copier.copy_tree("one", "two", exclude=backups), TreeResult)


async def awaited() -> None:
    result, tree = await asyncio.gather(
        aio.copy_file("one", "two", progress=report),
        aio.copy_tree("one", "two", on_entry=told, exclude=backups),
    )
    assert_type(result, CopyResult)
    assert_type(tree, TreeResult)


def main() -> int:
    stop = threading.Event()
    try:
        files(stop)
        trees(stop)
        many()
        asyncio.run(awaited())
    except (SourceChanged, VerificationFailed) as error:
        assert_type(error.errno, int | None)
        return 3
    except Cancelled as stopped:
        assert_type(stopped, Cancelled)
        return 130
    except shutil.SameFileError as error:
        print(error.strerror)
        return 1
    except ExceptionGroup as group:
        assert_type(group.message, str)
        return 1
    return 0


print(aiocp.__all__)
raise SystemExit(main())
'''


def mypy(program: str, directory: Path) -> str:
    """What mypy --strict says of a program, "" if nothing."""
    (directory / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "program.py"],
        cwd=directory,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.stdout


def test_a_program_that_uses_it_all_has_no_error(tmp_path: Path) -> None:
    """By mypy --strict, from what is installed: nothing public is without a type."""
    assert mypy(PROGRAM, tmp_path) == ""


MISTAKES = """
from aiocp import Copier, aio, copy_file, copy_tree

copy_file("one", "two", sparse="sometimes")
copy_file("one", "two", block_size="1M")
copy_file("one", "two", progress=lambda done: None)
copy_file("one", "two", follow_symlinks=True)
copy_tree("one", 2)
copy_tree("one", "two", exclude=lambda path: True)
copy_tree("one", "two").size
aio.copy_file("one", "two").size
aio.copy_tree("one", "two", cancel=None)
Copier(colour="red")
Copier(reflink=True)
Copier().copy_file("one", "two", follow_symlinks=True)
Copier().copy_tree("one", "two", in_place=True)
"""


def test_mistakes_are_told(tmp_path: Path) -> None:
    """Each line that has one."""
    told = {int(line.split(":")[1]) for line in mypy(MISTAKES, tmp_path).splitlines()}
    lines = MISTAKES.splitlines()
    assert told == {number for number, line in enumerate(lines, 1) if line and "import" not in line}


FUNCTIONS = [
    aiocp.copy_file,
    aiocp.copy_tree,
    aio.copy_file,
    aio.copy_tree,
    aiocp.Copier,
    aiocp.Copier.copy_file,
    aiocp.Copier.copy_tree,
    shutil.copyfile,
    shutil.copy,
    shutil.copy2,
    shutil.copytree,
]


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda one: one.__qualname__)
def test_every_argument_has_a_type(function: Callable[..., object]) -> None:
    """And the function a docstring."""
    parameters = inspect.signature(function).parameters
    untyped = [one for one in parameters.values() if one.annotation is one.empty]
    assert [one.name for one in untyped if one.name != "self"] == []
    assert function.__doc__


@pytest.mark.parametrize(
    ("function", "awaited", "lacks"),
    [
        (aiocp.copy_file, aio.copy_file, {"link", "executor", "cancel"}),
        (aiocp.copy_tree, aio.copy_tree, {"executor", "cancel"}),
    ],
)
def test_what_is_awaited_has_the_same_arguments(
    function: Callable[..., object], awaited: Callable[..., object], lacks: set[str]
) -> None:
    """With the same types and defaults, in the same order."""
    ours = inspect.signature(awaited).parameters.values()
    others = inspect.signature(function).parameters.values()
    assert [str(one) for one in ours] == [str(one) for one in others if one.name not in lacks]
