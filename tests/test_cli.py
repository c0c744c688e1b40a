"""The command, run as a person runs it: what it prints and its exit status."""

import os
import pty
import random
import re
import signal
import subprocess
import sys
import termios
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from aiocp.exit_status import Exit
from aiocp.options import parse_size

MIB = 1 << 20
COMMAND = [sys.executable, "-m", "aiocp"]


def aiocp(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").write_bytes(random.Random(1).randbytes(3 * MIB + 777))
    return tmp_path / "source"


def test_copies_and_says_nothing(source: Path, tmp_path: Path) -> None:
    """Nothing is printed on success unless asked."""
    done = aiocp("source", "copy", "--depth", "64", cwd=tmp_path)
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)
    subprocess.run(["cmp", source, tmp_path / "copy"], check=True)


def test_several_sources_into_a_directory(source: Path, tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"other")
    (tmp_path / "directory").mkdir()
    assert aiocp("source", "other", "directory", cwd=tmp_path).returncode == 0
    subprocess.run(["cmp", source, tmp_path / "directory" / "source"], check=True)
    assert (tmp_path / "directory" / "other").read_bytes() == b"other"


def test_one_failure_does_not_stop_the_rest(source: Path, tmp_path: Path) -> None:
    """What can be copied is; the status says that something was not."""
    (tmp_path / "directory").mkdir()
    done = aiocp("nothing", "source", "directory", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == (
        "aiocp: cannot copy 'nothing' to 'directory/nothing': "
        "open source: No such file or directory\n"
    )
    subprocess.run(["cmp", source, tmp_path / "directory" / "source"], check=True)


def test_verbose_names_what_is_copied(source: Path, tmp_path: Path) -> None:
    """As cp does; on stderr, for stdout is to be cp's, what it was as a whole."""
    done = aiocp("source", "copy", "-v", "--reflink=never", "--direct=never", cwd=tmp_path)
    assert (0, "'source' -> 'copy'\n") == (done.returncode, done.stdout)
    counts, how = done.stderr.splitlines()
    assert re.fullmatch(r"aiocp: 1 file: 3,146,505 bytes in \d+\.\d{3} s, [\d,]+ MB/s", counts)
    assert how == "aiocp: 1 aio-buffered; 4 of 64 in flight, synced"


def test_a_summary_is_of_the_command(source: Path, tmp_path: Path) -> None:
    """All operands together, with what failed and what was left alone; none if not asked for."""
    (tmp_path / "tree" / "below").mkdir(parents=True)
    for name in ("small", "kept", "below/other"):
        (tmp_path / "tree" / name).write_bytes(b"small")
    (tmp_path / "tree" / "link").symlink_to("small")
    os.mkfifo(tmp_path / "tree" / "fifo")
    (tmp_path / "into" / "tree").mkdir(parents=True)
    (tmp_path / "into" / "tree" / "kept").touch()
    done = aiocp("-rnv", "tree", "nothing", "source", "into", "--no-sync", cwd=tmp_path)
    assert done.returncode == 1
    error, counts, how = done.stderr.splitlines()
    assert "cannot copy 'nothing'" in error
    assert counts.startswith(
        "aiocp: 3 files, 1 directory, 1 link, 1 special file, 1 error, 1 skipped: 3,146,515 bytes"
    )
    assert re.search(r" in flight, not synced$", how)
    done = aiocp("-rT", "tree", "into", cwd=tmp_path)
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)


def test_debug_says_how(source: Path, tmp_path: Path) -> None:
    """Of each file, and of the command as a whole."""
    done = aiocp("source", "copy", "--debug", "--direct", "never", cwd=tmp_path)
    assert done.stdout == "'source' -> 'copy': aio-buffered\n"
    assert done.stderr.endswith("aiocp: 1 aio-buffered; 4 of 64 in flight, synced\n")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "small").write_bytes(b"small")
    (tmp_path / "tree" / "link").symlink_to("small")
    done = aiocp("-r", "--debug", "tree", "new", cwd=tmp_path)
    assert {
        "'tree' -> 'new': directory",
        "'tree/link' -> 'new/link': special",
        "'tree/small' -> 'new/small': plain",
    } == {*done.stdout.splitlines()}
    assert done.stderr.startswith("aiocp: 1 file, 1 directory, 1 link: 5 bytes in ")
    done = aiocp("--update=none", "--debug", "source", "copy", cwd=tmp_path)
    assert (0, "skipped 'copy'\n") == (done.returncode, done.stdout)


