"""What a probe says is what other tools say, and it leaves nothing behind."""

import hashlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EINVAL, ENOENT, EROFS
from pathlib import Path
from typing import Any

import pytest

from aiocp import Cancelled
from aiocp import host as host_module
from aiocp.host import io_max, memory_max
from aiocp.mount import Mount
from aiocp.probe import Probe, probe
from filesystems import (
    loop_device,
    mounted,
    run,
    sparse_file,
)

KIB, MIB = 1 << 10, 1 << 20
SECONDS = 0.4
ROOT = Path(__file__).parents[1]


def succeeds(*command: str | Path) -> bool:
    return subprocess.run(command, capture_output=True).returncode == 0


def findmnt(path: Path, column: str) -> str:
    return subprocess.check_output(
        ["findmnt", "--noheadings", "--nofsroot", "--output", column, "--target", path], text=True
    ).strip()


# --- directories ---------------------------------------------------------------------------------


@pytest.mark.root
def test_the_facts_of_a_directory(filesystem: Path) -> None:
    """They are what findmnt, dd, cp and the kernel say."""
    found = probe(filesystem, seconds=SECONDS)
    assert [] == list(filesystem.iterdir())
    assert found.error is None
    assert ("directory", str(filesystem)) == (found.kind, found.path)
    assert findmnt(filesystem, "FSTYPE") == found.filesystem
    assert findmnt(filesystem, "SOURCE") == found.source
    assert findmnt(filesystem, "TARGET") == found.mount_point

    assert found.direct_read is not None
    assert found.reflink is not None
    assert found.o_tmpfile is not None
    (filesystem / "file").write_bytes(random.Random(1).randbytes(MIB))
    into = f"of={filesystem}/direct"
    dd = ["dd", f"if={filesystem}/file", into, "bs=4096", "iflag=direct", "oflag=direct"]
    assert succeeds(*dd) == found.direct_read.yes
    assert found.alignment == 4096
    clone = succeeds("cp", "--reflink=always", filesystem / "file", filesystem / "clone")
    assert clone == found.reflink.yes
    try:
        os.close(os.open(filesystem, os.O_TMPFILE | os.O_RDWR))
        unnamed = True
    except OSError:
        unnamed = False
    assert unnamed == found.o_tmpfile.yes


@pytest.mark.root
def test_a_recommendation_is_a_point_that_was_measured(filesystem: Path) -> None:
    found = probe(filesystem, seconds=SECONDS)
    recommended = found.recommended
    assert recommended is not None
    assert recommended[:2] in [(point.depth, point.block_size) for point in found.sweep]
    assert max(point.rate for point in found.sweep) == recommended.best
    command = ["--depth", f"{recommended.depth}", "--block-size", f"{recommended.block_size}"]
    (filesystem / "file").write_bytes(b"x" * 100_000)
    copy = [sys.executable, "-m", "aiocp", *command, "file", "copy"]
    subprocess.run(copy, cwd=filesystem, check=True)


@pytest.mark.alone  # it measures where the time goes
@pytest.mark.root
@pytest.mark.parametrize(
    ("fstype", "reads", "writes"),
    [("ext4", True, True), ("xfs", True, True), ("btrfs", True, False), ("tmpfs", False, False)],
)
def test_whether_io_submit_is_asynchronous(
    mount_point: Callable[[str], Path], fstype: str, reads: bool, writes: bool
) -> None:
    """Btrfs does direct writes through the page cache, tmpfs is nothing else: both inside
    io_submit."""
    found = probe(mount_point(fstype), seconds=2)
    assert found.reads is not None
    assert found.writes is not None
    assert (reads, writes) == (found.reads.asynchronous, found.writes.asynchronous)
    for one in (found.reads, found.writes):
        assert 0 < one.in_submit <= one.seconds
    assert found.direct_write is not None
    assert (fstype != "btrfs") == found.direct_write.yes


@pytest.mark.root
def test_an_xfs_that_shares_no_blocks() -> None:
    with mounted("xfs", 320 * MIB, mkfs_options=["-m", "reflink=0"]) as directory:
        assert "reflink=0" in run("xfs_info", directory)
        found = probe(directory, seconds=SECONDS)
    assert found.reflink is not None
    assert (False, "Operation not supported") == tuple(found.reflink)


