"""aiocp.shutil keeps shutil's rules: CPython's own tests of them, and what these do not look at."""

import os
import shutil as python_shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aiocp import shutil

# CPython's tests run with our functions in shutil's place. Left out is what looks behind them:
LEFT_OUT = {
    "test_copytree_winerror": "makes shutil's own copystat fail",
}
PROGRAM = """
import shutil, sys, unittest
from aiocp import shutil as ours
for name in ours.__all__:
    setattr(shutil, name, getattr(ours, name))
from test import test_shutil
cases = [test_shutil.TestCopyTree, test_shutil.TestCopy, test_shutil.TestMove]
suite = unittest.TestSuite(
    test
    for case in cases
    for test in unittest.defaultTestLoader.loadTestsFromTestCase(case)
    if test.id().split(".")[-1] not in sys.argv[1:]
)
assert suite.countTestCases() > 50
sys.exit(not unittest.TextTestRunner().run(suite).wasSuccessful())
"""


def test_cpythons_own_tests(tmp_path: Path) -> None:
    found = subprocess.run([sys.executable, "-c", "import test.test_shutil"], capture_output=True)
    if found.returncode:
        pytest.skip("this Python has no test.test_shutil")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *LEFT_OUT],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr


def test_a_tree_as_by_shutil(tmp_path: Path) -> None:
    """Names, contents, modes and times; holes stay holes, and the old contents until the new."""
    tree = tmp_path / "tree"
    (tree / "below" / "deep").mkdir(parents=True)
    for number in range(30):
        (tree / "below" / f"file{number}").write_bytes(os.urandom(number * 1000))
        (tree / "below" / f"file{number}").chmod(0o600 + number)
    (tree / "link").symlink_to("below/file3")
    (tree / "below" / "deep").chmod(0o711)
    os.utime(tree / "below", ns=(5, 10**18))
    asked: list[tuple[str, list[str]]] = []

    def ignore(directory: str, names: list[str]) -> list[str]:
        asked.append((directory, sorted(names)))
        return ["file7"]

    assert shutil.copytree(tree, tmp_path / "a" / "ours", ignore=ignore) == tmp_path / "a" / "ours"
    ours, asked = asked, []
    python_shutil.copytree(tree, tmp_path / "theirs", ignore=ignore)
    assert sorted(ours) == sorted(asked)
    for directory, _, names in os.walk(tmp_path / "theirs"):
        for name in [".", *names]:
            theirs = Path(directory, name)
            copy = tmp_path / "a" / "ours" / theirs.relative_to(tmp_path / "theirs")
            assert copy.is_symlink() == theirs.is_symlink()
            assert copy.stat().st_mode == theirs.stat().st_mode
            assert copy.stat().st_mtime_ns == theirs.stat().st_mtime_ns
            assert not theirs.is_file() or copy.read_bytes() == theirs.read_bytes()
    with pytest.raises(FileExistsError):
        shutil.copytree(tree, tmp_path / "theirs")


def test_special_files_are_errors(tmp_path: Path) -> None:
    """The rest is copied."""
    (tmp_path / "tree").mkdir()
    os.mkfifo(tmp_path / "tree" / "fifo")
    (tmp_path / "tree" / "file").write_bytes(b"x")
    (tmp_path / "tree" / "dangling").symlink_to("nowhere")
    with pytest.raises(shutil.Error) as raised:
        shutil.copytree(tmp_path / "tree", tmp_path / "copy")
    reasons = {Path(source).name: why for source, _, why in raised.value.args[0]}
    assert "is a named pipe" in reasons["fifo"]
    assert "No such file" in reasons["dangling"]
    assert os.listdir(tmp_path / "copy") == ["file"]


@pytest.mark.parametrize("name", ["copyfile", "copy", "copy2"])
def test_the_mode_is_shutils(tmp_path: Path, name: str) -> None:
    """Of a new file, and of one that was there."""
    (tmp_path / "source").write_bytes(b"x")
    (tmp_path / "source").chmod(0o751)
    for module in (shutil, python_shutil):
        to = tmp_path / module.__name__
        getattr(module, name)(tmp_path / "source", to)
        (tmp_path / "source").write_bytes(b"y")
        to.chmod(0o640)
        getattr(module, name)(tmp_path / "source", to)
    ours, theirs = tmp_path / "aiocp.shutil", tmp_path / "shutil"
    assert ours.stat().st_mode == theirs.stat().st_mode
    assert ours.read_bytes() == theirs.read_bytes() == b"y"
