"""The README's recipes, run as they stand there, by a shell that has the paths they name.

Each has a mount namespace of its own, in which /mnt, /srv and the home directory are the test's,
and /dev has a stick. `docker` and `mail` are stand-ins: the one has only the mounts of a container,
the other keeps what it is given.
"""

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest

from filesystems import loop_device, scratch_directory, sparse_file

pytestmark = [pytest.mark.root, pytest.mark.alone]

MIB = 1 << 20
README = (Path(__file__).parents[1] / "README.md").read_text()
_START = README.index("## Recipes")
RECIPES = re.findall(r"```sh\n(.*?)```", README[_START : README.index("\n## ", _START)], re.DOTALL)
CONTENT = random.Random(9).randbytes(MIB + 77)

# docker run --rm -v PATH:PATH[:ro] -v ... IMAGE COMMAND...
DOCKER = """\
#!/bin/bash
set -eu
[ "$1 $2" = "run --rm" ]
shift 2
exec unshare --mount bash -euc '
    while [ "$1" = -v ]; do
        IFS=: read -r from to how <<< "$2"
        mount --bind ${how:+-o "$how"} "$from" "$to"
        shift 2
    done
    shift
    exec "$@"
' docker "$@"
"""
MAIL = """\
#!/bin/sh
{ echo "$@"; cat; } > /mnt/mail
"""


