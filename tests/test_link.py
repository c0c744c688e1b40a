"""Links in place of copies: what they are, that they are on the disk, what is refused."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aiocp import SourceChanged, copy_file, copy_tree
from aiocp.linux import File
from crash import disk
from test_tree import group_of
from trees import make_tree, snapshot

NEW = b"new" * 10_000


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(NEW)
    return tmp_path / "source"


def test_a_hard_link(source: Path, tmp_path: Path) -> None:
    """Another name of the source, or of what a link leads to; nothing was written."""
    (tmp_path / "link").symlink_to("source")
    result = copy_file(tmp_path / "link", tmp_path / "copy", link="hard")
    assert (tmp_path / "copy").samefile(source)
    assert not (tmp_path / "copy").is_symlink()
    assert ("hard-link", 0, True) == (result.method, result.bytes_written, result.synced)


def test_a_symbolic_link(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source as it was given; a relative path only where it leads there."""
    assert "symbolic-link" == copy_file(source, tmp_path / "copy", link="symbolic").method
    assert str(source) == os.readlink(tmp_path / "copy")
    monkeypatch.chdir(tmp_path)
    copy_file("source", "here", link="symbolic")
    assert "source" == os.readlink("here")
    os.mkdir("elsewhere")
    with pytest.raises(OSError, match="relative symbolic links only in the current directory"):
        copy_file("source", "elsewhere", link="symbolic")
    assert os.listdir("elsewhere") == []


@pytest.mark.parametrize("link", ["hard", "symbolic"])
def test_what_is_there(source: Path, tmp_path: Path, link: Any) -> None:
    """Stays without being told otherwise; is never missing for a moment; gets a backup if asked."""
    copy = tmp_path / "copy"
    copy.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        copy_file(source, copy, link=link)
    assert copy.read_bytes() == b"old"
    result = copy_file(source, copy, link=link, backup="simple")
    assert (str(copy) + "~", False) == (result.backup, result.removed)
    assert (NEW, b"old") == (copy.read_bytes(), copy.with_name("copy~").read_bytes())
    for force in (True, False):
        copy.unlink()
        copy.write_bytes(b"old")
        copy_file(source, copy, link=link, force=force, remove_destination=not force)
        assert copy.read_bytes() == NEW
    assert ["copy", "copy~", "source"] == sorted(os.listdir(tmp_path))


def test_a_hard_link_that_is_there(source: Path, tmp_path: Path) -> None:
    """Is all that was to be had; the source itself as a symbolic link would be lost."""
    (tmp_path / "copy").hardlink_to(source)
    copy_file(source, tmp_path / "copy", link="hard", backup="simple")
    copy_file(source, source, link="hard", force=True)
    with pytest.raises(OSError, match="same file"):
        copy_file(source, source, link="symbolic", force=True)
    with pytest.raises(OSError, match="same file"):
        copy_file(source, tmp_path / "copy", link="symbolic", force=True)
    assert ["copy", "source"] == sorted(os.listdir(tmp_path))
    assert NEW == source.read_bytes()


@pytest.mark.parametrize("copier", [copy_file, copy_tree])
def test_values_that_cannot_be(source: Path, tmp_path: Path, copier: Callable[..., object]) -> None:
    with pytest.raises(ValueError, match="link must be None, 'hard' or 'symbolic', not 'soft'"):
        copier(source, tmp_path / "copy", link="soft")


@pytest.mark.parametrize("link", ["hard", "symbolic"])
def test_directories_are_not_linked(tmp_path: Path, link: Any) -> None:
    (tmp_path / "source").mkdir()
    with pytest.raises(IsADirectoryError):
        copy_file(tmp_path / "source", tmp_path / "copy", link=link)


