"""GNU cp and the command side by side: the same tree and arguments, and all that comes of them."""

import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

from forked import aiocp
from trees import everything

OLD, NEW = 1_000_000_000, 1_500_000_000
NOBODY = 65534


def write(path: Path, text: str = "", when: int = OLD, mode: int = 0o640) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text or path.name)
    path.chmod(mode)
    os.utime(path, (when, when))


def make(top: Path) -> None:
    """What the rows copy: each kind, sources and destinations, older and newer, backups."""
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
    (top / "sub").mkdir()
    write(top / "w", "with a backup")
    write(top / "w~", "a backup")
    write(top / "into" / "g.~2~", "an older backup")
    write(top / "into" / "f~", "one without a number")
    write(top / "into" / "d" / "f.~9~", "an older backup, below")
    make_linked(top)
    for name in ("f", "g", "d/f", "into/f", "two"):
        os.setxattr(top / name, "user.of", name.encode())
    if os.geteuid() == 0:
        for name in ("g", "d", "d/sub/x", "into/g", "link", "d/link", "t/one"):
            os.chown(top / name, 1234, 2345, follow_symlinks=False)
    for name in ("link", "dlink", "d/link", "d", "fifo", "e", "t", "t/sub", "t/back"):
        os.utime(top / name, (OLD, OLD), follow_symlinks=False)


def make_linked(top: Path) -> None:
    """A tree, and one to copy it over that has links to files, to directories and nowhere."""
    for name in ("one", "two", "three", "four", "five", "sub/x"):
        write(top / "t" / name, f"{name} of t")
    (top / "t" / "back").symlink_to("one")
    (top / "t" / "six").hardlink_to(top / "t" / "five")
    write(top / "over" / "t" / "beside", "led to from beside", NEW)
    write(top / "over" / "t" / "end", "led to by a chain")
    write(top / "over" / "t" / "back2", "led to in place of a link")
    write(top / "victim", "led to from a tree", OLD - 1)
    (top / "victim2").hardlink_to(top / "victim")
    (top / "away").mkdir()
    for name, text in (
        ("one", "../../victim"),
        ("two", "beside"),
        ("three", "nowhere"),
        ("four", "chain"),
        ("chain", "../t/end"),
        ("five", "../../away"),
        ("sub", "../../away"),
        ("back", "back2"),
    ):
        (top / "over" / "t" / name).symlink_to(text)


def make_anothers(top: Path) -> None:
    """Give it all to an ordinary user, but what he is to find closed."""
    make(top)
    write(top / "secret" / "f", mode=0o600)
    write(top / "theirs")
    write(top / "locked-tree" / "d" / "f", "locked", mode=0o444)
    write(top / "locked-tree" / "d" / "sub" / "x", "locked", mode=0o444)
    subprocess.run(["chown", "--no-dereference", "-R", f"{NOBODY}:{NOBODY}", top], check=True)
    for name, mode in (("secret/f", 0o600), ("secret", 0o700), ("theirs", 0o4755)):
        os.chown(top / name, 0, 0)
        (top / name).chmod(mode)


def cp(
    words: Sequence[str], top: Path, stdin: str = "", *, user: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run GNU cp in the directory `top`, as root or another `user`."""
    return subprocess.run(
        ["cp", *words],
        cwd=top,
        input=stdin,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        env={**os.environ, "LC_ALL": "C.UTF-8", **environment},
        timeout=60,
        user=user or None,
        group=user or None,
        extra_groups=[] if user else None,
    )


def links_of(top: Path) -> set[frozenset[str]]:
    """Which names are of one file."""
    names: dict[int, set[str]] = {}
    for directory, _, files in os.walk(top):
        for name in files:
            path = os.path.join(directory, name)
            names.setdefault(os.lstat(path).st_ino, set()).add(os.path.relpath(path, top))
    return {frozenset(same) for same in names.values()}


def compare(
    tops: tuple[Path, Path],
    arguments: str | list[str],
    stdin: str = "",
    user: int = 0,
    **environment: str,
) -> str:
    """Run both on the same; what aiocp has said on standard error."""
    words = arguments.split() if isinstance(arguments, str) else arguments
    theirs, ours = tops
    expected = cp(words, theirs, stdin, user=user, **environment)
    done = aiocp(words, ours, stdin, user=user, **environment)
    said = f"\n{expected.stderr}{done.stderr}"
    assert "Traceback" not in done.stderr
    assert bool(expected.returncode) == bool(done.returncode), said
    assert everything(theirs) == everything(ours), said
    assert links_of(theirs) == links_of(ours), said
    if expected.returncode == 0:  # cp also names what then fails
        assert lines_of(expected.stdout) == lines_of(done.stdout), said
    return done.stderr


def lines_of(output: str) -> list[str]:
    """What -v has printed, in any order; cp alone puts no quotes around what --parents makes."""
    bare = re.compile(r"""^([^'"].*) -> (.*)$""", re.MULTILINE)
    return sorted(bare.sub(r"'\1' -> '\2'", output).splitlines())
