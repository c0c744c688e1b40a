"""The file that stands for a copy by many: whose it is, and who takes it away."""

import errno
import fcntl
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from aiocp import lease
from aiocp.lease import Lease, create, has
from aiocp.share import kernel


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def killed(fd: int) -> None:
    """Make one in a process that is killed then."""
    child = os.fork()
    if not child:
        try:
            with create(fd)[0]:
                os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    assert -signal.SIGKILL == os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_it_lasts_until_it_is_closed(fd: int, tmp_path: Path) -> None:
    file, name, token = create(fd)
    path = os.path.join(os.fsencode(tmp_path), name)
    seen = Lease(path)
    assert has(path, token)
    assert not has(path, token[::-1])
    assert not seen.is_set()
    file.close()
    assert [] == os.listdir(tmp_path)
    assert Lease(path).is_set()
    with pytest.raises(FileNotFoundError):
        has(path, token)


def test_a_killed_coordinators_is_taken_away_by_the_next(fd: int, tmp_path: Path) -> None:
    killed(fd)
    assert 1 == len(os.listdir(tmp_path))
    file, name, _ = create(fd)
    with file:
        assert [os.fsdecode(name)] == os.listdir(tmp_path)


def test_one_that_lives_is_left_alone(fd: int, tmp_path: Path) -> None:
    with create(fd)[0], create(fd)[0]:
        assert 2 == len(os.listdir(tmp_path))
    assert [] == os.listdir(tmp_path)


def test_of_another_machine(fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that has restarted is another, too; nobody can tell whether the coordinator lives."""
    killed(fd)
    before = os.listdir(tmp_path)
    for other in (b"another", b""):
        monkeypatch.setattr(lease, "kernel", lambda other=other: other)
        create(fd)[0].close()
        assert before == os.listdir(tmp_path)


@pytest.mark.parametrize(("module", "call"), [(fcntl, "flock"), (os, "scandir")])
def test_where_it_cannot_be_known(
    fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: ModuleType, call: str
) -> None:
    """Without locks, or where a directory cannot be listed, nothing is taken away."""
    killed(fd)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patch:
        patch.setattr(module, call, refuse)
        with create(fd)[0]:
            assert 2 == len(os.listdir(tmp_path))


def test_what_only_looks_like_one(fd: int, tmp_path: Path) -> None:
    """Stays, and is not waited for."""
    token = "0123456789abcdef"
    held = token.encode() + kernel()
    (tmp_path / "elsewhere").write_bytes(held)
    (tmp_path / f".aiocp-{token}").write_bytes(held + b"\n")
    (tmp_path / f".aiocp-{token[::-1]}").write_bytes(held)
    (tmp_path / f".aiocp-{token}0").write_bytes(held)
    (tmp_path / f".aiocp-{token[1:]}0").symlink_to("elsewhere")
    os.mkfifo(tmp_path / f".aiocp-{token[2:]}00")
    (tmp_path / f".aiocp-{token[3:]}000").mkdir()
    before = sorted(os.listdir(tmp_path))
    create(fd)[0].close()
    assert before == sorted(os.listdir(tmp_path))


def test_there_is_no_room_for_it(fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then there is none."""

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space left"):
            create(fd)
    assert [] == os.listdir(tmp_path)
