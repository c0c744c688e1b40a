"""The command against GNU cp: the same tree and arguments, the same result and exit status."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from against_cp import NOBODY, compare, cp, make, make_anothers, write
from aiocp import arguments, request
from cp_rows import ROWS
from filesystems import scratch_directory
from forked import aiocp
from trees import differences, everything, make_tree

AIOCP = [sys.executable, "-m", "aiocp"]


@pytest.fixture
def tops() -> Iterator[tuple[Path, Path]]:
    """The directory that cp works in, and aiocp's."""
    with scratch_directory() as scratch:
        (scratch / "cp").mkdir()
        (scratch / "aiocp").mkdir()
        yield scratch / "cp", scratch / "aiocp"


@pytest.mark.parametrize("row", ROWS)
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
    expected, done = cp(row.split(), theirs), aiocp(row.split(), ours)
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
        cp(words, theirs, stdin)
        done = aiocp(words, ours, stdin)
        assert everything(theirs) == everything(ours)
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


AS_USER = """
    f locked
    -f f locked
    -fv f locked
    -b f locked
    -bv f locked
    --remove-destination f locked
    --remove-destination -v f locked
    --attributes-only f locked
    --attributes-only -fp f locked
    -a d new
    -rp d new
    -ab d into
    -abv t over
    secret/f f into
    -l secret/f f into
    -s secret/f new
    --parents secret/f sub
    --parents d/f sub
    -p theirs new
    -pb f theirs
    -b f theirs
    -l theirs new
    -a theirs new
    --attributes-only -p theirs new
    -rf d locked-tree/d
    -rfv d locked-tree/d
    -r d locked-tree/d
    -rb d locked-tree/d
    -rl d locked-tree/d
    -rlf d locked-tree/d
    -r t over
    -a t over
    --parents -a d/sub/x into
    --parents -p d/sub/x sub
    --copy-contents -r t new
"""


@pytest.mark.root
@pytest.mark.parametrize("row", [row.strip() for row in AS_USER.strip().splitlines()])
def test_as_an_ordinary_user(tops: tuple[Path, Path], row: str) -> None:
    tops[0].parent.chmod(0o755)
    for top in tops:
        make_anothers(top)
    compare(tops, row, user=NOBODY)


OPTIONS = st.lists(
    st.sampled_from(
        (
            *("-r", "-R", "-a", "-d", "-p", "-P", "-L", "-H", "-n", "-u", "-f", "-x", "-T", "-v"),
            *(
                "-b",
                "--backup=existing",
                "--backup=t",
                "-S.o",
                "-l",
                "-s",
                "-Z",
                "-bf",
                "-lf",
                "-sf",
            ),
            *("--parents", "--attributes-only", "--copy-contents", "--context=unknown"),
            *("--preserve=mode", "--preserve=links", "--preserve=all", "--preserve=x,timestamps"),
            *("--preserve", "--no-preserve=mode", "--no-preserve=links", "--no-preserve=all"),
            *("--remove-destination", "--strip-trailing-slashes"),
        )
    ),
    max_size=5,
)
OPERANDS = st.lists(
    st.sampled_from(
        (
            *("f", "g", "h", "d", "d/", "d/.", "link", "dlink", "dangling", "fifo", "missing"),
            *("d/f", "d/sub", "d/sub/x", "d/link", "e/d", "two", "w", "w~"),
            *("t", "t/.", "t/one", "t/two", "t/three", "t/five", "t/six", "t/back"),
        )
    ),
    min_size=1,
    max_size=3,
    unique=True,
)
TARGETS = st.sampled_from(
    (
        *("into", "into/", "new", "new/", "sub", "e", "locked", "two", "into/g", "into/d"),
        *("dlink", "into/link", "over", "over/t", "over/t/one", "over/t/three", "w", "f", "link"),
    )
)


