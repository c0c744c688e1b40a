"""What of a source tree is copied: --include and --files-from."""

import os
import subprocess
from pathlib import Path

import pytest

from aiocp import copy_tree
from forked import aiocp
from trees import differences, everything


def make(top: Path) -> Path:
    """A source with files that end in .c at several depths, and directories that have none."""
    for name in (
        *("a.c", "a.o", "d/b.c", "d/b.o", "d/deep/er/c.c", "none/x.o", "none/deep/y.o"),
        *("docs/one", "docs/sub/two", "late/first.o", "late/deep/z.c"),
    ):
        path = top / "src" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    (top / "src" / "empty").mkdir()
    (top / "src" / "docs" / "void").mkdir()
    (top / "src" / "d" / "link.c").symlink_to("b.c")
    os.mkfifo(top / "src" / "d" / "fifo.c")
    for path in [*(top / "src").rglob("*"), top / "src"]:
        os.utime(path, (1_000_000_000, 1_000_000_000), follow_symlinks=False)
    return top / "src"


def names(top: Path) -> set[str]:
    return {str(path.relative_to(top)) for path in top.rglob("*")}


# --- --include ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (["--include=*.c"], ["--include=*.c"]),
        (["--include=/*.c"], ["--include=/*.c"]),
        (["--include=b.*", "--include", "/none/**"], ["--include=b.*", "--include=/none/**"]),
        (["--include=*.c", "--exclude=deep"], ["--exclude=deep", "--include=*.c"]),
        (["--exclude=d/", "--include=b.c"], ["--exclude=d/", "--include=b.c"]),
        (["--include=nothing"], ["--include=nothing"]),
    ],
)
def test_include(tmp_path: Path, ours: list[str], theirs: list[str]) -> None:
    """Of files only what matches, and no directories that have nothing of it, as rsync -m has it;
    those that are made get all their attributes."""
    make(tmp_path)
    command = [
        "rsync",
        "-am",
        "--specials",
        *theirs,
        "--include=*/",
        "--exclude=*",
        "src/",
        "rsync",
    ]
    subprocess.run(command, cwd=tmp_path, check=True)
    done = aiocp(["-aT", *ours, "src", "aiocp"], tmp_path)
    assert (0, "") == (done.returncode, done.stderr)
    assert differences(tmp_path / "rsync", tmp_path / "aiocp") == ""
    assert names(tmp_path / "rsync") == names(tmp_path / "aiocp")


@pytest.mark.parametrize("pattern", ["docs", "docs/", "/docs", "docs/**", "do*"])
def test_a_directory_that_is_included(tmp_path: Path, pattern: str) -> None:
    """Comes with everything below it, what is empty too, unless only what is in it is meant."""
    make(tmp_path)
    assert aiocp(["-aT", f"--include={pattern}", "src", "new"], tmp_path).returncode == 0
    expected = {"docs", "docs/one", "docs/sub", "docs/sub/two", "docs/void"}
    assert expected == names(tmp_path / "new")


def test_exclude_counts_for_more_than_include(tmp_path: Path) -> None:
    """In any order."""
    make(tmp_path)
    words = ["--exclude=b.c", "--include=*.c", "--exclude=deep"]
    for number, order in enumerate((words, words[::-1])):
        copy = f"copy{number}"
        assert aiocp(["-rT", *order, "src", copy], tmp_path).returncode == 0
        assert {"a.c", "d", "d/fifo.c", "d/link.c"} == names(tmp_path / copy)


def test_include_is_about_what_is_below(tmp_path: Path) -> None:
    """Not about what is named: a file that is an operand is copied whatever it is called."""
    make(tmp_path)
    (tmp_path / "into").mkdir()
    done = aiocp(["-r", "--include=a.c", "src", "src/a.o", "into"], tmp_path)
    assert (0, "") == (done.returncode, done.stderr)
    assert {"a.o", "src", "src/a.c"} == names(tmp_path / "into")