def test_a_source_that_is_replaced_meanwhile(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was not looked at is not linked to."""
    open_ = File.open

    def replace(path: bytes, flags: int, *arguments: Any, **more: Any) -> File:
        if path == os.fsencode(source):
            source.rename(tmp_path / "moved")
            source.write_bytes(b"another")
        return open_(path, flags, *arguments, **more)

    monkeypatch.setattr(File, "open", replace)
    with pytest.raises(SourceChanged):
        copy_file(source, tmp_path / "copy", link="hard")
    assert not (tmp_path / "copy").exists()


def is_directory(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


# --- trees ---------------------------------------------------------------------------------------


def test_a_tree_of_hard_links(tmp_path: Path) -> None:
    """New directories, and in them the very files, links and nodes of the source."""
    make_tree(tmp_path / "source")
    result = copy_tree(tmp_path / "source", tmp_path / "copy", link="hard", preserve="all")
    assert snapshot(tmp_path / "source") == snapshot(tmp_path / "copy")
    files = {path for path in (tmp_path / "source").rglob("*") if not is_directory(path)}
    for path in files:
        copy = tmp_path / "copy" / path.relative_to(tmp_path / "source")
        assert os.path.samestat(path.lstat(), copy.lstat())
    assert (0, 0) == (result.bytes, len(result.errors))
    assert result.files == len(files)


def test_a_tree_of_symbolic_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New directories, and in them a link to each entry, links too; relative ones cannot be."""
    make_tree(tmp_path / "source")
    result = copy_tree(tmp_path / "source", tmp_path / "copy", link="symbolic")
    for path in (tmp_path / "source").rglob("*"):
        copy = tmp_path / "copy" / path.relative_to(tmp_path / "source")
        if is_directory(path):
            assert copy.is_dir()
        else:
            assert os.readlink(copy) == str(path)
    assert (0, 0) == (result.files, len(result.errors))
    monkeypatch.chdir(tmp_path)
    errors = group_of(lambda: copy_tree("source", "relative", link="symbolic"))
    assert {errno.EINVAL} == {error.errno for error in errors}
    assert len(errors) == result.links


def test_a_tree_of_hard_links_over_another(tmp_path: Path) -> None:
    """What is there is an error each, and what is linked already is none."""
    for name in ("source", "copy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / "source" / "linked").write_text("linked")
    (tmp_path / "copy" / "linked").hardlink_to(tmp_path / "source" / "linked")
    (error,) = group_of(lambda: copy_tree(tmp_path / "source", tmp_path / "copy", link="hard"))
    assert (errno.EEXIST, str(tmp_path / "copy" / "file")) == (error.errno, error.filename2)
    copy_tree(tmp_path / "source", tmp_path / "copy", link="hard", force=True)
    assert (tmp_path / "copy" / "file").samefile(tmp_path / "source" / "file")


def test_a_link_in_place_of_what_it_leads_to(tmp_path: Path) -> None:
    """Would lose that: an error, and the file stays. With a backup it does anyway."""
    (tmp_path / "source").mkdir()
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "file").write_bytes(NEW)
    (tmp_path / "source" / "file").symlink_to(tmp_path / "copy" / "file")
    (error,) = group_of(lambda: copy_tree(tmp_path / "source", tmp_path / "copy"))
    assert "same file" in str(error)
    assert (tmp_path / "copy" / "file").read_bytes() == NEW
    copy_tree(tmp_path / "source", tmp_path / "copy", backup="simple")
    assert (tmp_path / "copy" / "file~").read_bytes() == NEW


# --- on the disk ---------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("sync", [True, False])
@pytest.mark.parametrize("link", ["hard", "symbolic"])
@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_a_power_cut_after_the_return(fstype: str, link: Any, sync: bool) -> None:
    """The name is there, and what was written to the source right before; else it would not be."""
    with disk(fstype, "shutdown") as target:
        top = target.mount_point
        for name in ("into", "tree", "tree/d"):
            (top / name).mkdir()
        target.sync()
        for name in ("source", "tree/d/file"):
            (top / name).write_bytes(NEW)
        copy_file(top / "source", top / "into" / "copy", link=link, sync=sync)
        copy_tree(top / "tree", top / "into" / "tree", link=link, sync=sync)
        target.cut()
        target.restart()
        there = [top / "into" / "copy", top / "into" / "tree" / "d" / "file"]
        assert [sync, sync] == [os.path.lexists(path) for path in there]
        if sync and link == "hard":
            assert [NEW, NEW] == [path.read_bytes() for path in there]