def is_comparable(options: list[str], operands: list[str], target: str) -> bool:
    """Whether both can be run to their end, and are to come to the same: see the README."""
    given = {*options}
    recursive = {"-r", "-R", "-a"} & given
    linking = {"-l", "-s", "-lf", "-sf"} & given
    links = {"-a", "-d", "--preserve=links", "--preserve=all"} & given
    with_fifo = {"d", "d/", "d/.", "dlink", "fifo", "e/d"} & {*operands}
    reads_fifo = not linking and (not recursive or "--copy-contents" in given)
    if with_fifo and reads_fifo:
        return False  # it would be waited for
    if target == "dlink" and any(name.startswith("d") for name in operands):
        return False  # into itself: cp stops, or, for a link, loses it
    if target == "link" and "link" in operands:
        return False  # cp, making room for it, loses it
    if "d/sub" in operands and {"d", "d/", "d/.", "dlink"} & {*operands}:
        return False  # cp copies no directory twice
    if "--parents" in given and len(operands) > 1:
        return False  # cp takes what the first has found for true of the second
    in_directory = recursive or target not in ("new", "w", "f", "link", "two", "locked")
    if {"-s", "-sf"} & given and in_directory:
        return False  # cp removes what is there, and only then finds that it cannot make the link
    if "-u" in given and (links or len(operands) > 1):
        return False  # cp links over newer files
    if "d/." in operands or "t/." in operands:
        return len(operands) == 1  # cp trips over one name from two operands
    return True


@pytest.mark.parametrize("user", [0, pytest.param(NOBODY, marks=pytest.mark.root)])
def test_any_options_and_operands(user: int) -> None:
    """As root and as somebody else."""

    @settings(
        max_examples=100, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )
    @given(OPTIONS, OPERANDS, TARGETS)
    def try_it(options: list[str], operands: list[str], target: str) -> None:
        assume(is_comparable(options, operands, target))
        with tempfile.TemporaryDirectory() as scratch:
            Path(scratch).chmod(0o755)
            tops = Path(scratch) / "cp", Path(scratch) / "aiocp"
            for top in tops:
                (make_anothers if user else make)(top)
            compare(tops, [*options, *operands, target], user=user)

    try_it()


# --- what cp 9.1 has not, or has wrong: from the manual of 9.9 ------------------------------------


def test_update_none_fail(tmp_path: Path) -> None:
    """Like none, and each file that is there is an error."""
    make(tmp_path)
    before = everything(tmp_path)
    done = aiocp(["-r", "--update=none-fail", "d", "f", "into"], tmp_path)
    assert 1 == done.returncode
    assert {
        "aiocp: cannot copy 'd/f' to 'into/d/f': not replacing what is there",
        "aiocp: cannot copy 'f' to 'into/f': not replacing what is there",
    } == {*done.stderr.splitlines()}
    after = everything(tmp_path)
    assert before.keys() < after.keys()
    for name in (b"/into/d/f", b"/into/f"):
        assert before[name] == after[name]
    done = aiocp(["-n", "--update=none-fail", "f", "into"], tmp_path)
    assert (0, "") == (done.returncode, done.stderr)  # which counts as well as before


@pytest.mark.parametrize("words", ["f into", "-n f into", "-u f into", "-r d into"])
def test_update_none_is_no_clobber(tops: tuple[Path, Path], words: str) -> None:
    """What cp -n does, --update=none does, whatever else is said; --update=all is no --update."""
    theirs, ours = tops
    for top in tops:
        make(top)
    done = aiocp(["--update=none", *words.replace("-u ", "").split()], ours)
    cp(["-n", *words.replace("-u ", "").split()], theirs)
    assert (0, "") == (done.returncode, done.stderr)
    assert everything(theirs) == everything(ours)
    cp(["f", "into"], theirs)
    aiocp(["--update=none", "--update=all", "f", "into"], ours)
    assert everything(theirs) == everything(ours)


def test_what_is_declined_is_not_copied(tmp_path: Path) -> None:
    """So the exit status is 1, while that of what -n leaves alone is 0."""
    make(tmp_path)
    before = everything(tmp_path)
    assert 1 == aiocp(["-i", "f", "into"], tmp_path, "n\n").returncode
    assert 1 == aiocp(["-i", "-b", "f", "into"], tmp_path, "").returncode
    assert 1 == aiocp(["-ri", "d/f", "into/d"], tmp_path, "no\n").returncode
    assert before == everything(tmp_path)


