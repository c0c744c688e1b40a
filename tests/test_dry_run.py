"""--dry-run: it says what the real run then says, and touches nothing."""

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings

from against_cp import NOBODY, make, make_anothers
from aiocp import Outcome, copy_tree
from aiocp.plan import Plan
from cp_rows import ROWS
from filesystems import mounted, scratch_directory
from forked import aiocp
from test_cp import ANSWERS, AS_USER, OPERANDS, OPTIONS, SELF, TARGETS, is_comparable
from trees import make_tree

# but what the kernel's protection of hard links forbids is not foreseen
USERS = [row.strip() for row in AS_USER.strip().splitlines() if "-l theirs" not in row]

Facts = dict[str, tuple[object, ...]]


@pytest.fixture
def top() -> Iterator[Path]:
    with scratch_directory() as scratch:
        scratch.chmod(0o755)
        yield scratch


def facts(top: Path) -> Facts:
    """Everything there with its inode and all its times, but the access times of what is looked
    into to see this: directories and links."""
    found: Facts = {}
    for directory, _, names in os.walk(top):
        for name in [*names, "."]:
            path = os.path.join(directory, name)
            status = os.lstat(path)
            read = None if os.path.islink(path) or name == "." else status.st_atime_ns
            found[path] = (*status[:7], status.st_mtime_ns, status.st_ctime_ns, read)
    return found


def foretell(words: list[str], top: Path, stdin: str = "", user: int = 0) -> str:
    """Run dry, then not, and compare; what the dry run has said on standard output."""
    before = facts(top)
    foretold = aiocp(["--dry-run", *words], top, "", user=user)
    assert before == facts(top)
    assert "Traceback" not in foretold.stderr, foretold.stderr
    done = aiocp(["-v", *words], top, stdin, user=user)
    said = f"\n{foretold.stderr}{done.stderr}"
    assert done.returncode == foretold.returncode, said
    assert sorted(done.stdout.splitlines()) == sorted(foretold.stdout.splitlines()), said
    told = re.sub(r"aiocp: replace '.*?'\? ", "", done.stderr).splitlines()
    complaints = [line for line in foretold.stderr.splitlines() if "would copy" not in line]
    assert sorted(told[: -2 if done.returncode < 2 else None]) == sorted(complaints)  # but the sum
    return foretold.stdout


@pytest.mark.parametrize("row", [*ROWS[::3], *SELF])
def test_it_says_what_will_be(top: Path, row: str) -> None:
    """The same lines, errors and exit status as the real run, on what cp is compared with."""
    make(top)
    foretell(row.split(), top)


@pytest.mark.root
@pytest.mark.parametrize("row", USERS)
def test_as_an_ordinary_user(top: Path, row: str) -> None:
    """What may not be read, written or replaced is foreseen."""
    make_anothers(top)
    foretell(row.split(), top, user=NOBODY)


