"""Small files by the batch: what is for it, what it refuses to place, and what it keeps open."""

import os
import resource
import stat
import subprocess
from collections.abc import Iterator
from errno import EEXIST, ELOOP, EMFILE, ENOENT, ESTALE
from pathlib import Path

import pytest

from aiocp import SourceChanged, copy_tree
from aiocp.batch import Batch, SmallFile
from aiocp.engine import Sync
from aiocp.source import SMALL
from faults import in_child, refuse_tmpfile

OPEN_FILES = Path("/proc/self/fd")


@pytest.fixture
def places(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """Directories to copy from and to; no descriptor is left open by the test."""
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    before = len(list(OPEN_FILES.iterdir()))
    yield source, target
    assert before == len(list(OPEN_FILES.iterdir()))


def begin(
    source: Path,
    target: Path,
    *names: str,
    preserve: frozenset[str] = frozenset(),
    sync: Sync = Sync.NONE,
    allow_changed: bool = False,
    fresh: bool = False,
) -> Batch:
    """A batch of these names, opened."""
    batch = Batch(preserve, sync, allow_changed=allow_changed)
    fds = [os.open(path, os.O_RDONLY) for path in (source, target)]
    batch.enter("data", *fds, alignment=0, mask=0o022, fresh=fresh, acl=False, flush=False)
    for fd in fds:
        os.close(fd)
    for count, name in enumerate(names, 1):
        assert batch.add(name.encode()) == count
    return batch.open()


def end(batch: Batch) -> dict[str, OSError]:
    """Place what can be placed; the errors by name."""
    batch.place()
    errors = {batch.name(index).decode(): error for index, error in batch.failures()}
    batch.close()
    return errors


def transfers(batch: Batch) -> list[SmallFile]:
    return list(batch.transfers({}, 4096))


def test_what_is_in_memory_is_copied_at_once(places: tuple[Path, Path]) -> None:
    """Empty, small, and as large as small files are: nothing is left for the engine."""
    source, target = places
    sizes = {"empty": 0, "one": 1, "page": 4096, "largest": SMALL}
    for name, size in sizes.items():
        (source / name).write_bytes(os.urandom(size))
        (source / name).chmod(0o751)
    batch = begin(source, target, *sizes)
    assert [] == transfers(batch)
    assert not list(target.iterdir())
    assert {} == end(batch)
    assert (4, sum(sizes.values())) == (batch.placed, batch.size)
    for name in sizes:
        assert (source / name).read_bytes() == (target / name).read_bytes()
        assert stat.S_IMODE((target / name).stat().st_mode) == 0o751


def test_what_is_not_in_memory_is_for_the_engine(places: tuple[Path, Path]) -> None:
    source, target = places
    (source / "cold").write_bytes(b"cold" * 1000)
    with (source / "cold").open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    batch = begin(source, target, "cold")
    [transfer] = transfers(batch)
    assert [(0, 4000)] == list(transfer.extents)
    data = os.preadv(transfer.read_fd, [memoryview(bytearray(1))], 4096)  # O_DIRECT or past the end
    assert data == 0
    os.pwrite(transfer.write_fd, b"cold" * 1000, 0)
    transfer.written()
    assert {} == end(batch)
    assert (target / "cold").read_bytes() == b"cold" * 1000


def test_what_is_not_for_a_batch(places: tuple[Path, Path]) -> None:
    """It is opened, looked at, and left to others: links are kept, names taken, files not small."""
    source, target = places
    (source / "large").write_bytes(bytes(SMALL + 1))
    (source / "linked").write_bytes(b"linked")
    (source / "other name").hardlink_to(source / "linked")
    (source / "taken").write_bytes(b"taken")
    (target / "taken").symlink_to("nowhere")  # not a file that could be replaced
    names = ["large", "linked", "taken"]
    batch = begin(source, target, *names, preserve=frozenset({"links"}))
    others = [(batch.name(index).decode(), os.fstat(fd).st_ino) for index, fd in batch.others()]
    assert [(name, source.stat().st_ino) for name in names] == others
    assert [0] == batch.counts
    assert {} == end(batch)
    assert ["taken"] == os.listdir(target)


def test_a_file_that_says_it_is_empty_and_is_not(tmp_path: Path) -> None:
    batch = begin(Path("/proc/self"), tmp_path, "status")
    assert [0] == [index for index, _ in batch.others()]
    batch.close()


def test_what_took_the_name_meanwhile(places: tuple[Path, Path]) -> None:
    """A link is not followed, a FIFO not waited for, and what is gone is said to be."""
    source, target = places
    (source / "link").symlink_to("/etc/passwd")
    os.mkfifo(source / "fifo")
    errors = end(begin(source, target, "link", "gone", "fifo"))
    expected = {"link": ELOOP, "gone": ENOENT, "fifo": ESTALE}
    assert expected == {name: error.errno for name, error in errors.items()}
    assert isinstance(errors["fifo"], SourceChanged)


@pytest.mark.parametrize("allow_changed", [False, True])
@pytest.mark.parametrize("change", ["longer", "shorter", "touched"])
def test_a_source_that_changed_meanwhile(
    places: tuple[Path, Path], change: str, allow_changed: bool
) -> None:
    """Its copy gets no name; where changes are allowed only a shorter one does not."""
    source, target = places
    (source / "file").write_bytes(b"before")
    batch = begin(source, target, "file", allow_changed=allow_changed)
    with (source / "file").open("r+b") as file:
        if change == "touched":
            os.utime(file.fileno())
        else:
            file.truncate(7 if change == "longer" else 5)
    batch.seal()
    errors = end(batch)
    if allow_changed and change != "shorter":
        assert (target / "file").read_bytes() == b"before"
    else:
        assert isinstance(errors["file"], SourceChanged)
        assert (ESTALE, []) == (errors["file"].errno, os.listdir(target))


def test_a_file_that_has_the_name_is_replaced(places: tuple[Path, Path]) -> None:
    """By a new one with its mode and owner, so that whoever reads the old one keeps what he has."""
    source, target = places
    for name, mode in (("plain", 0o640), ("x" * 255, 0o4755)):
        (source / name).write_bytes(b"new")
        (target / name).write_bytes(b"older")
        (target / name).chmod(mode)
    with (target / "plain").open("rb") as reader:
        batch = begin(source, target, "plain", "x" * 255)
        assert [] == list(batch.others())
        assert {} == end(batch)
        assert reader.read() == b"older"
    assert ["plain", "x" * 255] == sorted(os.listdir(target))
    for name, mode in (("plain", 0o640), ("x" * 255, 0o4755)):
        assert (target / name).read_bytes() == b"new"
        assert stat.S_IMODE((target / name).stat().st_mode) == mode


@pytest.mark.parametrize(
    "kind",
    ["linked", "attributes", "acl", "same", "read-only" if os.geteuid() else "another's"],
)
def test_files_that_are_not_for_a_batch_to_replace(places: tuple[Path, Path], kind: str) -> None:
    """What takes more than a new file under the name is left to others, and stays as it is."""
    source, target = places
    (source / "file").write_bytes(b"new")
    old = target / "file"
    if kind == "same":
        old.hardlink_to(source / "file")
    else:
        old.write_bytes(b"old")
    if kind == "linked":
        (target / "other").hardlink_to(old)
    elif kind == "attributes":
        os.setxattr(old, "user.name", b"value")
    elif kind == "acl":
        subprocess.run(["setfacl", "-m", "u:1234:rw", old], check=True)
    elif kind == "another's":
        os.chown(old, 1234, 1234)
    elif kind == "read-only":
        old.chmod(0o444)
    before = old.stat()
    batch = begin(source, target, "file")
    assert [0] == [index for index, _ in batch.others()]
    assert {} == end(batch)
    assert before == old.stat()


@pytest.mark.root
def test_a_rename_that_fails(places: tuple[Path, Path]) -> None:
    """The old file stays, and nothing beside it."""
    source, target = places
    for name in ("one", "two"):
        (source / name).write_bytes(b"new")
        (target / name).write_bytes(b"old")
    batch = begin(source, target, "one", "two")
    (target / "one").unlink()
    (target / "one").mkdir()
    errors = end(batch)
    assert ["rename: Is a directory"] == [error.strerror for error in errors.values()]
    assert ["one", "two"] == sorted(os.listdir(target))
    assert (target / "two").read_bytes() == b"new"


def test_a_name_taken_meanwhile_stays(places: tuple[Path, Path]) -> None:
    source, target = places
    for name in ("one", "two"):
        (source / name).write_bytes(b"new")
    batch = begin(source, target, "one", "two")
    (target / "one").write_bytes(b"old")
    errors = end(batch)
    assert ["one"] == list(errors)
    assert (EEXIST, "link: File exists") == (errors["one"].errno, errors["one"].strerror)
    assert [b"old", b"new"] == [(target / name).read_bytes() for name in ("one", "two")]


def test_what_failed_is_not_placed(places: tuple[Path, Path]) -> None:
    source, target = places
    for name in ("one", "two"):
        (source / name).write_bytes(b"new")
    batch = begin(source, target, "one", "two")
    batch.failed(0, OSError(5, "told"))
    assert "told" == end(batch)["one"].strerror
    assert ["two"] == os.listdir(target)
    batch = begin(source, target, "one")
    batch.fail_all(5, "sync")
    assert "sync: Input/output error" == end(batch)["one"].strerror
    assert ["two"] == os.listdir(target)


def test_dropping_a_batch_closes_all_and_leaves_nothing(places: tuple[Path, Path]) -> None:
    """As an exception does; the fixture counts the descriptors."""
    source, target = places
    (source / "file").write_bytes(b"new")
    batch = begin(source, target, "file")
    del batch
    assert [] == os.listdir(target)


def test_no_descriptors_left(places: tuple[Path, Path]) -> None:
    """One error for each file, and one for the directory; what is open already is copied."""
    source, target = places
    for i in range(8):
        (source / str(i)).write_bytes(b"new")

    def with_few() -> None:
        highest = max(int(name) for name in os.listdir(OPEN_FILES))
        while (lowest := os.dup(0)) < highest:  # earlier tests may have left gaps
            pass
        os.close(lowest)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 2 + 2 + 6, 4096))
        batch = begin(source, target, *map(str, range(8)))
        errors = end(batch)
        assert {EMFILE} == {error.errno for error in errors.values()}
        assert 1 <= len(errors) <= 6
        assert sorted(set(map(str, range(8))) - errors.keys()) == sorted(os.listdir(target))
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 2, 4096))
        with pytest.raises(OSError, match="open directory: Too many open files"):
            begin(source, target)

    assert in_child(with_few) is None