@pytest.mark.parametrize("how", ["simple", "never", "s"])
def test_simple_backups_in_another_directory(tmp_path: Path, how: str) -> None:
    """They are beside the file; 9.1 puts them into the current directory."""
    make(tmp_path)
    done = aiocp([f"--backup={how}", "-v", "g", "into"], tmp_path)
    assert "'g' -> 'into/g' (backup: 'into/g~')\n" == done.stdout
    assert (tmp_path / "into" / "g~").read_text() == "was there"
    done = aiocp([f"--backup={how}", "-rv", "d", "into"], tmp_path)
    assert "'d/f' -> 'into/d/f' (backup: 'into/d/f~')\n" in done.stdout
    assert (tmp_path / "into" / "d" / "f~").read_text() == "below, newer"
    assert not (tmp_path / "g~").exists()


@pytest.mark.parametrize(
    ("control", "words", "backup"),
    [
        ("numbered", "-b", "into/f.~1~"),
        ("t", "--backup", "into/f.~1~"),
        ("simple", "-b", "into/f~"),
        ("existing", "-S .x", "into/f.x"),
        ("numbered", "--backup=simple", "into/f~"),
        ("numbered", "--backup=", "into/f.~1~"),
        ("none", "-b", None),
        ("off", "--suffix=.x", None),
        ("", "-b", "into/f~"),
        ("some", "--backup=numbered", "into/f.~1~"),
    ],
)
def test_version_control(tmp_path: Path, control: str, words: str, backup: str | None) -> None:
    """The environment says how, where the options do not."""
    make(tmp_path)
    done = aiocp([*words.split(), "-v", "f", "into"], tmp_path, VERSION_CONTROL=control)
    said = f" (backup: '{backup}')" if backup else ""
    assert (0, f"'f' -> 'into/f'{said}\n") == (done.returncode, done.stdout)


def test_a_version_control_that_there_is_not(tmp_path: Path) -> None:
    """Matters only where there are to be backups."""
    make(tmp_path)
    done = aiocp(["-b", "f", "into"], tmp_path, VERSION_CONTROL="some")
    assert 2 == done.returncode
    assert "invalid value for '$VERSION_CONTROL': takes none, simple," in done.stderr
    assert 0 == aiocp(["f", "into"], tmp_path, VERSION_CONTROL="some").returncode


@pytest.mark.parametrize(
    ("suffix", "words", "backup"),
    [(".x", "-b", "f.x"), (".x", "-b -S .y", "f.y"), ("a/b", "-b", "f~"), ("", "-b", "f~")],
)
def test_simple_backup_suffix(tmp_path: Path, suffix: str, words: str, backup: str) -> None:
    make(tmp_path)
    words = f"{words} -v f into"
    done = aiocp(words.split(), tmp_path, SIMPLE_BACKUP_SUFFIX=suffix)
    assert f"'f' -> 'into/f' (backup: 'into/{backup}')\n" == done.stdout


@pytest.mark.parametrize("words", ["-rT t/sub over/t/sub", "-r t/sub over/t", "-r t over"])
def test_keep_directory_symlink(tmp_path: Path, words: str) -> None:
    """A link to a directory is followed, in a tree and as the destination itself."""
    make(tmp_path)
    before = everything(tmp_path)
    done = aiocp(words.split(), tmp_path)
    assert 1 == done.returncode
    assert not (tmp_path / "away" / "x").exists()
    assert before[b"/over/t/sub"] == everything(tmp_path)[b"/over/t/sub"]
    for name in ("three", "five"):  # what is in the way in any case
        (tmp_path / "over" / "t" / name).unlink()
    done = aiocp(["--keep-directory-symlink", *words.split()], tmp_path)
    assert (0, "") == (done.returncode, done.stderr)
    assert (tmp_path / "over" / "t" / "sub").is_symlink()
    assert (tmp_path / "away" / "x").read_text() == "sub/x of t"


def test_debug(tmp_path: Path) -> None:
    """What -v says, with how each file was copied, and what was left alone."""
    make(tmp_path)
    done = aiocp(["--debug", "-bl", "f", "g", "into"], tmp_path)
    assert [
        "'f' -> 'into/f' (backup: 'into/f~'): hard-link",
        "'g' -> 'into/g' (backup: 'into/g.~3~'): hard-link",
    ] == done.stdout.splitlines()
    done = aiocp(["--debug", "--update=none", "-r", "d", "into"], tmp_path)
    lines = done.stdout.splitlines()
    assert "skipped 'into/d/f'" in lines
    assert "'d/sub' -> 'into/d/sub': directory" in lines