@pytest.mark.parametrize("option", ["-v", "--json"])
def test_nobody_reads_what_is_said(tmp_path: Path, option: str) -> None:
    """The copy goes on and is whole; that it could not be said is told."""
    (tmp_path / "tree").mkdir()
    for i in range(300):
        (tmp_path / "tree" / str(i)).write_bytes(b"%d" % i * (1 + i % 2 * 100_000))
    command = [*COMMAND, "-r", option, "tree", "copy"]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as copy:
        assert copy.stdout
        assert copy.stderr
        copy.stdout.close()
        said = copy.stderr.read()
    assert copy.returncode == Exit.NOT_COPIED
    assert said.endswith("aiocp: cannot write to standard output: Broken pipe\n")
    assert "Traceback" not in said
    subprocess.run(["diff", "-r", tmp_path / "tree", tmp_path / "copy"], check=True)


def test_standard_output_can_be_the_destination(source: Path, tmp_path: Path) -> None:
    """A pipe that only the kernel can find behind /dev/stdout; a file that it can be a name of."""
    piped = subprocess.run([*COMMAND, source, "/dev/stdout"], capture_output=True)
    assert (0, source.read_bytes(), b"") == (piped.returncode, piped.stdout, piped.stderr)
    with (tmp_path / "out").open("wb") as out:
        assert subprocess.run([*COMMAND, source, "/dev/stdout"], stdout=out).returncode == 0
    assert source.read_bytes() == (tmp_path / "out").read_bytes()


def test_version() -> None:
    done = aiocp("--version")
    assert (0, f"aiocp {version('aiocp')}\n") == (done.returncode, done.stdout)


def test_the_installed_command_is_the_same() -> None:
    command = Path(sys.executable).parent / "aiocp"
    done = subprocess.run([command, "--version"], capture_output=True, text=True)
    assert aiocp("--version").stdout == done.stdout


@pytest.mark.parametrize("width", ["80", "120"])
def test_help_names_every_option(width: str) -> None:
    done = subprocess.run(
        [*COMMAND, "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": width},
    )
    assert done.returncode == 0
    for option in ("--depth", "--block-size", "--direct", "--progress", "--json", "--version"):
        assert option in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= int(width)


