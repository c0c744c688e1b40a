"""The command against GNU cp: the same tree and arguments, the same result and exit status."""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from aiocp import arguments
from filesystems import scratch_directory
from trees import differences, make_tree, snapshot

AIOCP = [sys.executable, "-m", "aiocp"]
OLD, NEW = 1_000_000_000, 1_500_000_000

Make = Callable[[Path], None]


def write(path: Path, text: str = "", when: int = OLD, mode: int = 0o640) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text or path.name)
    path.chmod(mode)
    os.utime(path, (when, when))


def make(top: Path) -> None:
    """What the rows below copy: each kind, sources and destinations, older and newer."""
    write(top / "f", "source", OLD)
    write(top / "g", "another", NEW, 0o755)
    (top / "h").hardlink_to(top / "f")
    (top / "link").symlink_to("f")
    (top / "dlink").symlink_to("d")
    (top / "dangling").symlink_to("nowhere")
    os.mkfifo(top / "fifo", 0o604)
    write(top / "d" / "f", "in d")
    write(top / "d" / "sub" / "x", "below", mode=0o400)
    (top / "d" / "link").symlink_to("f")
    (top / "d" / "up").symlink_to("sub")
    os.mkfifo(top / "d" / "fifo")
    (top / "d" / "hard").hardlink_to(top / "d" / "f")
    (top / "d" / "sub").chmod(0o750)
    os.utime(top / "d" / "sub", (OLD, OLD))
    write(top / "e" / "d", "a file where a directory is")
    write(top / "into" / "g", "was there", (OLD + NEW) // 2)
    write(top / "into" / "f", "was there too", NEW, 0o600)
    write(top / "into" / "d" / "f", "below, newer", NEW)
    write(top / "into" / "d" / "mine", "only here")
    (top / "into" / "link").symlink_to("g")
    (top / "into" / "fifo").mkdir()
    write(top / "into" / "sub" / "keep")
    write(top / "locked", "may not be written", mode=0o444)
    write(top / "two")
    (top / "names").hardlink_to(top / "two")


def run(
    command: list[str], top: Path, stdin: str = "", **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=top,
        input=stdin,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        env={**os.environ, "LC_ALL": "C.UTF-8", **environment},
        timeout=60,
    )


@pytest.fixture
def tops() -> Iterator[tuple[Path, Path]]:
    """The directory that cp works in, and aiocp's."""
    with scratch_directory() as scratch:
        (scratch / "cp").mkdir()
        (scratch / "aiocp").mkdir()
        yield scratch / "cp", scratch / "aiocp"


def links_of(top: Path) -> set[frozenset[str]]:
    """Which names are of one file."""
    names: dict[int, set[str]] = {}
    for directory, _, files in os.walk(top):
        for name in files:
            path = os.path.join(directory, name)
            names.setdefault(os.lstat(path).st_ino, set()).add(os.path.relpath(path, top))
    return {frozenset(same) for same in names.values()}


def compare(
    tops: tuple[Path, Path], arguments: str | list[str], stdin: str = "", **environment: str
) -> str:
    """Run both on the same; what aiocp has said."""
    words = arguments.split() if isinstance(arguments, str) else arguments
    theirs, ours = tops
    expected = run(["cp", *words], theirs, stdin, **environment)
    done = run([*AIOCP, *words], ours, stdin, **environment)
    said = f"\n{expected.stderr}{done.stderr}"
    assert "Traceback" not in done.stderr
    assert bool(expected.returncode) == bool(done.returncode), said
    assert snapshot(theirs) == snapshot(ours), said
    assert links_of(theirs) == links_of(ours), said
    return done.stderr


ROWS = """
    f new
    f new/
    f g into
    f g link into
    -T f new
    -T f into
    -T d new
    -r -T d into
    -rT d into/
    -rT d dlink
    -rT d dlink/
    -t into f g
    -tinto f g
    --target-directory=into f g
    --target-directory into f g
    --target=into f g
    -t missing f
    -t into -T f
    -t f g
    -T f g into
    f
    f g missing
    missing into
    missing f into
    d new
    d f into
    -r d new
    -r d new/
    -r d into
    -R d into
    --recursive d into
    --recurs d new
    -r d/ into
    -r d/. into
    -r d f link fifo dangling dlink missing
    -r d f link fifo dangling dlink new
    -r f link dangling dlink sub
    -r link dangling fifo e
    -r link new
    -r dangling new
    -r fifo new
    -r dlink new
    -r dlink/ new
    link new
    dlink new
    dangling new
    dlink into
    f/ new
    link/ new
    -r f/ new
    -r f d
    -r d f
    -r d e
    -r e/d into
    -r fifo into
    -r d .
    -r d/sub .
    f f
    f h
    f link
    link f
    f .
    link link
    -P link link
    f f sub
    f ./f sub
    f d/f sub
    f d/f g sub
    -r d d sub
    -r d ./d sub
    -r d e/d into
    -r link d/link sub
    -P link new
    -P link f into
    -d link new
    -P dlink new
    -L link new
    -rL link new
    -rL dlink new
    -rL d new
    -aL d into
    -aL d dlink new
    -rH dlink link new
    -rH dlink new
    -rH dlink link e
    -rLP dlink new
    -rPL dlink new
    -rPH dlink new
    -rLH dlink new
    -r --dereference d new
    -r --no-dereference d new
    -p f new
    -p g into
    -rp d new
    -rp d into
    -a d new
    -a d into
    -a d/. into
    -a d f link fifo e
    -a . /dev/null
    --archive d new
    -a --no-preserve=links d new
    -a --no-preserve=mode d new
    -a --no-preserve=all d new
    --no-preserve=all -a d new
    -r --no-preserve=mode d new
    -r --no-preserve=mode fifo new
    --no-preserve=mode g new
    --no-preserve=mode -p g new
    --preserve f new
    --preserve=mode g new
    --preserve=mode g into
    --preserve=timestamps g new
    --preserve=mode,timestamps g new
    --preserve=links f h sub
    --preserve=colour f new
    --no-preserve f new
    --no-preserve= f new
    --preserve= f new
    -r --preserve=links f h d sub
    -dr f h d sub
    -d f h sub
    -d link f h sub
    -d two names sub
    -a g two
    -d g two
    g two
    -L --preserve=links f link sub
    -rL --preserve=links f link sub
    -x -r d new
    -n f into
    -n g into
    -n f new
    -rn d into
    -n fifo into
    -rn fifo into
    -rn link into
    -u f into
    -u g into
    -u f g into
    -ru d into
    -u f new
    --update g into
    --no-clobber f into
    -nu g into
    -f g locked
    -f f into
    --force f into
    --remove-destination f into
    --remove-destination g two
    --remove-destination g into/link
    --remove-destination -r d into
    --remove-destination g dangling
    --remove-destination f f
    f dangling
    f into/link
    --strip-trailing-slashes f/ new
    --strip-trailing-slashes link/ new
    --strip-trailing-slashes -r dlink/ new
    --strip-trailing-slashes -r d/// into
    f new -v
    f g -t into
    d -r new
    -- f new
    -r -- d new
    f -- new
    f new -- extra
    -rpt into d f
    -rptinto d f
    -pr d new
    -r -v d new
    f new --nonsense
    -q f new
""".strip().splitlines()


@pytest.mark.parametrize("row", [row.strip() for row in ROWS])
def test_as_cp(tops: tuple[Path, Path], row: str) -> None:
    """The same result and exit status (usage errors are 2 here)."""
    for top in tops:
        make(top)
    compare(tops, row)


SELF = ["-r d/.. into", "-r . into", "-r d d", "-r d d/new", "-r d d/sub", "-r d d/sub/new"]


@pytest.mark.parametrize("row", SELF)
def test_a_directory_into_itself(tops: tuple[Path, Path], row: str) -> None:
    """Refused as by cp; where cp stops at once, with what it had by then, the rest is copied."""
    theirs, ours = tops
    for top in tops:
        make(top)
    expected, done = run(["cp", *row.split()], theirs), run([*AIOCP, *row.split()], ours)
    assert 1 == expected.returncode == done.returncode
    assert "into itself" in done.stderr
    assert len(list(ours.rglob("*"))) < 2 * len(list(theirs.rglob("*")))


@pytest.mark.root
@pytest.mark.parametrize("row", ["-a s new", "-a s/. new", "-a s into", "-rp s new", "-rpd s new"])
def test_attributes_are_kept(tops: tuple[Path, Path], row: str) -> None:
    """rsync finds nothing to do between what cp has made and what aiocp has."""
    theirs, ours = tops
    make_tree(theirs / "s")
    subprocess.run(["cp", "-a", theirs / "s", ours / "s"], check=True)
    for top in tops:
        make(top / "more")
        (top / "into").mkdir()
    compare(tops, row)
    for top in tops:  # it was there before, and has the time of what was put into it
        os.utime(top / "into", (0, 0))
    assert differences(theirs / "into", ours / "into") == ""
    if (theirs / "new").exists():
        assert differences(theirs / "new", ours / "new") == ""


ANSWERS = [("y\n", "f into"), ("n\n", "f into"), ("", "f into"), ("yes\nno\n", "f g into")]


@pytest.mark.parametrize(("stdin", "row"), [*ANSWERS, ("n\n", "-r d into"), ("y\n", "-r d into")])
def test_it_asks(tops: tuple[Path, Path], stdin: str, row: str) -> None:
    for top in tops:
        make(top)
    theirs, ours = tops
    for options in ("-i", "-ni", "-fi"):
        words = [options, *row.split()]
        run(["cp", *words], theirs, stdin)
        done = run([*AIOCP, *words], ours, stdin)
        assert snapshot(theirs) == snapshot(ours)
        if "-r" not in words:
            assert done.stderr.count("? ") == len(words) - 2


def test_no_clobber_after_interactive_does_not_ask(tops: tuple[Path, Path]) -> None:
    for top in tops:
        make(top)
    assert compare(tops, "-i -n f into") == ""


def test_posixly_correct(tops: tuple[Path, Path]) -> None:
    """Then options end at the first operand."""
    for top in tops:
        make(top)
    assert "not a directory" in compare(tops, "d -r new", POSIXLY_CORRECT="1")
    assert "cannot copy" not in compare(tops, "-r d new", POSIXLY_CORRECT="1")


@pytest.mark.root
@pytest.mark.parametrize(
    "row",
    [
        "f locked",
        "-f f locked",
        "--remove-destination f locked",
        "-a d new",
        "-rp d new",
        "secret/f f into",
        "-p theirs new",
        "-rf d locked-tree/d",
        "-r d locked-tree/d",
    ],
)
def test_as_an_ordinary_user(tops: tuple[Path, Path], row: str) -> None:
    theirs, ours = tops
    theirs.parent.chmod(0o755)
    for top in tops:
        make(top)
        write(top / "secret" / "f", mode=0o600)
        write(top / "theirs", mode=0o4755)
        write(top / "locked-tree" / "d" / "f", "locked", mode=0o444)
        write(top / "locked-tree" / "d" / "sub" / "x", "locked", mode=0o444)
        subprocess.run(["chown", "-R", "65534:65534", top], check=True)
        for name in ("secret", "theirs"):
            os.chown(top / name, 0, 0)
        os.chown(top / "secret" / "f", 0, 0)
        (top / "secret").chmod(0o700)
        (top / "theirs").chmod(0o4755)
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    expected = run([*user, "cp", *row.split()], theirs)
    done = run([*user, *AIOCP, *row.split()], ours)
    said = f"\n{expected.stderr}{done.stderr}"
    assert bool(expected.returncode) == bool(done.returncode), said
    assert snapshot(theirs) == snapshot(ours), said


OPTIONS = st.lists(
    st.sampled_from(
        (
            *("-r", "-R", "-a", "-d", "-p", "-P", "-L", "-H", "-n", "-u", "-f", "-x", "-T"),
            *("--preserve=mode", "--preserve=links", "--preserve=all", "--preserve"),
            *("--no-preserve=mode", "--no-preserve=links"),
            *("--remove-destination", "--strip-trailing-slashes"),
        )
    ),
    max_size=4,
)
OPERANDS = st.lists(
    st.sampled_from(
        (
            *("f", "g", "h", "d", "d/", "d/.", "link", "dlink", "dangling", "fifo", "missing"),
            *("d/f", "d/sub", "e/d", "two"),
        )
    ),
    min_size=1,
    max_size=3,
    unique=True,
)
TARGETS = st.sampled_from(
    ("into", "into/", "new", "new/", "sub", "e", "locked", "two", "into/g", "into/d", "dlink")
)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(OPTIONS, OPERANDS, TARGETS)
def test_any_options_and_operands(options: list[str], operands: list[str], target: str) -> None:
    """Without -r a FIFO is waited for, by both; what differs by intention is in the README."""
    recursive = {"-r", "-R", "-a"} & {*options}
    operands = [name for name in operands if name != "fifo" or recursive]
    assume(operands)
    assume(target != "dlink" or not {"d", "d/", "d/.", "dlink"} & {*operands})  # into itself
    links = {"-a", "-d", "--preserve=links", "--preserve=all"} & {*options}
    assume(not (links and "-u" in options))  # cp links over newer files
    inside = [name for name in operands if name == "d/."]
    assume(not (inside and len(operands) > 1))  # cp trips over one name from two operands
    with tempfile.TemporaryDirectory() as scratch:
        tops = Path(scratch) / "cp", Path(scratch) / "aiocp"
        for top in tops:
            make(top)
        compare(tops, [*options, *operands, target])


# --- what cp has not -----------------------------------------------------------------------------


def test_exclude(tmp_path: Path) -> None:
    """Patterns as in .gitignore, relative to each source directory, the last one that fits wins."""
    make(tmp_path)
    write(tmp_path / "d" / "keep.o")
    write(tmp_path / "d" / "sub" / "other.o")
    (tmp_path / "patterns").write_text("# a comment\n*.o\n/f\n")
    words = ["-r", "--exclude-from", "patterns", "--exclude=!keep.o", "--exclude", "up", "d", "new"]
    done = run([*AIOCP, *words], tmp_path)
    assert (0, "") == (done.returncode, done.stderr)
    found = {str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*")}
    assert {"fifo", "hard", "keep.o", "link", "sub", "sub/x"} == found


def test_json_is_one_object_a_tree(tmp_path: Path) -> None:
    """With the fields of TreeResult; errors, also told as they happen, are strings."""
    make(tmp_path)
    done = run([*AIOCP, "-r", "--json", "d", "f", "into"], tmp_path)
    tree, file = map(json.loads, done.stdout.splitlines())
    assert ("d", "into/d", 2, 1) == tuple(
        tree[name] for name in ("source", "destination", "directories", "specials")
    )
    assert ([], "into/f", 6) == (tree["errors"], file["destination"], file["size"])
    (tmp_path / "into" / "d" / "hard").unlink()
    (tmp_path / "into" / "d" / "hard").mkdir()
    done = run([*AIOCP, "-r", "--json", "d", "into"], tmp_path)
    assert done.returncode == 1
    (error,) = json.loads(done.stdout)["errors"]
    assert "'d/hard' -> 'into/d/hard'" in error
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("aiocp: cannot copy 'd/hard' to 'into/d/hard': ")


def test_verbose_is_a_line_a_tree(tmp_path: Path) -> None:
    make(tmp_path)
    (line,) = run([*AIOCP, "-rv", "d", "new"], tmp_path).stdout.splitlines()
    assert line.startswith("'d' -> 'new': 3 files, 2 directories, 2 links, 1 special files, ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_a_tree(tmp_path: Path, number: signal.Signals) -> None:
    """Every name that is there then is whole, and the rest of the operands is not begun."""
    (tmp_path / "source").mkdir()
    for i in range(3000):
        (tmp_path / "source" / str(i)).write_bytes(b"%d" % i * 1000)
    (tmp_path / "into").mkdir()
    process = subprocess.Popen(
        [*AIOCP, "-r", "--depth", "1", "source", "source/1", "into"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
    )
    copy = tmp_path / "into" / "source"
    while process.poll() is None and not (copy.exists() and any(copy.iterdir())):
        pass
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert 128 + number == process.returncode
    words = f"aiocp: stopped by {number.name}: 'source' was not copied as a whole\n"
    assert words == said.decode()
    names = os.listdir(copy)
    assert 0 < len(names) < 3000
    assert not (tmp_path / "into" / "1").exists()
    for name in names:
        assert (copy / name).read_bytes() == (tmp_path / "source" / name).read_bytes()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a -pr b", "--preserve=+mode,ownership,timestamps -r -- a b"),
        ("-rtX a", "-r -tX -- a"),
        ("-rt X a", "-r -tX -- a"),
        ("-t", "-t --"),
        ("--update a -u b", "--update=older --update=older -- a b"),
        ("-i -n -i a", "-i -- a"),
        ("-PL a --deref", "--dereference -- a"),
        ("--depth 3 --dep=4 -- -r", "--depth=3 --depth=4 -- -r"),
        ("--pre", "--preserve=+mode,ownership,timestamps --"),
        ("--no-preserve=mode -d", "--preserve=-mode --no-dereference --preserve=+links --"),
        ("--de a", "--de -- a"),
        ("- -r", "-r -- -"),
        ("-a", "--recursive --no-dereference --preserve=+all --"),
    ],
)
def test_arguments_are_written_anew(given: str, expected: str) -> None:
    names = {"--depth", "--dereference", "--preserve", "--no-preserve", "--update", "-t", "-i"}
    valued = {"--depth", "--preserve", "--no-preserve", "--update", "-t", "-u"}
    assert expected.split() == arguments.rewrite(given.split(), names, valued)