def test_a_context_without_selinux(tmp_path: Path) -> None:
    """One that is named cannot be set, which is a warning; the usual one is nothing to set."""
    make(tmp_path)
    for words, warning in (("-Z", ""), ("--context", ""), ("--context=some", "ignoring --context")):
        done = aiocp([words, "f", "new"], tmp_path)
        assert 0 == done.returncode
        assert warning in done.stderr
        assert bool(warning) == bool(done.stderr)
        assert (tmp_path / "new").exists()


def test_a_context_with_selinux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Is refused: nobody has it set wrong without knowing."""
    make(tmp_path)
    monkeypatch.setattr(request, "_SELINUX", tmp_path)
    for words in ("-Z", "--context=some"):
        done = aiocp([words, "f", "new"], tmp_path)
        assert 2 == done.returncode
        assert "-Z and --context are not for where SELinux is" in done.stderr
        assert not (tmp_path / "new").exists()


REFUSALS = [
    ("f f", "are the same file"),
    ("-b f ./f", "are the same file"),
    ("-sf f f", "are the same file"),
    ("-P link f", "are the same file"),
    ("-b w~ w", "backing up .* might destroy (the )?source"),
    ("-Pr d/link link sub", "will not overwrite .*just.created"),
    ("f d/f sub", "will not overwrite .*just.created"),
    ("-b f d/f sub", "will not overwrite .*just.created"),
    ("-T f d", "cannot overwrite (a )?directory .*with"),
    ("-r e/d into", "cannot overwrite (a )?directory .*with"),
    ("-r d f", "cannot overwrite (non|what is no ).?directory .*with"),
    ("f dangling", "not writing through dangling symlink"),
    ("-r t over", "not writing through dangling symlink"),
    ("-s f into", "can make relative symlinks only in (the )?current directory"),
    ("d new", "omitting directory"),
    ("-r d d", "cannot copy a directory.* into itself"),
    ("--parents t/one w", "with --parents, the destination must be a directory"),
    ("--parents e/d into/f", "with --parents, the destination must be a directory"),
    ("--parents d/sub/x e", "exists but is not a directory"),
    ("-ls f new", "cannot make both hard and symlinks"),
    ("-l f g", "File exists"),
    ("-s f g", "File exists"),
    ("-r d ./d into", "warning: source directory .* more than once"),
    ("f ./f into", "warning: source file .* more than once"),
]


@pytest.mark.parametrize(("row", "words"), REFUSALS)
def test_refusals_say_the_same(tops: tuple[Path, Path], row: str, words: str) -> None:
    """As cp, with other words around it."""
    for said_by, top in zip((cp, aiocp), tops, strict=True):
        make(top)
        said = said_by(row.split(), top).stderr.replace("symbolic link", "symlink")
        assert re.search(words, said), said


def test_a_link_that_was_just_created(tops: tuple[Path, Path]) -> None:
    """Is not copied through, be it dangling or not."""
    for top in tops:
        make(top)
        (top / "t" / "dangling").write_text("of t")
        (top / "t" / "link").write_text("of t")
    for name in ("dangling", "link"):
        said = compare(tops, f"-P {name} t/{name} sub")
        assert "will not copy through a symbolic link that was just created" in said


# --- what cp has not -----------------------------------------------------------------------------


def test_exclude(tmp_path: Path) -> None:
    """Patterns as in .gitignore, relative to each source directory, the last one that fits wins."""
    make(tmp_path)
    write(tmp_path / "d" / "keep.o")
    write(tmp_path / "d" / "sub" / "other.o")
    (tmp_path / "patterns").write_text("# a comment\n*.o\n/f\n")
    words = ["-r", "--exclude-from", "patterns", "--exclude=!keep.o", "--exclude", "up", "d", "new"]
    done = aiocp(words, tmp_path)
    assert (0, "") == (done.returncode, done.stderr)
    found = {str(path.relative_to(tmp_path / "new")) for path in (tmp_path / "new").rglob("*")}
    assert {"fifo", "hard", "keep.o", "link", "sub", "sub/x"} == found


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
        ("-a", "--archive --no-dereference --preserve=+all --"),
    ],
)
def test_arguments_are_written_anew(given: str, expected: str) -> None:
    names = {"--depth", "--dereference", "--preserve", "--no-preserve", "--update", "-t", "-i"}
    valued = {"--depth", "--preserve", "--no-preserve", "--update", "-t", "-u"}
    assert expected.split() == arguments.rewrite(given.split(), names, valued)