@pytest.mark.root
def test_little_space_is_hardly_touched() -> None:
    """At most a quarter of what is free is taken meanwhile."""
    with mounted("tmpfs", 16 * MIB) as directory:
        found = probe(directory, seconds=SECONDS)
        assert found.error is None
        assert max(point.depth * point.block_size for point in found.sweep) <= MIB
        (directory / "filler").write_bytes(bytes(15 * MIB))
        full = probe(directory, seconds=SECONDS)
        assert "make room to measure: No space left on device" == full.error
        assert full.o_tmpfile is not None
        assert ["filler"] == os.listdir(directory)


@pytest.mark.root
def test_what_may_not_be_written_is_told_of_all_the_same(tmp_path: Path) -> None:
    with mounted("tmpfs", 16 * MIB) as directory:
        run("mount", "-o", "remount,ro", directory)
        found = probe(directory, seconds=SECONDS)
    assert "tmpfs" == found.filesystem
    assert found.o_tmpfile is not None
    assert (False, os.strerror(EROFS)) == tuple(found.o_tmpfile)
    assert f"create a file: {os.strerror(EROFS)}" == found.error
    assert found.recommended is None


@pytest.mark.parametrize("make", [lambda path: None, os.mkfifo])
def test_what_cannot_be_probed_is_an_error(tmp_path: Path, make: Callable[[Path], None]) -> None:
    """Nothing of that name, or what is neither a directory nor to be read at any offset."""
    make(tmp_path / "x")
    with pytest.raises(OSError, match=r"open: |neither a directory") as caught:
        probe(tmp_path / "x")
    assert caught.value.errno in (ENOENT, EINVAL)


def test_it_is_stopped_by_cancel(tmp_path: Path) -> None:
    class Soon:
        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            return self.asked > 100  # while it sweeps: writing and reading ask less often

    with pytest.raises(Cancelled):
        probe(tmp_path, cancel=Soon())
    assert [] == list(tmp_path.iterdir())


# --- devices and files ---------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.parametrize("sector", [512, 4096])
def test_a_device_is_only_read(tmp_path: Path, sector: int) -> None:
    content = random.Random(1).randbytes(24 * MIB)
    (tmp_path / "image").write_bytes(content)
    with loop_device(tmp_path / "image", sector) as device:
        found = probe(device, seconds=SECONDS)
        assert int(run("blockdev", "--getsize64", device)) == found.size
        assert int(run("blockdev", "--getss", device)) == found.alignment
    assert (
        hashlib.sha256(content).digest()
        == hashlib.sha256((tmp_path / "image").read_bytes()).digest()
    )
    assert "device" == found.kind
    assert found.recommended is not None
    assert (None, None, None) == (found.writes, found.o_tmpfile, found.reflink)
    assert (None, None) == (found.filesystem, found.error)


@pytest.mark.root
def test_a_device_that_is_mounted_says_where(mount_point: Callable[[str], Path]) -> None:
    """Btrfs too, which has a device number of its own."""
    for fstype in ("ext4", "btrfs"):
        directory = mount_point(fstype)
        found = probe(findmnt(directory, "SOURCE"), seconds=SECONDS)
        assert (fstype, str(directory)) == (found.filesystem, found.mount_point)


def test_a_file_is_only_read(tmp_path: Path) -> None:
    """Its holes are not, for that would measure memory."""
    path = sparse_file(tmp_path / "file", 1 << 40)
    with path.open("r+b") as file:
        file.seek(1 << 39)
        file.write(random.Random(1).randbytes(5 * MIB + 777))
    before = os.stat(path)
    found = probe(path, seconds=SECONDS)
    after = os.stat(path)
    assert (before.st_mtime_ns, before.st_blocks) == (after.st_mtime_ns, after.st_blocks)
    assert ("file", 1 << 40) == (found.kind, found.size)
    assert found.error is None
    assert max(point.depth * point.block_size for point in found.sweep) <= 3 * MIB


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    found = probe(tmp_path / "empty", seconds=SECONDS)
    assert "measure: there is not enough to be read" in (found.error or "")
    assert found.recommended is None


# --- what the container allows -------------------------------------------------------------------

_REFUSED = """
import json, os, sys
sys.path.insert(0, "tests")
from faults import refuse, refuse_tmpfile
from aiocp.probe import probe
from aiocp.report import as_dict
exec(sys.argv[1])
print(json.dumps(as_dict(probe(sys.argv[2], seconds=0.4))))
"""


def where(refused: str, path: Path) -> dict[str, Any]:
    """The probe of a process that is refused something first."""
    command = [sys.executable, "-c", _REFUSED, refused, str(path)]
    answer = json.loads(subprocess.check_output(command, cwd=ROOT))
    assert isinstance(answer, dict)
    return answer