@pytest.mark.parametrize("preserve", [(), ("all",)])
def test_attributes_of_a_batch(places: tuple[Path, Path], preserve: tuple[str, ...]) -> None:
    """Those of cp: by mode, times, ACLs and attributes; in a directory with a default ACL too."""
    source, target = places
    for name, mode in (("plain", 0o640), ("setuid", 0o4755), ("acl", 0o644), ("user", 0o600)):
        (source / name).write_bytes(name.encode())
        (source / name).chmod(mode)
        os.utime(source / name, ns=(10**18 + 1, 10**18 + 2))
    subprocess.run(["setfacl", "-m", "u:1234:rw", source / "acl"], check=True)
    os.setxattr(source / "user", "user.name", b"value")
    theirs = target / "theirs"
    theirs.mkdir()
    subprocess.run(["setfacl", "-m", "d:u:4321:rwx", target, theirs], check=True)
    how = ["-a"] if preserve else ["-r"]
    subprocess.run(["cp", *how, "-T", source, theirs / "copy"], check=True)
    copy_tree(source, target / "copy", preserve=preserve)

    def told(directory: Path) -> str:
        acls = subprocess.check_output(["getfacl", "-nR", "."], cwd=directory, text=True)
        names = subprocess.check_output(["getfattr", "-dR", "."], cwd=directory, text=True)
        times = [path.stat().st_mtime_ns for path in sorted(directory.iterdir())]
        return f"{acls}{names}{times if preserve else ''}"

    assert told(theirs / "copy") == told(target / "copy")


def test_without_unnamed_files(places: tuple[Path, Path]) -> None:
    """Where the file system has none the files are copied one by one, under hidden names."""
    source, target = places
    for i in range(100):
        (source / str(i)).write_bytes(b"%d" % i)

    def without() -> None:
        refuse_tmpfile()
        copy_tree(source, target / "copy")

    assert in_child(without) is None
    assert subprocess.run(["diff", "-r", source, target / "copy"]).returncode == 0
    assert 100 == len(os.listdir(target / "copy"))
