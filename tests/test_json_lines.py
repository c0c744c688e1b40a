"""--json, read as a program reads it: one object a line, all keys as the README has them."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from test_readme import README

COMMAND = [sys.executable, "-m", "aiocp", "--json"]
MIB = 1 << 20

Object = dict[str, Any]


def objects(output: str) -> list[Object]:
    """The lines, each a JSON object by the letter: no NaN, no key twice."""

    def refuse(word: str) -> None:
        raise AssertionError(word)

    def once(pairs: list[tuple[str, Any]]) -> Object:
        assert len(dict(pairs)) == len(pairs)
        return dict(pairs)

    assert output.isascii()
    assert output.endswith("\n")
    lines = output.splitlines()
    return [json.loads(line, parse_constant=refuse, object_pairs_hook=once) for line in lines]


def aiocp(*arguments: str | Path, cwd: Path) -> tuple[int, list[Object], str]:
    """Exit status, objects, and what is on stderr."""
    done = subprocess.run([*COMMAND, *arguments], cwd=cwd, capture_output=True, text=True)
    return done.returncode, objects(done.stdout), done.stderr


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """A directory with files of every kind, where `into/tree/hard` is in the way."""
    (tmp_path / "tree" / "below").mkdir(parents=True)
    (tmp_path / "tree" / "small").write_bytes(b"small")
    (tmp_path / "tree" / "large").write_bytes(bytes(MIB))
    (tmp_path / "tree" / "link").symlink_to("small")
    (tmp_path / "tree" / "hard").hardlink_to(tmp_path / "tree" / "small")
    os.mkfifo(tmp_path / "tree" / "fifo")
    (tmp_path / "file").write_bytes(bytes(3 * MIB + 777))
    (tmp_path / "into").mkdir()
    return tmp_path


def test_one_object_for_each_thing(top: Path) -> None:
    """What find(1) finds, under its name there, and a summary at the end."""
    status, told, said = aiocp("-r", "tree", "file", "into", cwd=top)
    assert (0, "") == (status, said)
    *entries, summary = told
    kinds = {"d": "directory", "f": "file", "l": "link", "p": "special"}
    find = ["find", "tree", "file", "-printf", r"%y %p\n"]
    found = subprocess.check_output(find, cwd=top, text=True).splitlines()
    expected = {(kinds[line[0]], line[2:], f"into/{line[2:]}") for line in found}
    assert expected == {(one["type"], one["source"], one["destination"]) for one in entries}
    sizes = {one["source"]: one["size"] for one in entries if one["type"] == "file"}
    assert sizes == {path: (top / path).stat().st_size for path in sizes}
    assert summary["bytes"] == sum(sizes.values())
    assert (4, 2, 1, 1) == tuple(
        summary[name] for name in ("files", "directories", "links", "specials")
    )
    assert ("summary", 0, 0, True) == tuple(
        summary[name] for name in ("type", "errors", "exit_status", "synced")
    )
    assert sum(summary["methods"].values()) == summary["files"]


def test_errors_are_objects(top: Path) -> None:
    """With the operation, the errno and its name; a line on stderr tells people."""
    (top / "into" / "tree" / "small").mkdir(parents=True)
    status, told, said = aiocp("-r", "tree", "nothing", "into", cwd=top)
    assert status == 1
    assert len(said.splitlines()) == 2
    errors = {one["source"]: one for one in told if one["type"] == "error"}
    assert {"tree/small", "nothing"} == {*errors}
    assert errors["nothing"] == {
        "type": "error",
        "source": "nothing",
        "destination": "into/nothing",
        "operation": "open source",
        "errno": 2,
        "error": "ENOENT",
        "message": "open source: No such file or directory",
    }
    assert (21, "EISDIR") == (errors["tree/small"]["errno"], errors["tree/small"]["error"])
    assert (2, 1) == (told[-1]["errors"], told[-1]["exit_status"])


def test_what_is_left_alone(top: Path) -> None:
    (top / "into" / "file").touch()
    status, (file, summary), said = aiocp("-n", "file", "into", cwd=top)
    assert (0, "") == (status, said)
    assert ("skipped", 0) == (file["method"], file["size"])
    assert (1, 0, 0) == (summary["skipped"], summary["files"], summary["bytes"])


def test_nothing_else_is_on_stdout(top: Path) -> None:
    """Names, progress, warnings and the summary in words go to stderr."""
    arguments = ("-r", "-v", "--debug", "--progress", "file", "file", "tree", "into")
    status, told, said = aiocp(*arguments, cwd=top)
    assert (0, 9) == (status, len(told))
    assert "'file' -> 'into/file': " in said
    assert "aiocp: warning: " in said
    assert "aiocp: file: 3.0 MiB of 3.0 MiB, 100 %" in said


def test_a_name_that_is_no_text(tmp_path: Path) -> None:
    """Comes back byte by byte."""
    name = os.fsdecode(b'\xff\xfe "\n\xe2\x82\xac\\')
    (tmp_path / name).touch()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / name).touch()
    (tmp_path / "new").mkdir()
    _, told, _ = aiocp("-r", name, "tree", "new", cwd=tmp_path)
    assert {name, "tree", f"tree/{name}"} == {one["source"] for one in told[:-1]}
    for one in told[:-1]:
        assert os.path.lexists(os.path.join(os.fsencode(tmp_path), os.fsencode(one["destination"])))


def test_usage_errors_are_text(top: Path) -> None:
    done = subprocess.run([*COMMAND, "file"], cwd=top, capture_output=True, text=True)
    assert (2, "") == (done.returncode, done.stdout)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_file_is_told_of_as_it_ends(tmp_path: Path, number: signal.Signals) -> None:
    """While the copy runs; and one that a signal stops has a summary."""
    (tmp_path / "first").write_bytes(bytes(5000))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "into").mkdir()
    with subprocess.Popen(
        [*COMMAND, "first", "fifo", "into"], cwd=tmp_path, stdout=subprocess.PIPE, text=True
    ) as copy:
        assert copy.stdout
        line = copy.stdout.readline()  # the writer that the second waits for is not there yet
        assert ("first", 5000) == (json.loads(line)["source"], json.loads(line)["size"])
        copy.send_signal(number)
        (summary,) = objects(copy.stdout.read())
    assert 128 + number == copy.returncode == summary["exit_status"]
    assert (number.name, 1, 5000) == (summary["signal"], summary["files"], summary["bytes"])
    assert not summary["synced"]


# --- the reference -------------------------------------------------------------------------------


def documented() -> dict[str, set[str]]:
    """The keys of each kind of object, by the table in the README."""
    (table,) = re.findall(r"\| key \| of \| .*?(?=\n\n)", README, re.DOTALL)
    keys: dict[str, set[str]] = {}
    for row in table.splitlines()[2:]:
        names, kinds, _ = (cell.strip() for cell in row.strip("|").split(" | "))
        for kind in kinds.split(", "):
            keys.setdefault(kind, set()).update(re.findall(r"`(\w+)`", names))
    everywhere = keys.pop("all")
    return {kind: names | everywhere for kind, names in keys.items()}


def operands(top: Path) -> list[Object]:
    _, told, _ = aiocp("file", "tree/small", "tree/large", "into", "--reflink=never", cwd=top)
    return told[:-1]


def entries(top: Path) -> list[Object]:
    _, told, _ = aiocp("-r", "tree", "tree/fifo", "tree/link", "into", "--preserve=links", cwd=top)
    return told[:-1]


def errors(top: Path) -> list[Object]:
    _, told, _ = aiocp("nothing", "tree", "into", cwd=top)
    return told[:-1]


def summaries(top: Path) -> list[Object]:
    return [aiocp("file", "into", *more, cwd=top)[1][-1] for more in ([], ["--no-sync"])]


@pytest.mark.parametrize(
    ("kind", "told"),
    [("operand", operands), ("entry", entries), ("error", errors), ("summary", summaries)],
)
def test_every_key_is_documented(
    top: Path, kind: str, told: Callable[[Path], list[Object]]
) -> None:
    """Each object has the keys that the README's table names for it, and no others."""
    shown = told(top)
    assert shown
    for one in shown:
        assert documented()[kind] == one.keys()