def test_include_leaves_what_is_there_alone(tmp_path: Path) -> None:
    """A directory that nothing comes into is not even looked at."""
    make(tmp_path)
    (tmp_path / "new" / "none").mkdir(parents=True)
    (tmp_path / "new" / "none").chmod(0o500)
    before = everything(tmp_path / "new")[b"/none"]
    assert aiocp(["-aT", "--include=*.c", "src", "new"], tmp_path).returncode == 0
    assert before == everything(tmp_path / "new")[b"/none"]


def test_a_directory_in_the_way_of_what_is_included(tmp_path: Path) -> None:
    """One error for it, whatever is below; nothing for one that nothing comes into."""
    make(tmp_path)
    (tmp_path / "new").mkdir()
    for name in ("late", "none"):
        (tmp_path / "new" / name).write_text("a file")
    done = aiocp(["-rT", "--include=*.c", "src", "new"], tmp_path)
    assert done.returncode == 1
    assert ["aiocp: cannot copy 'src/late' to 'new/late': make directory: Not a directory"] == (
        done.stderr.splitlines()
    )
    assert (tmp_path / "new" / "d" / "deep" / "er" / "c.c").read_text() == "d/deep/er/c.c"


@pytest.mark.parametrize("include", ["*.c", "nothing"])
def test_include_in_a_deep_tree(tmp_path: Path, include: str) -> None:
    """Directories far above what is included are made with their attributes."""
    deep = tmp_path / "src" / "/".join(["d"] * 100)
    deep.mkdir(parents=True)
    (deep / "a.c").write_text("deep")
    for path in [*(tmp_path / "src").rglob("d")]:
        os.setxattr(path, "user.of", b"x")
    done = aiocp(["-aT", f"--include={include}", "src", "new"], tmp_path)
    assert (0, "") == (done.returncode, done.stderr)
    if include == "*.c":
        assert differences(tmp_path / "src", tmp_path / "new") == ""
    else:
        assert not any(path.is_file() for path in (tmp_path / "new").rglob("*"))


def test_include_of_the_library(tmp_path: Path) -> None:
    """It is asked of files and of directories, but not of what is in one that it has taken."""
    source, asked = make(tmp_path), set()

    def include(path: bytes, is_directory: bool) -> bool:
        asked.add((path, is_directory))
        return path in (b"docs", b"d/b.c")

    copy_tree(source, tmp_path / "new", include=include)
    expected = {"d", "d/b.c", "docs", "docs/one", "docs/sub", "docs/sub/two", "docs/void"}
    assert expected == names(tmp_path / "new")
    assert (b"docs", True) in asked
    assert not any(path.startswith(b"docs/") for path, _ in asked)


# --- --files-from ---------------------------------------------------------------------------------


def rsync(top: Path, listed: bytes, *options: str) -> None:
    """What rsync makes of the names, in a directory of its name.

    To it a slash at the end, and ".", mean what is in a directory, and "/./" where a name begins.
    """
    listed = b"".join(os.path.normpath(name) + b"\n" for name in listed.split())
    command = ["rsync", "-dlptgoD", *options, "--files-from=-", "src/", "rsync/"]
    subprocess.run(command, cwd=top, check=True, input=listed)


LISTS = [
    "a.c\nd/b.c\n",
    "a.c",
    "\n\n./d//b.c\n/a.c\nd/./deep/er/c.c\n\n",
    "d/b.c\nd/b.c\n./d/b.c\n",
    "d\n",
    "d/\nd/deep\n",
    "d/deep/er/c.c\nd/b.c\nd\nd/deep\n",
    "d/link.c\nd/fifo.c\n",
    "empty\ndocs/void\n",
    "late/first.o\nlate/deep\nnone/deep/y.o\nnone/deep\ndocs/sub/two\n",
]


