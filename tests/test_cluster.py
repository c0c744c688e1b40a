"""A tree, a file, by many workers of real engines: the same as by one process."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from errno import EIO
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from aiocp import Outcome, ranges
from clusters import Cluster
from engines import Copied, Engine, Twice, copy, on_dask, on_processes
from faults import as_nobody
from faulty_fuse import Rule, faulty_directory
from filesystems import scratch_directory
from trees import (
    KIB,
    MIB,
    differences,
    everything,
    facts,
    make_deep,
    make_refused,
    make_tree,
    make_wide,
    snapshot,
)

How = dict[str, Any]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hostile tree, that nobody changes."""
    root = tmp_path_factory.mktemp("cluster") / "source"
    make_tree(root)
    return root


# by blocks; whether there is an AIO context for them depends on who else has one on this machine
BLOCKWISE = {"aio-direct", "aio-buffered", "plain"}


def told_of(copied: Copied) -> Counter[tuple[object, ...]]:
    """What was told of each entry, with names relative to the tops, in whatever order.

    Of a file that has several names any may be the first.
    """
    top = copied.result.source, copied.result.destination

    def relative(one: Outcome) -> Outcome:
        if one.kind == "file" and os.stat(one.source).st_nlink > 1:
            one = one._replace(method="", size=0)
        elif one.method in BLOCKWISE:
            one = one._replace(method="blockwise")
        paths = os.path.relpath(one.source, top[0]), os.path.relpath(one.destination, top[1])
        backup = one.backup and os.path.relpath(one.backup, top[1])
        return one._replace(source=paths[0], destination=paths[1], backup=backup)

    return Counter(map(relative, copied.told))


def errors_of(copied: Copied, *, words: bool = True) -> Counter[tuple[object, ...]]:
    """Each error by what it is of, and what it says."""
    return Counter(
        (
            type(error),
            error.errno,
            words and error.strerror,
            os.path.relpath(error.filename, copied.result.source),
            os.path.relpath(error.filename2, copied.result.destination),
        )
        for error in copied.errors
    )


def figures_of(copied: Copied) -> dict[str, object]:
    """What does not go by where the copy is and who makes it."""
    names = ["files", "directories", "links", "specials", "bytes", "holes", "reflinked"]
    names += ["synced", "verified"]
    return {name: getattr(copied.result, name) for name in names}


def unlike(one: Path, other: Path) -> list[bytes]:
    """The paths below that are not the same there."""
    ours, theirs = everything(one), everything(other)
    return [path for path in ours | theirs if ours.get(path) != theirs.get(path)]


# --- everything ----------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize(
    ("engine", "filesystem"),
    [("dask", "ext4"), ("dask", "tmpfs"), ("mpi", "xfs"), ("processes", "btrfs")],
    indirect=True,
)
def test_everything_is_kept(engine: Engine, filesystem: Path) -> None:
    """With preserve="all" rsync finds nothing left to do, and a walk of our own no difference."""
    source, destination = filesystem / "source", filesystem / "copy"
    make_tree(source)
    copied = engine(copy, source, destination, {"preserve": ["all"], "depth": 16})
    assert copied.errors == []
    assert differences(source, destination) == ""
    assert facts(source) == facts(destination)
    assert copied.result.synced
    assert {one.depth for one in copied.result.workers} == {16}
    assert {*range(17)} >= {one.peak_in_flight for one in copied.result.workers}


@pytest.mark.root
@pytest.mark.parametrize("shape", [make_deep, make_wide])
def test_no_shape_is_too_much(
    shape: Callable[[Path], None], mount_point: Callable[[str], Path], dask: Cluster
) -> None:
    """A path that is longer than any path may be, a directory of thousands."""
    top = Path(tempfile.mkdtemp(dir=mount_point("tmpfs")))
    shape(top / "source")
    copied = on_dask(dask)(copy, top / "source", top / "copy", {"preserve": ["all"]})
    assert copied.errors == []
    assert facts(top / "source") == facts(top / "copy")
    subprocess.run(["rm", "-r", top], check=True)