class World(NamedTuple):
    """What a recipe finds: the home directory, what is at /mnt and /srv, and /dev/sdx."""

    home: Path
    mnt: Path
    srv: Path
    stick: Path

    def run(self, recipe: str) -> subprocess.CompletedProcess[str]:
        """Run a recipe in the home directory."""
        above = self.home.parent
        number = self.stick.stat().st_rdev
        overlay = f"lowerdir=/dev,upperdir={above}/upper,workdir={above}/work"
        script = [
            "set -eu",
            f"mount -t tmpfs tmpfs {above}/dev && mkdir {above}/dev/upper {above}/dev/work",
            f"mount -t overlay -o {overlay.replace(str(above), f'{above}/dev')} overlay /dev",
            f"mknod /dev/sdx b {os.major(number)} {os.minor(number)}",
            f"mount --bind {self.mnt} /mnt",
            f"mount --bind {self.srv} /srv",
            f"cd {self.home}",
            recipe,
        ]
        return subprocess.run(
            # nothing that is started here outlives it
            [
                "unshare",
                "--pid",
                "--mount-proc",
                "--fork",
                "--kill-child",
                "bash",
                "-c",
                "\n".join(script),
            ],
            env={
                **os.environ,
                "HOME": str(self.home),
                "PATH": f"{above}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
            capture_output=True,
            text=True,
            timeout=60,
        )


@pytest.fixture
def world(mount_point: Callable[[str], Path]) -> Iterator[World]:
    """On Btrfs, which can clone."""
    with (
        TemporaryDirectory(dir=mount_point("btrfs")) as name,
        scratch_directory() as scratch,
        loop_device(sparse_file(scratch / "stick", 8 * MIB)) as stick,
    ):
        top = Path(name)
        for directory in ("home", "mnt/backup", "mnt/nas", "mnt/archive", "mnt/wal", "srv/data"):
            (top / directory).mkdir(parents=True)
        for directory in ("bin", "dev"):
            (top / directory).mkdir()
        for program, text in (("docker", DOCKER), ("mail", MAIL)):
            (top / "bin" / program).write_text(text)
            (top / "bin" / program).chmod(0o755)
        yield World(top / "home", top / "mnt", top / "srv", stick)


def recipe(*words: str) -> str:
    """The one recipe that has all these words in it."""
    found = [str(text) for text in RECIPES if all(word in text for word in words)]
    assert len(found) == 1
    return found[0]


def done(world: World, text: str) -> str:
    """Run a recipe, which succeeds and complains of nothing; its output."""
    ran = world.run(text)
    assert (0, "") == (ran.returncode, ran.stderr)
    return ran.stdout


def tree(directory: Path) -> dict[str, bytes]:
    """A directory with some files; their contents by their paths."""
    files = {"one": b"1", "deep/er/two": CONTENT, "pic ture.jpg": b"jpg", ".cache/three": b"3"}
    for path, content in files.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(content)
    return files


def found(directory: Path) -> dict[str, bytes]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


def test_there_are_more_than_ten() -> None:
    assert len(RECIPES) > 10


def test_image_to_stick(world: World) -> None:
    (world.home / "debian.img").write_bytes(CONTENT)
    done(world, recipe("debian.img"))
    assert world.stick.read_bytes()[: len(CONTENT)] == CONTENT


def test_stick_to_image(world: World) -> None:
    with world.stick.open("r+b") as device:
        device.write(CONTENT[:MIB])
    done(world, recipe("stick.img"))
    image = world.home / "stick.img"
    assert image.read_bytes() == CONTENT[:MIB] + bytes(7 * MIB)
    assert image.stat().st_blocks * 512 <= MIB


def test_image_of_a_virtual_machine(world: World) -> None:
    image = world.home / "vm.img"
    with sparse_file(image, 20 * MIB).open("r+b") as file:
        file.write(CONTENT)
    done(world, recipe("vm.img"))
    for copy in (world.home / "vm-before-upgrade.img", world.mnt / "backup" / "vm.img"):
        assert subprocess.run(["cmp", image, copy]).returncode == 0
        assert copy.stat().st_blocks * 512 < 2 * MIB


def test_home_directory(world: World) -> None:
    files = tree(world.home)
    (world.home / "one").chmod(0o640)
    done(world, recipe("~/."))
    del files[".cache/three"]
    assert found(world.mnt / "backup" / "home") == files
    assert (world.mnt / "backup" / "home" / "one").stat().st_mode & 0o777 == 0o640


def test_resumed(world: World) -> None:
    (world.home / "archive.tar").write_bytes(CONTENT)
    done(world, recipe("--resume"))
    assert found(world.mnt / "nas") == {"archive.tar": CONTENT}


def test_pictures_with_a_receipt(world: World) -> None:
    files = tree(world.home / "pictures")
    done(world, recipe("sha256sum"))
    assert found(world.mnt / "archive" / "pictures") == files
    (world.mnt / "archive" / "pictures" / "one").write_bytes(b"2")
    checked = world.run(recipe("sha256sum").splitlines()[-1])
    assert checked.returncode == 1
    assert "one: FAILED" in checked.stdout


def test_what_find_finds(world: World) -> None:
    files = tree(world.home / "data")
    (world.home / "last-backup").touch()
    os.utime(world.home / "last-backup", (2**30, 2**30))
    os.utime(world.home / "data" / "one", (2**29, 2**29))
    done(world, recipe("find"))
    del files["one"]
    assert found(world.mnt / "backup" / "data") == files


def test_script(world: World) -> None:
    files = tree(world.home / "data")
    assert done(world, recipe("--json")) == "all of it is on the disk\n"
    assert found(world.mnt / "backup" / "data") == files
    (world.mnt / "backup" / "data" / "one").unlink()
    (world.mnt / "backup" / "data" / "one").mkdir()
    assert world.run(recipe("--json")).stdout == ""
    said = (world.mnt / "mail").read_text().splitlines()
    assert said[0] == "-s backup, exit status 1 root"
    assert len(said) == 2
    assert json.loads(said[1])["destination"] == "/mnt/backup/data/./one"


def test_archive_command(world: World) -> None:
    """As PostgreSQL calls it, with a file below its directory; what is archived is not replaced."""
    (world.home / "pg_wal").mkdir()
    segment = "000000010000000000000001"
    (world.home / "pg_wal" / segment).write_bytes(CONTENT)
    command = recipe("%p").replace("%p", f"pg_wal/{segment}").replace("%f", segment)
    done(world, command)
    (world.home / "pg_wal" / segment).write_bytes(b"another")
    assert world.run(command).returncode == 1
    assert found(world.mnt / "wal") == {segment: CONTENT}


@pytest.mark.parametrize("words", ["--idle", "docker"])
def test_a_service_and_a_container(world: World, words: str) -> None:
    files = tree(world.srv / "data")
    done(world, recipe(words))
    assert found(world.mnt / "backup" / "data") == files


def test_a_cluster(world: World) -> None:
    """All that is started is started at once, and waits for what it needs."""
    files = {"a": CONTENT, "below/b": CONTENT[:1000], "c": b""}
    for name, content in files.items():
        path = world.srv / "data" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    done = world.run(recipe("dask scheduler"))
    assert 0 == done.returncode, done.stderr
    assert files == found(world.mnt / "nas/data")
    assert re.search(r"^aiocp: +\S+:\d+: ", done.stderr, re.MULTILINE), done.stderr


def test_probe(world: World) -> None:
    assert "recommended: --depth" in done(world, recipe("--probe"))
    assert found(world.mnt) == {}