@pytest.mark.parametrize("listed", LISTS)
@pytest.mark.parametrize("recursive", [False, True])
@pytest.mark.parametrize("there", [False, True])
def test_files_from(tmp_path: Path, listed: str, recursive: bool, there: bool) -> None:
    """The names and the directories above them, as rsync has it: with -r all that is in those that
    are named, without, and with -a, only these."""
    make(tmp_path)
    if there:
        for copy in ("rsync", "aiocp"):
            (tmp_path / copy / "d").mkdir(parents=True)
            (tmp_path / copy / "d" / "b.c").write_text("was there")
    rsync(tmp_path, listed.encode(), *(["-r"] if recursive else []))
    (tmp_path / "list").write_text(listed)
    words = ["-ar" if recursive else "-a", "--files-from=list", "src", "aiocp"]
    done = aiocp(words, tmp_path)
    assert (0, "") == (done.returncode, done.stderr)
    for copy in ("rsync", "aiocp"):  # which is not among the names
        os.utime(tmp_path / copy, (0, 0))
        (tmp_path / copy).chmod(0o755)
    assert differences(tmp_path / "rsync", tmp_path / "aiocp") == ""
    assert names(tmp_path / "rsync") == names(tmp_path / "aiocp")


@pytest.mark.parametrize("listed", ["a.c", ".", "./", ".\na.c", "a.c\n/"])
@pytest.mark.parametrize("words", ["-a", "-ar"])
def test_the_source_itself(tmp_path: Path, words: str, listed: str) -> None:
    """DST gets its attributes if it is among the names; if not it stays as it is."""
    source, itself = make(tmp_path), not listed.endswith("c") or listed.startswith(".")
    source.chmod(0o711)
    (tmp_path / "new").mkdir(mode=0o700)
    done = aiocp([words, "--files-from=-", "src", "new"], tmp_path, listed)
    assert (0, "") == (done.returncode, done.stderr)
    assert (0o711 if itself else 0o700) == (tmp_path / "new").stat().st_mode & 0o7777
    assert itself == ((tmp_path / "new").stat().st_mtime_ns == source.stat().st_mtime_ns)
    if itself and words == "-ar":
        assert differences(source, tmp_path / "new") == ""
    else:
        assert names(tmp_path / "new") == ({"a.c"} if "a.c" in listed else set())


@pytest.mark.parametrize("words", [[], ["-r"], ["-rp"]])
def test_directories_above_are_as_parents_makes_them(tmp_path: Path, words: list[str]) -> None:
    """Those that are there keep what they have, unless attributes are preserved."""
    make(tmp_path)
    (tmp_path / "src" / "d").chmod(0o1751)
    (tmp_path / "src" / "d" / "deep").chmod(0o711)
    copies = [tmp_path / "parents", tmp_path / "list"]
    for copy in copies:
        (copy / "d").mkdir(parents=True)
        (copy / "d").chmod(0o775)
    assert aiocp([*words, "--parents", "d/deep/er", "../parents"], tmp_path / "src").returncode == (
        0 if words else 1
    )
    for name in ("d/deep/er/c.c", "d/b.c"):
        assert aiocp([*words, "--parents", name, "../parents"], tmp_path / "src").returncode == 0
    done = aiocp([*words, "--files-from=-", "src", "list"], tmp_path, "d/b.c\nd/deep/er/c.c\n")
    assert (0, "") == (done.returncode, done.stderr)
    expected, found = map(everything, copies)
    assert expected[b"/d/deep"] == found[b"/d/deep"]
    assert {path: facts[:2] for path, facts in expected.items() if path} == {
        path: facts[:2] for path, facts in found.items() if path
    }