@pytest.mark.parametrize("after", [True, False])
def test_a_batch_that_runs_twice(source: Path, tmp_path: Path, after: bool, dask: Cluster) -> None:
    """Is the same as one that runs once, to the backups of what was there."""
    how = {"preserve": ["all"], "backup": "simple"}
    tops = [tmp_path / name / "copy" for name in ("ours", "theirs")]
    for top in tops:
        top.parent.mkdir()
        be_there_before(top)
    with dask.executor() as executor, Twice(executor, after=after) as twice:
        ours = copy(twice, source, tops[0], how)
    theirs = copy(None, source, tops[1], how)
    assert errors_of(theirs) == errors_of(ours)
    assert [] == unlike(tops[1].parent, tops[0].parent)


# --- the same as without -------------------------------------------------------------------------


def be_there_before(top: Path) -> None:
    """Make what the copies go to: other things under names of the hostile tree, and what is in the
    way of some of it."""
    for name in ("d/d", "empty", "wide/7", "d/f3"):
        (top / name).mkdir(parents=True)
    (top / "empty").chmod(0o700)
    for name in ("plain", "d/f4", "d/f5", "d/d/f9", "sparse", "fifo"):
        (top / name).write_bytes(b"old" * 100 * KIB)
        os.utime(top / name, (1, 1))
    (top / "wide/8").write_bytes(b"newer than what is to be copied")
    os.utime(top / "wide/8", (2**33, 2**33))
    (top / "acl").write_bytes(b"a file where a directory is to be")
    (top / "link").symlink_to("old")
    (top / "d/f6").symlink_to("../../elsewhere")
    (top.parent / "elsewhere").write_bytes(b"old")
    os.link(top / "d/f5", top / "its other name")
    (top / "nothing to do with it").write_bytes(b"other")


def excluded(path: bytes, is_directory: bool) -> bool:
    return path.endswith((b"f1", b"wide/1")) or path == b"d/d/d"


def included(path: bytes, is_directory: bool) -> bool:
    return path.endswith((b"f2", b"f9", b"hard")) or path == b"wide"


def is_newer(path: bytes, seen: os.stat_result, there: os.stat_result) -> bool:
    return seen.st_mtime > there.st_mtime


FILES = [b"plain", b"d/d/f5", b"d/hard", b"wide", b"nowhere", b"link", b"\xfelink\n"]

ENGINES = ["dask", "processes", "dask", "mpi"]  # each has its turns

SAME: dict[str, How] = {
    "as it is": {},
    "all": {"preserve": ["all"]},
    "with verification": {"verify": True, "checksum": "sha256", "preserve": ["mode", "timestamps"]},
    "another digest": {"checksum": "xxh128", "preserve": ["links"]},
    "links followed": {"follow_symlinks": True},
    "links followed and kept": {"follow_symlinks": True, "preserve": ["links"]},
    "no sync": {"sync": False},
    "all holes": {"sparse": "always"},
    "no holes": {"sparse": "never", "reflink": "never"},
    "in part": {"exclude": excluded, "include": included},
    "by name": {"files": FILES},
    "not into directories": {"files": FILES, "recursive": False},
    "what is newer": {"replace": is_newer},
    "what was there removed": {"remove_destination": True},
    "what was there backed up": {"backup": "numbered"},
    "what was there backed up simply": {"backup": "simple", "suffix": ".old", "force": True},
    "attributes": {"attributes_only": True, "preserve": ["all"]},
    "hard links": {"link": "hard"},
    "resumed": {"resume": True, "preserve": ["timestamps"]},
    "one file system": {"one_file_system": True, "preserve": ["links"], "allow_changed": True},
}


@pytest.mark.parametrize(
    ("engine", "how"), [*zip(cycle(ENGINES), SAME.values())], ids=SAME, indirect=["engine"]
)
def test_the_same_as_by_one_process(source: Path, tmp_path: Path, how: How, engine: Engine) -> None:
    """Into what is there: the same files, said in the same words, with the same errors."""
    assert_the_same(engine, source, tmp_path, how)


