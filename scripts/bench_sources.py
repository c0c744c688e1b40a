"""What the benchmark copies, what of it is in memory beforehand, and whether a copy is equal."""

import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40

BYSTANDER = "bystander"  # beside the source: somebody else's file, in memory
PIECE = 8 * MIB
SMALL_MEAN = 11 * KIB
IN_A_DIRECTORY = 100


def make_random(path: Path, size: int) -> None:
    """A file that nothing can compress or take for a hole."""
    with path.open("wb") as file:
        for offset in range(0, size, PIECE):
            file.write(os.urandom(min(PIECE, size - offset)))
        file.flush()
        os.fsync(file.fileno())


def make_extents(path: Path, count: int, data: int, size: int, tail: int) -> None:
    """`data` bytes in `count` pieces all over a file of `size` bytes that ends with a hole."""
    each = data // count // (4 * KIB) * 4 * KIB
    content = random.Random(1).randbytes(each)
    with path.open("xb", buffering=0) as file:
        file.truncate(size)
        for i in range(count):
            os.pwrite(file.fileno(), content, i * ((size - tail) // count // (4 * KIB)) * 4 * KIB)


def make_mixed(path: Path, size: int, zeroes: float) -> None:
    """Written data and zeroes, in turns of 4 KiB to 1 MiB."""
    rng = random.Random(2)
    content = rng.randbytes(2 * MIB)
    with path.open("xb") as file:
        while file.tell() < size:
            length = 4 * KIB * rng.randint(1, 256)
            start = rng.randrange(MIB)
            zero = rng.random() < zeroes
            file.write(bytes(length) if zero else content[start : start + length])
        file.truncate(size)


def make_tree(root: Path, files: int, mean: int = SMALL_MEAN, most: int = 256 * KIB) -> None:
    """Files of `mean` bytes on average, a hundred in a directory, in twenty directories."""
    rng = random.Random(1)
    pool = rng.randbytes(2 * most)
    for number in range(files):
        group = number // IN_A_DIRECTORY
        directory = root / f"{group % 20}" / f"{group}"
        if number % IN_A_DIRECTORY == 0:
            directory.mkdir(parents=True)
        size = min(int(rng.expovariate(1 / mean)), most)
        start = rng.randrange(most)
        (directory / f"file{number}").write_bytes(pool[start : start + size])


def make_equal(root: Path, files: int, size: int) -> None:
    """Files of `size` bytes, all in one directory."""
    root.mkdir()
    for number in range(files):
        (root / f"file{number}").write_bytes(random.Random(number).randbytes(size))


def make_mix(root: Path, files: int) -> None:
    """Many small files, some of a MiB, a few of 64 MiB."""
    root.mkdir()
    make_tree(root / "small", files)
    make_equal(root / "middle", files // 50, MIB + 1)
    make_equal(root / "large", files // 2000 + 1, 64 * MIB)


def mix_size(files: int) -> int:
    """Bytes of space that make_mix() fills."""
    return files * 24 * KIB + files // 50 * 2 * MIB + (files // 2000 + 1) * 64 * MIB


def make_many(root: Path, files: int, spread: bool, names: int = 1) -> None:
    """Files of a hundred bytes, all in one directory or a hundred in each; with `names` each file
    has as many, of which the first are far from the others."""
    for name in range(names):
        for number in range(files):
            directory = root / f"{name}" / (f"{number // IN_A_DIRECTORY}" if spread else "all")
            if number % IN_A_DIRECTORY == 0:
                directory.mkdir(parents=True, exist_ok=True)
            path = f"{directory}/file{number}"
            if name:
                first = f"{root}/0/{number // IN_A_DIRECTORY if spread else 'all'}/file{number}"
                os.link(first, path)
            else:
                with open(path, "wb") as file:
                    file.write(b"%100d" % number)


# --- before each run -----------------------------------------------------------------------------


def cold(source: Path) -> None:
    """Leave nothing of `source` in memory; as root, nothing of any file, the programs' included."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    except PermissionError:
        uncached(source)


def uncached(source: Path) -> None:
    """Leave nothing of the bytes of `source` in memory, and all else as it is."""
    os.sync()
    for path in _files(source):
        _forget(path)


def clean(source: Path) -> None:
    """Bring all of `source` into memory, with nothing to be written back."""
    os.sync()
    for path in _files(source):
        with path.open("rb", buffering=0) as file:
            while file.read(PIECE):
                pass


def half(source: Path) -> None:
    """Bring every other piece of `source` into memory, and only these."""
    cold(source)
    with source.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no readahead
        for offset in range(0, source.stat().st_size, 2 * PIECE):
            os.pread(file.fileno(), PIECE, offset)


def dirty(source: Path) -> None:
    """Write all of `source` anew, the same bytes, into memory."""
    clean(source)
    with source.open("r+b", buffering=0) as file:
        for offset in range(0, source.stat().st_size, PIECE):
            os.pwrite(file.fileno(), os.pread(file.fileno(), PIECE, offset), offset)


def with_bystander(source: Path) -> None:
    """As `cold`, with a GiB of another file in memory."""
    bystander = source.with_name(BYSTANDER)
    if not bystander.exists():
        make_random(bystander, GIB)
    cold(source)
    clean(bystander)


def _files(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
    for directory, _, names in os.walk(path):
        yield from (Path(directory, name) for name in names)


def _forget(path: Path) -> None:
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# --- after each run ------------------------------------------------------------------------------


def same(source: Path, copy: Path) -> bool:
    """Whether a copy equals its source: a file, a tree, or a tree of copies of one file."""
    if source.is_dir():
        return subprocess.call(["diff", "-r", source, copy]) == 0
    if copy.is_dir():
        content = source.read_bytes()
        return all(path.read_bytes() == content for path in copy.iterdir())
    status = source.stat()
    if status.st_size != copy.stat().st_size:
        return False
    if status.st_blocks * 512 >= status.st_size:
        return subprocess.call(["cmp", source, copy]) == 0
    theirs = _data(copy)
    return all(block == next(theirs, None) for block in _data(source)) and not any(theirs)


def _data(path: Path) -> Iterator[tuple[int, bytes]]:
    """What a file has that is no zero byte at its end, by blocks; nothing of its holes, of which
    there may be terabytes."""
    with path.open("rb", buffering=0) as file:
        offset = 0
        while True:
            try:
                offset = os.lseek(file.fileno(), offset, os.SEEK_DATA)
            except OSError:
                return
            offset -= offset % (64 * KIB)
            block = os.pread(file.fileno(), 64 * KIB, offset)
            if stripped := block.rstrip(b"\0"):
                yield offset, stripped
            offset += 64 * KIB