def test_names_of_any_bytes(tmp_path: Path) -> None:
    """With -0 a name may have all that a name may have."""
    source = os.fsencode(make(tmp_path))
    odd = [b"new\nline", b"\xff\xfe", b" ", b"-r", b"*", b"'$'\\n", b"a\r", "ä/ö".encode()]
    os.mkdir(source + "/ä".encode())
    for name in odd:
        with open(source + b"/" + name, "wb") as file:
            file.write(name)
    (tmp_path / "list").write_bytes(b"\0".join(odd))
    done = aiocp(["--null", "--files-from", "list", "src", "new"], tmp_path)
    assert (0, "") == (done.returncode, done.stderr)
    new = os.fsencode(tmp_path / "new")
    assert {*odd} - {"ä/ö".encode()} | {"ä".encode()} == {*os.listdir(new)}
    for name in odd:
        with open(new + b"/" + name, "rb") as file:
            assert name == file.read()


@pytest.mark.parametrize("words", [["-0", "--files-from=-"], ["-0r", "--files-from=-"]])
def test_names_from_find(tmp_path: Path, words: list[str]) -> None:
    """What `find -print0` has found can be given as it is."""
    make(tmp_path)
    found = subprocess.check_output(["find", ".", "-name", "*.c", "-print0"], cwd=tmp_path / "src")
    done = aiocp([*words, "src", "new"], tmp_path, found.decode())
    assert (0, "") == (done.returncode, done.stderr)
    assert {path for path in names(tmp_path / "src") if path.endswith(".c")} == {
        path for path in names(tmp_path / "new") if not (tmp_path / "new" / path).is_dir()
    }


def test_names_that_are_not_there(tmp_path: Path) -> None:
    """One error for each of them, and the rest is copied."""
    make(tmp_path)
    listed = "missing\na.c\nmissing/x/y\na.o/x\na.o\nnone/z\na.o/y/z\nd/b.c\n" + "n" * 300 + "\n"
    done = aiocp(["--files-from=-", "src", "new"], tmp_path, listed)
    assert 1 == done.returncode
    gone, no_directory = "open source: No such file or directory", "open source: Not a directory"
    wrong = {"missing": gone, "missing/x/y": gone, "none/z": gone}
    wrong |= {"a.o/x": no_directory, "a.o/y/z": no_directory}
    wrong |= {"n" * 300: "open source: File name too long"}
    expected = [f"aiocp: cannot copy 'src/{x}' to 'new/{x}': {why}" for x, why in wrong.items()]
    assert sorted(expected) == sorted(done.stderr.splitlines())
    assert {"a.c", "a.o", "d", "d/b.c", "none"} == names(tmp_path / "new")


@pytest.mark.parametrize("name", ["..", "../secret", "d/../../secret", "d/..", "/../secret"])
def test_names_that_lead_out_are_refused(tmp_path: Path, name: str) -> None:
    """Whatever they would lead to; the rest is copied."""
    make(tmp_path)
    (tmp_path / "secret").write_text("not below")
    done = aiocp(["-r", "--files-from=-", "src", "new"], tmp_path, f"{name}\na.c\n")
    assert 1 == done.returncode
    assert done.stderr.endswith(": not a name below the source\n")
    assert {"a.c"} == names(tmp_path / "new")


def test_a_name_with_a_nul(tmp_path: Path) -> None:
    """Is none: somebody has forgotten -0."""
    make(tmp_path)
    done = aiocp(["--files-from=-", "src", "new"], tmp_path, "a.c\0a.o\0")
    assert 1 == done.returncode
    assert done.stderr.endswith(": not a name below the source\n")


@pytest.mark.parametrize("follow", [False, True])
def test_links_on_the_way(tmp_path: Path, follow: bool) -> None:
    """Are followed with -L only; what is named is a link itself is copied as one without."""
    make(tmp_path)
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "secret").write_text("not below")
    (tmp_path / "src" / "out").symlink_to("../away")
    words = ["-rL" if follow else "-r", "--files-from=-", "src", "new"]
    done = aiocp(words, tmp_path, "out/secret\nd/link.c\n")
    assert (tmp_path / "new" / "d" / "link.c").is_symlink() is not follow
    if follow:
        assert (0, "") == (done.returncode, done.stderr)
        assert (tmp_path / "new" / "out" / "secret").read_text() == "not below"
        assert not (tmp_path / "new" / "out").is_symlink()
    else:
        assert (
            "aiocp: cannot copy 'src/out/secret' to 'new/out/secret': open source:" in done.stderr
        )
        assert {"d", "d/link.c"} == names(tmp_path / "new")