@pytest.mark.parametrize("name", ["all", "with verification", "all holes", "links followed"])
def test_the_same_by_ranges(
    name: str, source: Path, tmp_path: Path, dask: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where files are cut."""
    monkeypatch.setattr(ranges, "RANGE", 256 * KIB)
    give = ranges.Ranges.give
    given: list[None] = []
    monkeypatch.setattr(ranges.Ranges, "give", lambda one: given.append(give(one)))
    how = {one: what for one, what in SAME[name].items() if one != "checksum"}
    assert_the_same(on_dask(dask), source, tmp_path, how)
    assert len(given) > 20


def assert_the_same(engine: Engine, source: Path, tmp_path: Path, how: How) -> None:
    tops = [tmp_path / name / "copy" for name in ("ours", "theirs")]
    for top in tops:
        top.parent.mkdir()
        be_there_before(top)
    ours = engine(copy, source, tops[0], how)
    theirs = copy(None, source, tops[1], how)
    assert theirs.errors
    assert errors_of(theirs) == errors_of(ours)
    assert told_of(theirs) == told_of(ours)
    assert figures_of(theirs) == figures_of(ours)
    assert [] == unlike(tops[1].parent, tops[0].parent)


@pytest.mark.root
@pytest.mark.parametrize("filesystem", ["btrfs", "xfs"], indirect=True)
def test_blocks_are_shared(filesystem: Path, dask: Cluster) -> None:
    """Of every file, where the file system can."""
    (filesystem / "source").mkdir()
    for i in range(20):
        (filesystem / "source" / str(i)).write_bytes(os.urandom(i * 8 * KIB + 1))
    result = on_dask(dask)(copy, filesystem / "source", filesystem / "copy", {}).result
    assert (20, 20) == (result.files, result.reflinked)
    assert snapshot(filesystem / "source") == snapshot(filesystem / "copy")


@pytest.mark.root
def test_lines_of_json(source: Path, tmp_path: Path, dask: Cluster) -> None:
    """By the command, the same as without, in whatever order."""
    ours, theirs = (
        lines_of(source, tmp_path / "copy", *how)
        for how in (["--dask", dask.scheduler.address], [])
    )
    assert theirs.total() > 400
    assert theirs == ours


def lines_of(source: Path, to: Path, *how: str) -> Counter[str]:
    """What the command tells of each entry, and in the end, of what does not go by how it was."""
    command = [sys.executable, "-m", "aiocp", "--json", "-a", "--checksum=sha256", *how]
    done = subprocess.run([*command, source, to], capture_output=True, text=True, timeout=60)
    assert (0, "") == (done.returncode, done.stderr)
    shutil.rmtree(to)
    *entries, summary = map(json.loads, done.stdout.splitlines())
    methods = summary.pop("methods")
    assert sum(methods.values()) == summary["files"]
    for name in ("elapsed", "rate", "depth", "peak_in_flight", "workers", "direct"):
        del summary[name]
    for entry in entries:
        if entry["type"] == "file" and os.stat(entry["source"]).st_nlink > 1:
            del entry["method"], entry["size"]  # whichever name is the first
        elif entry.get("method") in BLOCKWISE:
            entry["method"] = "blockwise"
    return Counter(json.dumps(one, sort_keys=True) for one in (*entries, summary))


@pytest.mark.root
def test_files_that_cannot_be_read(tmp_path: Path, dask: Cluster) -> None:
    """Each is the error that it is without, and the others are there."""
    with faulty_directory() as directory:
        source = directory.mount_point / "source"
        source.mkdir()
        for name in ("bad", "good", "large and bad", "large"):
            data = os.urandom(3 * MIB if "large" in name else 5000)
            (directory.backing / "source" / name).write_bytes(data)
        faults = [Rule("read", EIO, name=name) for name in ("bad", "large and bad")]
        directory.fail(*faults)
        ours = on_dask(dask)(copy, source, tmp_path / "ours", {})
        theirs = copy(None, source, tmp_path / "theirs", {})
        assert len(theirs.errors) == 2
        assert errors_of(theirs) == errors_of(ours)
        assert figures_of(theirs) == figures_of(ours)
        assert [] == unlike(tmp_path / "theirs", tmp_path / "ours")


@pytest.mark.root
def test_as_an_ordinary_user() -> None:
    """What is refused to the caller is refused to the workers, in the same words."""
    with scratch_directory() as scratch:
        scratch.chmod(0o777)
        refused = make_refused(scratch / "source")
        # so that all is loaded that is loaded late, as others may not be able to
        on_processes(copy, scratch / "source", scratch / "as root", {"preserve": ["all"]})
        copy(None, scratch / "source", scratch / "as root", {"preserve": ["all"]})

        def copy_both() -> bool:
            how = {"preserve": ["all"]}
            ours = on_processes(copy, scratch / "source", scratch / "ours", how)
            theirs = copy(None, scratch / "source", scratch / "theirs", how)
            assert len(theirs.errors) == len(refused)
            # of two names of a file the second may be said to be missing for the first
            assert errors_of(theirs, words=False) == errors_of(ours, words=False)
            assert [] == unlike(scratch / "theirs", scratch / "ours")
            return True

        assert as_nobody(copy_both)


# --- figures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES[1:], indirect=True)
def test_what_the_workers_did_adds_up(source: Path, tmp_path: Path, engine: Engine) -> None:
    """To what the copy has come to; each is named, its rate is what it moved while it was busy."""
    result = engine(copy, source, tmp_path / "copy", {"depth": 8}).result
    assert result.workers
    assert (result.files, result.bytes) == (
        sum(one.files for one in result.workers),
        sum(one.bytes for one in result.workers),
    )
    for one in result.workers:
        assert re.fullmatch(rf"{os.uname().nodename}:\d+", one.name)
        assert 0 < one.batches <= one.files
        assert one.rate == pytest.approx(one.bytes / one.busy)
        assert 0 < one.busy < result.elapsed
        assert 0 <= one.peak_in_flight <= one.depth == result.depth == 8
    assert result.peak_in_flight == max(one.peak_in_flight for one in result.workers) > 0


SCRIPT = """
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from aiocp import copy_tree

if __name__ == "__main__":
    with ProcessPoolExecutor(2, mp_context=get_context(sys.argv[1])) as executor:
        result = copy_tree("source", "copy", executor=executor)
    assert result.files == sum(worker.files for worker in result.workers) == 1
"""


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_processes_that_begin_anew(start: str, tmp_path: Path) -> None:
    """Have what they need, however they are started; relative paths are the caller's."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "file").write_bytes(b"file")
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "script.py", start]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)
    assert (tmp_path / "copy" / "file").read_bytes() == b"file"