def test_progress_bar_on_a_terminal_only(source: Path, tmp_path: Path) -> None:
    """On by itself where stderr is a terminal: bytes and rate."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    subprocess.run([*COMMAND, "source", "copy"], cwd=tmp_path, stderr=theirs, check=True)
    os.close(theirs)
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    assert "100%" in shown
    assert "3.00M/3.00M" in shown
    assert "B/s" in shown


def test_progress_can_be_asked_for_and_forbidden(source: Path, tmp_path: Path) -> None:
    (line,) = aiocp("source", "copy", "--progress", cwd=tmp_path).stderr.splitlines()
    assert re.fullmatch(
        r"aiocp: source: 3\.0 MiB of 3\.0 MiB, 100 %, \d+\.\d [KMG]iB/s, 0:0\d, 0:00 to go", line
    )
    ours, theirs = pty.openpty()
    command = [*COMMAND, "source", "copy", "--no-progress"]
    subprocess.run(command, cwd=tmp_path, stderr=theirs, check=True)
    os.set_blocking(ours, False)
    with pytest.raises(BlockingIOError):
        os.read(ours, 1)
    os.close(theirs)
    os.close(ours)


@pytest.mark.parametrize("shown", ["--progress", "--no-progress"])
def test_sigusr1_asks_how_far_it_is(tmp_path: Path, shown: str) -> None:
    """As of dd; it does not end the copy."""
    os.mkfifo(tmp_path / "fifo")
    command = [*COMMAND, shown, str(tmp_path / "fifo"), str(tmp_path / "copy")]
    copy = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert copy.stderr
    with (tmp_path / "fifo").open("wb", buffering=0) as fifo:
        fifo.write(bytes(5000))
        line = ""
        while not line.startswith("aiocp: fifo: 4.9 KiB, "):
            time.sleep(0.05)  # until it has been read
            copy.send_signal(signal.SIGUSR1)
            line = copy.stderr.readline()
    assert re.search(r"KiB, \d+\.\d [KM]iB/s, 0:\d\d$|KiB, \d+ B/s, 0:\d\d$", line.strip())
    copy.stderr.read()
    copy.stderr.close()
    assert copy.wait(timeout=30) == 0
    assert (tmp_path / "copy").read_bytes() == bytes(5000)


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("aiocp --re", ["--recursive", "--remove-destination", "--reflink", "--resume"]),
        ("aiocp -r --spa", ["--sparse"]),
        ("aiocp some", []),
    ],
)
def test_bash_completes_options(words: str, completed: list[str]) -> None:
    """And leaves the names of files to itself."""
    env = {
        "_AIOCP_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    done = subprocess.run(COMMAND, capture_output=True, text=True, env={**os.environ, **env})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == completed


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_there_to_be_installed(shell: str) -> None:
    env = {**os.environ, "_AIOCP_COMPLETE": f"source_{shell}"}
    done = subprocess.run(COMMAND, capture_output=True, text=True, env=env)
    assert done.returncode == 0
    assert "_AIOCP_COMPLETE=complete_" in done.stdout


# --- bad input -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["source", "copy", "--depth", "0"], "'--depth': takes 1 to 65536, not '0'"),
        (["source", "copy", "--depth", "-1"], "'--depth': takes 1 to 65536, not '-1'"),
        (["source", "copy", "--depth=65537"], "'--depth': takes 1 to 65536, not '65537'"),
        (["source", "copy", "--depth", "many"], "'--depth': takes 1 to 65536, not 'many'"),
        (["source", "copy", "--block-size", "0"], "'--block-size': block size must be a multiple"),
        (["source", "copy", "--block-size", "1000"], "'--block-size': block size must be a mult"),
        (["source", "copy", "--block-size", "3M-1"], "'--block-size': takes bytes such as 4096"),
        (["source", "copy", "--block-size", "abc"], "'--block-size': takes bytes such as 4096"),
        (["source", "copy", "--direct", "maybe"], "'--direct': takes auto, always, never"),
        (["source"], "missing argument"),
        ([], "missing argument"),
        (["source", "copy", "--nonsense"], "no such option: --nonsense"),
        (["source", "source", "copy"], "target 'copy' is not a directory"),
        (["-ls", "source", "copy"], "cannot make both hard and symbolic links"),
        (["-bn", "source", "copy"], "--backup excludes -n, --update=none and"),
        (["-b", "--update=none", "source", "copy"], "--backup excludes"),
        (["-b", "--update=none-fail", "source", "copy"], "--backup excludes"),
        (
            ["--backup=some", "source", "copy"],
            "'--backup': takes none, simple, existing, numbered,",
        ),
        (["--backup=n", "source", "copy"], "'--backup': takes none, simple, existing, numbered,"),
        (["--update=some", "source", "copy"], "'--update': takes all, none, none-fail, older, not"),
        (["--preserve=some", "source", "copy"], "'--preserve': takes context, links, mode, owner"),
        (["--parents", "source", "copy"], "with --parents, the destination must be a directory"),
        (["--parents", "-T", "source", "."], "with --parents, the destination must be a directory"),
        (["--in-place", "-b", "source", "copy"], "--in-place excludes --backup"),
        (["--in-place", "-l", "source", "copy"], "--in-place excludes --backup"),
        (["--preserve=context", "source", "copy"], "cannot preserve a security context"),
        (["-S", "~"], "missing argument"),
        (["source", "-S"], "option '-S' requires an argument"),
        (["--depth"], "option '--depth' requires an argument"),
    ],
)
def test_usage_error(source: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    """One line that names the option and what it takes; exit 2; nothing was touched."""
    done = aiocp(*arguments, cwd=tmp_path)
    assert Exit.USAGE == done.returncode
    assert done.stdout == ""
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize(
    ("source_name", "destination_name", "reason"),
    [
        ("nothing", "copy", "open source: No such file or directory"),
        (".", "copy", "omitting directory, as -r is not given"),
        ("source", "source", "source and destination are the same file"),
        ("source", ".", "source and destination are the same file"),
        ("source", "missing/copy", "open destination: No such file or directory"),
        ("source", "source/copy", "open destination: Not a directory"),
        ("", "copy", "open source: No such file or directory"),
        ("bad\nname\udcff", "copy", "open source: No such file or directory"),
        ("it's", "copy", "open source: No such file or directory"),
    ],
)
def test_error_is_one_line(
    source: Path, tmp_path: Path, source_name: str, destination_name: str, reason: str
) -> None:
    """Both paths and the reason, exit 1, no traceback, even for names that cannot be printed."""
    done = aiocp(source_name, destination_name, cwd=tmp_path)
    assert Exit.NOT_COPIED == done.returncode
    assert len(done.stderr.splitlines()) == 1
    name = {"bad\nname\udcff": r"'bad'$'\n''name'$'\377'", "it's": '"it\'s"'}.get(source_name)
    assert done.stderr.startswith(f"aiocp: cannot copy {name or repr(source_name)} to ")
    assert reason in done.stderr
    assert os.listdir(tmp_path) == ["source"]


@pytest.mark.parametrize(
    ("text", "size"),
    [("4096", 4096), ("64K", 65536), ("1M", MIB), ("1MiB", MIB), ("64KiB", 65536), ("1G", 1 << 30)],
)
def test_sizes(text: str, size: int) -> None:
    assert size == parse_size(text)


@pytest.mark.parametrize("text", ["", "K", "1.5M", "-4096", "4 K", "1KB", "1iB", "٤٠٩٦"])
def test_not_sizes(text: str) -> None:
    with pytest.raises(ValueError, match="takes bytes such as"):
        parse_size(text)