@pytest.mark.parametrize("user", [0, pytest.param(NOBODY, marks=pytest.mark.root)])
def test_any_options_and_operands(user: int) -> None:
    @settings(
        max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(OPTIONS, OPERANDS, TARGETS)
    def try_it(options: list[str], operands: list[str], target: str) -> None:
        assume(is_comparable(options, operands, target))
        with tempfile.TemporaryDirectory() as scratch:
            Path(scratch).chmod(0o755)
            (make_anothers if user else make)(Path(scratch))
            foretell([*options, *operands, target], Path(scratch), user=user)

    try_it()


@pytest.mark.parametrize(
    "row",
    [
        "-r --exclude=sub d into",
        "-r --include=x d new",
        "-rT --include=f --exclude=hard d into",
        "--files-from=list . new",
        "-r --files-from=list . into",
        "-a --files-from=list . into",
        "-rb --backup=t --files-from=list . into",
        "-rn --files-from=list . into",
        "-ru --include=f --files-from=list . into",
        "--in-place f into",
        "--in-place f locked",
        "--verify f new",
        "--resume f g into",
        "--resume -rp d new",
        "--resume -rp d into",
        "--bwlimit=1M --idle -r d new",
        "--checksum=sha256=sums -r d f into",
        "-r --no-sync d new",
        "-r --keep-directory-symlink t over",
        "--update=none-fail -r d into",
        "-rf --update=none t over",
    ],
)
def test_what_cp_has_not(top: Path, row: str) -> None:
    make(top)
    (top / "list").write_text("f\nd/sub/x\nd/f\nmissing\ng/x\nt/one\n../out\ndlink/f\nd\nlink\n")
    (top / "list").read_text()  # so that it has been read since it was written
    foretell(row.split(), top)


@pytest.mark.parametrize(
    "row",
    [
        "-r e/d d sub",
        "-r d e/d sub",
        "-r t d/. over/t/. new2",
        "-rv d/. e/. new2",
        "-rn d/. into/d/. new2",
        "--backup=t f f ./f into",
        "-b f f f sub",
        "--backup=t f d/f f sub",
        "--parents -r d d/sub d/sub/x sub",
        "--parents d/sub/x d/f d/link sub",
        "-d f h d/hard d/f sub",
        "-a d f h t sub",
        "-rP link d/link f sub",
        "-l f d/f sub",
        "-rl t t/one sub",
    ],
)
def test_what_an_operand_before_would_have_made(top: Path, row: str) -> None:
    """Counts as there for those that come after it."""
    make(top)
    (top / "new2").mkdir()
    foretell(row.split(), top)


@pytest.mark.parametrize(("answer", "row"), ANSWERS)
def test_nothing_is_asked(top: Path, answer: str, row: str) -> None:
    """What -i would ask of is told as what a yes would do."""
    make(top)
    foretell(["-i", *row.split()], top, "y\n" * 9)
    assert answer in ("y\n", "n\n", "", "yes\nno\n")


def test_the_summary(top: Path) -> None:
    """Files that have contents, and how many bytes these are."""
    make(top)
    done = aiocp(["--dry-run", "-r", "d", "f", "link", "new"], top)
    assert "target 'new' is not a directory" in done.stderr
    counted = "1 file: 6 bytes"
    assert f"aiocp: would copy {counted}\n" == aiocp(["--dry-run", "f", "new"], top).stderr
    done = aiocp(["--dry-run", "-r", "t", "f", "into"], top)
    size = sum(path.stat().st_size for path in (top / "t").rglob("*") if path.is_file())
    size += len("source") - len("one of t")  # of what "back" leads to
    counted = f"8 files, 2 directories, 1 link: {size} bytes"
    assert (0, f"aiocp: would copy {counted}\n") == (done.returncode, done.stderr)


@pytest.mark.root
def test_a_tree_of_everything(tmp_path: Path) -> None:
    """Each kind, name and attribute."""
    make_tree(tmp_path / "src")
    (tmp_path / "new").mkdir()
    for words in (["-aT"], ["-rT"], ["-abT"], ["-aT", "--backup=t"], ["-rLT"]):
        assert foretell([*words, "src", "new"], tmp_path) or "-aT" not in words


def test_a_deep_tree(tmp_path: Path) -> None:
    """Directories are let go of on the way down, and found again, whether they are there or not."""
    for levels, name in ((100, "src"), (50, "new")):
        deep = tmp_path / name / "/".join(["d"] * levels)
        deep.mkdir(parents=True)
        for above in [deep, *deep.parents][:levels]:
            (above / "f").write_text(name)
    assert 100 + 50 == len(foretell(["-rT", "src", "new"], tmp_path).splitlines())
    foretell(["-rT", "src", "new"], tmp_path)


@pytest.mark.root
def test_what_the_file_system_refuses(tmp_path: Path) -> None:
    """One that is mounted to be read only, and hard links to another one."""
    (tmp_path / "f").write_text("contents")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "g").write_text("contents")
    with mounted("ext4") as point:
        for words in (["-l", "f"], ["-rl", "d"]):
            done = aiocp(["--dry-run", *words, str(point)], tmp_path)
            assert 1 == done.returncode
            assert ": link: Invalid cross-device link\n" in done.stderr
        (point / "f").write_text("there")
        subprocess.run(["mount", "-o", "remount,ro", point], check=True)
        for words in (["f"], ["-r", "d"], ["-T", "f"], ["-P", "f"]):
            at = point / "f" if words[0] == "-T" else point
            done = aiocp(["--dry-run", *words, str(at)], tmp_path)
            real = aiocp([*words, str(at)], tmp_path)
            assert 1 == done.returncode == real.returncode
            assert "Read-only file system" in done.stderr
            assert real.stderr in done.stderr


def test_json(top: Path) -> None:
    """An object for each thing that would be copied, none of which is synced."""
    make(top)
    done = aiocp(["--dry-run", "--json", "-r", "d", "f", "into"], top)
    assert 0 == done.returncode
    *entries, total = map(json.loads, done.stdout.splitlines())
    (file,) = [entry for entry in entries if entry["source"] == "f"]
    expected = {"type": "file", "destination": "into/f", "method": "copy", "size": 6}
    assert expected == {key: file[key] for key in expected}
    assert (False, 4) == (total["synced"], total["files"])
    assert "'f' -> 'into/f'\n" in done.stderr


def test_a_plan_of_the_library(top: Path) -> None:
    """What copy_tree() would do: to be told of, counted, and raised."""
    make(top)
    plan, told = Plan(), []

    def tell(outcome: Outcome) -> None:
        told.append(outcome.destination)

    before = facts(top)
    result = copy_tree(top / "t", top / "new", plan=plan, on_entry=tell)
    assert before == facts(top)
    copied = copy_tree(top / "t", top / "new")
    assert (7, False) == (result.files, result.synced)
    assert copied[2:7] == result[2:7]
    assert {*map(str, (top / "new").rglob("*")), str(top / "new")} == {*told}
    with pytest.raises(ExceptionGroup, match="not copied"):
        copy_tree(top / "t", top / "over" / "t", plan=plan)