def test_there_are_none_without(source: Path, tmp_path: Path) -> None:
    assert copy(None, source, tmp_path / "copy", {}).result.workers == ()


@pytest.mark.root
def test_fifty_thousand_files(mount_point: Callable[[str], Path], dask: Cluster) -> None:
    """All of them, by all workers, and each is told of once."""
    with tempfile.TemporaryDirectory(dir=mount_point("tmpfs")) as directory:
        copy_fifty_thousand(Path(directory), dask)


def copy_fifty_thousand(top: Path, dask: Cluster) -> None:
    names = [f"{i % 250}/{i}" for i in range(50_000)]
    for i in range(250):
        (top / "source" / str(i)).mkdir(parents=True)
    directory = os.open(top / "source", os.O_RDONLY)
    for name in names:
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=directory)
        os.write(fd, name.encode())
        os.close(fd)
    os.close(directory)
    copied = on_dask(dask)(copy, top / "source", top / "copy", {})
    assert copied.errors == []
    assert len(copied.result.workers) == 4
    assert (50_000, 251, True) == (
        copied.result.files,
        copied.result.directories,
        copied.result.synced,
    )
    told = [one.destination for one in copied.told if one.kind == "file"]
    assert sorted(told) == sorted(f"{top}/copy/{name}" for name in names)
    directory = os.open(top / "copy", os.O_RDONLY)
    for name in names:
        fd = os.open(name, os.O_RDONLY, dir_fd=directory)
        assert os.read(fd, 100) == name.encode()
        os.close(fd)
    os.close(directory)
