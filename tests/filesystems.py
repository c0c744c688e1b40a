"""File systems to test on: loop devices and mounts, made as root and always taken down again.

Everything lives in directories named `aiocp-test-PID-*`, so that what a killed run has left behind
is told from what a running one uses.
"""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import pytest

GIB = 1 << 30
MUST_RUN = bool(os.environ.get("CI")) and os.geteuid() == 0
QUIET = {"ext4": ["-q", "-F"], "xfs": ["-q", "-f"], "btrfs": ["-q", "-f"]}
KEEP = {"ext4": ["-E", "nodiscard"], "xfs": ["-K"], "btrfs": ["-K"]}  # the device's space


def unavailable(reason: str) -> NoReturn:
    """Skip the test, or fail it where everything is expected to be there: in CI, as root."""
    if MUST_RUN:
        pytest.fail(reason)
    pytest.skip(reason)


def run(*command: str | Path) -> str:
    """Run a command that only root can run; its output."""
    if not os.access("/dev/loop-control", os.W_OK):
        unavailable(f"{command[0]} needs root and loop devices")
    if shutil.which(command[0]) is None:
        unavailable(f"{command[0]} is not installed")
    process = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    if process.returncode:
        raise OSError(f"{' '.join(map(str, command))}: {process.stderr.strip()}")
    return process.stdout.strip()


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Yield a new directory outside pytest's, which keeps its own and would walk into a mount."""
    directory = Path(tempfile.mkdtemp(prefix=f"aiocp-test-{os.getpid()}-"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def sparse_file(path: Path, size: int) -> Path:
    """Make a file of `size` bytes that takes no space."""
    with path.open("xb") as file:
        file.truncate(size)
    return path


def written_file(path: Path, size: int) -> Path:
    """Make a file of `size` bytes that has its space and was written once: the first write to
    space that is only reserved takes the file system below twice the time."""
    block = bytes(8 << 20)
    with path.open("xb", buffering=0) as file:
        os.posix_fallocate(file.fileno(), 0, size)
        for offset in range(0, size, len(block)):
            file.write(block[: size - offset])
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


@contextmanager
def loop_device(backing: Path, sector_size: int = 512, *, direct: bool = False) -> Iterator[Path]:
    """Attach the file `backing` as a block device with sectors of `sector_size` bytes; `direct`
    keeps it out of the page cache."""
    how = f"--direct-io={'on' if direct else 'off'}"
    device = run("losetup", "--find", "--show", how, f"--sector-size={sector_size}", backing)
    try:
        yield Path(device)
    finally:
        run("losetup", "--detach", device)


def make_filesystem(fstype: str, device: Path, options: Sequence[str] = ()) -> None:
    run(f"mkfs.{fstype}", *QUIET[fstype], *options, device)


@contextmanager
def mount(source: Path | str, directory: Path, *options: str) -> Iterator[Path]:
    """Mount `source` on `directory` with mount(8)'s options."""
    run("mount", *options, source, directory)
    try:
        yield directory
    finally:
        run("umount", directory)


def forget(path: Path, offset: int = 0, length: int = 0) -> None:
    """Have what is on the disk of a file, or of a range (0: to the end), out of memory."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), offset, length, os.POSIX_FADV_DONTNEED)


def write_cold(path: Path, data: bytes) -> Path:
    """Write a file that is on the disk then, and not in memory."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return path


@contextmanager
def mounted(
    fstype: str,
    size: int = GIB,
    *,
    mkfs_options: Sequence[str] = (),
    sector_size: int = 512,
    allocated: bool = False,
) -> Iterator[Path]:
    """Yield the mount point of a new ext4, xfs, btrfs or tmpfs of `size` bytes; `allocated`: on a
    device that has all of its space and keeps it, out of the page cache, for timing."""
    with scratch_directory() as scratch:
        directory = scratch / "mnt"
        directory.mkdir()
        if fstype == "tmpfs":
            with mount("tmpfs", directory, "-t", "tmpfs", "-o", f"size={size}"):
                yield directory
        else:
            image = (written_file if allocated else sparse_file)(scratch / "image", size)
            kept = KEEP[fstype] if allocated else []
            with loop_device(image, sector_size, direct=allocated) as device:
                make_filesystem(fstype, device, [*kept, *mkfs_options])
                with mount(device, directory, "-o", "nodiscard" if allocated else "defaults"):
                    yield directory


def clean_up(own: bool = False) -> None:
    """Take down what killed runs have left behind; with `own`, also what this one has."""
    devices = []  # known by the path of their file, while what that is on is mounted
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(FileNotFoundError):  # detached meanwhile by its owner
            if _is_left(backing.read_text(), own):
                devices.append(f"/dev/{backing.parts[3]}")
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    for directory in [line.split()[4] for line in reversed(mounts)]:
        if _is_left(directory, own):
            _try("umount", "--lazy", directory)
    for device in devices:
        _try("losetup", "--detach", device)
    for scratch in Path(tempfile.gettempdir()).glob("aiocp-test-*-*"):
        if _is_left(str(scratch), own):
            shutil.rmtree(scratch, ignore_errors=True)


def _try(*command: str) -> None:
    """Run a command that may find its work done by another run that is cleaning up."""
    subprocess.run(command, stderr=subprocess.DEVNULL)


def _is_left(path: str, own: bool) -> bool:
    match = re.search(r"/aiocp-test-(\d+)-", path)
    if match is None:
        return False
    return own if int(match[1]) == os.getpid() else not Path("/proc", match[1]).exists()