def test_what_filters_leave_of_the_names(tmp_path: Path) -> None:
    make(tmp_path)
    words = ["-r", "--files-from=-", "--exclude=deep", "--include=*.c", "src", "new"]
    done = aiocp(words, tmp_path, "d\na.o\nnone\nlate/deep/z.c\nlate/first.o\na.c\n")
    assert (0, "") == (done.returncode, done.stderr)
    assert {"a.c", "d", "d/b.c", "d/fifo.c", "d/link.c"} == names(tmp_path / "new")


def test_roots_that_are_links(tmp_path: Path) -> None:
    """SRC and DST are directories, whatever leads to them."""
    make(tmp_path)
    (tmp_path / "from").symlink_to("src")
    (tmp_path / "to").symlink_to("real")
    (tmp_path / "real").mkdir()
    for words in (["from", "to"], ["-t", "to", "from"], ["from/", "to/"]):
        done = aiocp(["-P", "--files-from=-", *words], tmp_path, "d/b.c")
        assert (0, "") == (done.returncode, done.stderr)
        assert {"d", "d/b.c"} == names(tmp_path / "real")
        (tmp_path / "real" / "d" / "b.c").unlink()
        (tmp_path / "real" / "d").rmdir()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--files-from=missing", "src", "new"], "cannot read 'missing': No such file"),
        (["--files-from=-", "src", "src", "new"], "takes one SRC"),
        (["--files-from=-", "--parents", "src", "new"], "excludes --parents"),
        (["--files-from=-", "-i", "src", "new"], "leaves -i no answers"),
        (["--files-from=-", "--in-place", "src", "new"], "are for single files"),
        (["-0", "src", "new"], "--null is for --files-from"),
    ],
)
def test_refused(tmp_path: Path, words: list[str], reason: str) -> None:
    make(tmp_path)
    done = aiocp(words, tmp_path, "a.c")
    assert 2 == done.returncode
    assert reason in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_source_that_is_no_directory(tmp_path: Path) -> None:
    make(tmp_path)
    done = aiocp(["--files-from=-", "src/a.c", "new"], tmp_path, "a.c")
    assert 1 == done.returncode
    assert "Not a directory" in done.stderr


@pytest.mark.parametrize("few", [True, False])
def test_a_directory_is_read_where_that_is_quicker(tmp_path: Path, few: bool) -> None:
    """Its names are the same either way."""
    source = tmp_path / "src"
    source.mkdir()
    for number in range(500):
        (source / str(number)).write_text(str(number))
    wanted = {str(number) for number in range(0, 500, 250 if few else 1)}
    copy_tree(source, tmp_path / "new", files=sorted(wanted))
    assert wanted == names(tmp_path / "new")


def test_names_deeper_than_any_path(tmp_path: Path) -> None:
    """A name may be longer than what the kernel takes for a path."""
    top = os.open(tmp_path, os.O_RDONLY)
    os.mkdir("src", dir_fd=top)
    at = os.open("src", os.O_RDONLY, dir_fd=top)
    for _ in range(1500):
        os.mkdir("deep", dir_fd=at)
        below = os.open("deep", os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=at))
    os.close(at)
    os.close(top)
    try:
        done = aiocp(["--files-from=-", "src", "new"], tmp_path, "deep/" * 1500 + "file\n")
        assert (0, "") == (done.returncode, done.stderr)
        found = subprocess.check_output(["find", "new", "-type", "f"], cwd=tmp_path)
        assert 1 == found.count(b"file")
        assert 1500 == found.count(b"deep")
    finally:
        subprocess.run(["rm", "-rf", tmp_path / "src", tmp_path / "new"], check=True)