def test_where_there_is_no_aio(tmp_path: Path) -> None:
    """The plain calls are measured then, as they are what copies."""
    found = where("refuse('io_setup', 38)", tmp_path)
    assert found["aio"]["yes"] is False
    assert os.strerror(38) in found["aio"]["why"]
    assert (False, False) == (found["reads"]["asynchronous"], found["writes"]["asynchronous"])
    assert found["host"]["seccomp"] is True
    assert found["recommended"] is not None
    assert [] == list(tmp_path.iterdir())


def test_where_there_is_no_tmpfile(tmp_path: Path) -> None:
    """A hidden name takes its place, and goes with it."""
    found = where("refuse_tmpfile()", tmp_path)
    assert {"yes": False, "why": "Operation not supported"} == found["o_tmpfile"]
    assert found["recommended"] is not None
    assert found["error"] is None
    assert [] == list(tmp_path.iterdir())


def test_the_sysctls_and_limits(tmp_path: Path) -> None:
    host = probe(tmp_path, seconds=SECONDS).host
    assert int(Path("/proc/sys/fs/aio-max-nr").read_text()) == host.aio_max_nr
    assert f"[{host.huge_pages}]" in Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    shown = subprocess.check_output(
        ["prlimit", "--nofile", "--noheadings", "-o", "SOFT"], text=True
    )
    assert (None if "unlimited" in shown else int(shown)) == host.open_files
    assert host.seccomp == bool(re.search(r"Seccomp:\s2", Path("/proc/self/status").read_text()))


def test_the_buffers_that_are_huge_are_counted(tmp_path: Path) -> None:
    """Never more than there are; all where the setting lets them and memory is there."""
    found = probe(tmp_path, seconds=SECONDS)
    assert found.buffers is not None
    assert found.huge is not None
    assert 0 <= found.huge <= found.buffers == 64 * MIB
    if found.host.huge_pages == "never":
        assert found.huge == 0


@contextmanager
def cgroup_with_memory(limit: int) -> Iterator[Path]:
    """A cgroup for processes to enter, by whichever version has the controller of memory."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, _ = line.split(":", 2)
        if controllers == "memory":
            top, file = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
            break
    else:
        top, file = Path("/sys/fs/cgroup"), "memory.max"
    made = top / f"aiocp-test-{os.getpid()}"
    try:
        made.mkdir()
        (made / file).write_text(str(limit))
    except OSError as error:
        unavailable_here = str(error)
        if made.exists():
            made.rmdir()
        pytest.skip(f"no cgroup of our own: {unavailable_here}")
    try:
        yield made
    finally:
        made.rmdir()


@pytest.mark.skipif(os.geteuid() != 0, reason="cgroups are root's")
def test_the_memory_that_a_cgroup_allows() -> None:
    assert 512 * MIB == in_cgroup(512 * MIB, "memory_max()")


@pytest.mark.skipif(os.geteuid() != 0, reason="cgroups are root's")
def test_a_small_container_is_not_killed(tmp_path: Path) -> None:
    """What it may have in memory bounds what is tried."""
    sweep = f"probe({str(tmp_path)!r}, seconds={SECONDS}).sweep"
    most = in_cgroup(56 * MIB, f"max(point.depth * point.block_size for point in {sweep})")
    assert 0 < most <= 14 * MIB


def in_cgroup(limit: int, expression: str) -> int:
    """What a process computes that may have so many bytes of memory."""
    with cgroup_with_memory(limit) as cgroup:
        code = (
            f"import os; open('{cgroup}/cgroup.procs', 'w').write(str(os.getpid()))\n"
            "from aiocp.host import memory_max\n"
            f"from aiocp.probe import probe; print({expression})"
        )
        told = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True)
        while (cgroup / "cgroup.procs").read_text():
            time.sleep(0.01)
    assert told.returncode == 0, told.stderr
    return int(told.stdout)


def test_limits_of_cgroups_above_ours_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kernel's documentation has them, cgroup-v2.rst: the least of all levels."""
    files = {
        "/proc/self/cgroup": "0::/outer/inner\n",
        "/sys/fs/cgroup/outer/inner/memory.max": "max\n",
        "/sys/fs/cgroup/outer/memory.max": "1073741824\n",
        "/sys/fs/cgroup/outer/inner/io.max": "8:16 rbps=2097152 wbps=max riops=max wiops=120\n",
        "/sys/fs/cgroup/outer/io.max": "8:16 rbps=1048576 wbps=max\n8:0 rbps=1\n",
    }
    cgroup2 = Mount(1, "0:2", "/", "/sys/fs/cgroup", "cgroup2", "cgroup2", ["rw"])
    monkeypatch.setattr(host_module, "_read", lambda path: files.get(path, ""))
    monkeypatch.setattr(host_module, "mounts", lambda: [cgroup2])
    assert 1 << 30 == memory_max()
    assert {"rbps": 1048576, "wiops": 120} == io_max(os.makedev(8, 16))
    assert {} == io_max(os.makedev(8, 32))


def test_limits_of_version_1(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container, whose part of the hierarchy is mounted as if it were all of it."""
    files = {
        "/proc/self/cgroup": "4:memory:/docker/x\n3:blkio:/docker/x\n",
        "/cg/memory/memory.limit_in_bytes": "536870912\n",
        "/cg/blkio/blkio.throttle.write_bps_device": "8:16 1000000\n",
    }
    listed = [
        Mount(1, "0:2", "/docker/x", f"/cg/{name}", "cgroup", "cgroup", ["rw", name])
        for name in ("memory", "blkio")
    ]
    monkeypatch.setattr(host_module, "_read", lambda path: files.get(path, ""))
    monkeypatch.setattr(host_module, "mounts", lambda: listed)
    assert 512 * MIB == memory_max()
    assert {"wbps": 1000000} == io_max(os.makedev(8, 16))
    files["/cg/memory/memory.limit_in_bytes"] = "9223372036854771712\n"
    assert memory_max() is None


# --- stopped -------------------------------------------------------------------------------------


def stopped(path: Path, number: signal.Signals, *, refused: str = "") -> tuple[int, str]:
    """The status and the message of a command that is stopped once it measures."""
    code = (
        "import sys; sys.path.insert(0, 'tests')\n"
        "from faults import refuse_tmpfile\n"
        f"{refused}\n"
        "from aiocp.cli import run\n"
        f"sys.exit(run(['--probe', {str(path)!r}]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    while not opened_in(process, path):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    out, said = process.communicate(timeout=30)
    assert out == ""
    return process.returncode, said


def opened_in(process: subprocess.Popen[str], path: Path) -> bool:
    """Whether it has opened files in a directory."""
    try:
        files = [os.readlink(file) for file in Path(f"/proc/{process.pid}/fd").iterdir()]
    except FileNotFoundError:
        return False
    return any(file.startswith(f"{path}/") for file in files)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    status, said = stopped(tmp_path, number)
    assert (128 + number, f"aiocp: stopped by {number.name}: nothing is left of the probe\n") == (
        status,
        said,
    )
    assert [] == list(tmp_path.iterdir())


def test_a_signal_leaves_no_hidden_name(tmp_path: Path) -> None:
    status, _ = stopped(tmp_path, signal.SIGINT, refused="refuse_tmpfile()")
    assert 130 == status
    assert [] == list(tmp_path.iterdir())


@pytest.mark.root
def test_sigkill_leaves_nothing_and_no_space_taken(filesystem: Path) -> None:
    """The file has no name, so the kernel frees it; XFS does so a little later."""
    run("sync", "--file-system", filesystem)
    before = os.statvfs(filesystem)
    status, _ = stopped(filesystem, signal.SIGKILL)
    assert -signal.SIGKILL == status
    assert [] == list(filesystem.iterdir())
    while (before.f_bfree - os.statvfs(filesystem).f_bfree) * before.f_frsize > 32 * MIB:
        run("sync", "--file-system", filesystem)
        time.sleep(0.05)


# --- the command ---------------------------------------------------------------------------------


def aiocp(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aiocp", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_the_last_line_is_what_to_type(tmp_path: Path) -> None:
    """And all of it fits a terminal."""
    done = aiocp("--probe", tmp_path)
    assert (0, "") == (done.returncode, done.stderr)
    *lines, last = done.stdout.splitlines()
    assert re.fullmatch(r"recommended: --depth \d+ --block-size \d+[KM]", last)
    assert max(len(line) for line in lines if str(tmp_path) not in line) <= 80
    for name in ("file system", "O_DIRECT", "O_TMPFILE", "reflink", "huge pages", "fs.aio-max-nr"):
        assert re.search(rf"^{name}: +\S", done.stdout, re.MULTILINE), name
    assert [] == list(tmp_path.iterdir())


def test_json_is_one_object_and_documented(tmp_path: Path) -> None:
    """With a picture next to it: a PNG, by its first bytes, and nothing else."""
    pytest.importorskip("matplotlib")
    (tmp_path / "in").mkdir()
    done = aiocp("--probe", tmp_path / "in", "--json", "--plot", tmp_path / "map.png")
    assert (0, "") == (done.returncode, done.stderr)
    found = json.loads(done.stdout)
    assert list(Probe._fields) == list(found)
    readme = (ROOT / "README.md").read_text()
    section = readme[readme.index("## Measure first") : readme.index("## The library")]
    names = set(re.findall(r"`(\w+)`", section))
    assert {*found, *found["host"], *found["reads"], *found["recommended"]} <= names
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    assert ["in", "map.png"] == sorted(os.listdir(tmp_path))


def test_errors_are_one_line(tmp_path: Path) -> None:
    done = aiocp("--probe", tmp_path / "no")
    message = f"aiocp: cannot probe '{tmp_path}/no': open: No such file or directory\n"
    assert (1, "", message) == (done.returncode, done.stdout, done.stderr)


def test_facts_are_told_before_an_error(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    done = aiocp("--probe", tmp_path / "empty")
    assert done.returncode == 1
    assert "fs.aio-max-nr:" in done.stdout
    assert "recommended" not in done.stdout
    assert done.stderr.startswith(f"aiocp: cannot probe '{tmp_path}/empty': measure: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--probe", ".", "operand"],
            "--probe copies nothing: it goes with --plot and --json only",
        ),
        (["--probe", ".", "-r"], "--probe copies nothing: it goes with --plot and --json only"),
        (
            ["--plot", "x.png", "a", "b"],
            "--plot draws what --probe has measured: it goes with that",
        ),
        (["--probe"], "option '--probe' requires an argument"),
        (["--json"], "missing argument 'SRC... DST'"),
    ],
)
def test_wrong_usage(tmp_path: Path, arguments: list[str], message: str) -> None:
    done = aiocp(*arguments)
    assert (2, "", f"aiocp: {message}; try 'aiocp --help'\n") == (
        done.returncode,
        done.stdout,
        done.stderr,
    )


def test_no_matplotlib_is_told_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "without" / "matplotlib").mkdir(parents=True)
    (tmp_path / "without" / "matplotlib" / "__init__.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'matplotlib'\")"
    )
    picture = tmp_path / "map.png"
    done = aiocp("--probe", tmp_path, "--plot", picture, PYTHONPATH=f"{tmp_path}/without")
    message = f"aiocp: cannot plot '{picture}': No module named 'matplotlib': install aiocp[plot]\n"
    assert (1, "", message) == (done.returncode, done.stdout, done.stderr)
    assert not picture.exists()


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("no/map.png", "open destination: No such file or directory"),
        ("fifo", "no regular file: File exists"),
        ("directory", "no regular file: File exists"),
    ],
)
def test_where_a_picture_cannot_be_is_told_before_anything_is_measured(
    tmp_path: Path, name: str, why: str
) -> None:
    """A FIFO or /dev/stdout is not replaced."""
    pytest.importorskip("matplotlib")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "directory").mkdir()
    done = aiocp("--probe", tmp_path, "--plot", tmp_path / name)
    message = f"aiocp: cannot plot '{tmp_path}/{name}': {why}\n"
    assert (1, "", message) == (done.returncode, done.stdout, done.stderr)
    assert ["directory", "fifo"] == sorted(os.listdir(tmp_path))


def test_a_picture_takes_the_place_of_an_old_one_when_it_is_drawn(tmp_path: Path) -> None:
    """A probe that fails leaves the old one; the new one has the mode that the umask gives."""
    pytest.importorskip("matplotlib")
    picture = tmp_path / "map.png"
    picture.write_bytes(b"old")
    (tmp_path / "empty").touch()
    assert 1 == aiocp("--probe", tmp_path / "empty", "--plot", picture).returncode
    assert b"old" == picture.read_bytes()
    assert ["empty", "map.png"] == sorted(os.listdir(tmp_path))
    (tmp_path / "file").write_bytes(bytes(range(256)) * 4096)
    assert 0 == aiocp("--probe", tmp_path / "file", "--plot", picture).returncode
    assert picture.read_bytes().startswith(b"\x89PNG")
    umask = os.umask(0)
    os.umask(umask)
    assert 0o666 & ~umask == picture.stat().st_mode & 0o777
