"""What the README says is true."""

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import aiocp

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def code_blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_it_opens_with_one_sentence_and_two_commands() -> None:
    """The commands are the scripts that stand there, and the test command is what CI runs."""
    assert not README.startswith("#")
    assert README.split("\n\n")[0].count(". ") == 0
    commands = [line.split("#")[0].split() for line in code_blocks("sh")[0].splitlines()]
    assert [["scripts/run", "/etc/os-release", "/tmp/copy"], ["scripts/test"]] == commands
    for command in commands:
        assert os.access(ROOT / command[0], os.X_OK)
    assert "\nscripts/test\n" in (ROOT / ".ci" / "run").read_text()


def test_the_help_excerpt_is_what_help_prints() -> None:
    shown = code_blocks("console")[0].split("\n", 1)[1]
    done = subprocess.run(
        [sys.executable, "-m", "aiocp", "--help"],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "80"},
    )
    lines = [line.rstrip() for line in done.stdout.strip().splitlines()]
    assert [line.strip() for line in shown.strip().splitlines()] == [line.strip() for line in lines]


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_library_examples_run(tmp_path: Path, number: int) -> None:
    example = code_blocks("python")[number].replace("/backup/", f"{tmp_path}/")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "disk.img").write_bytes(b"x" * 10_000)
    (tmp_path / "in" / "notes.txt").write_bytes(b"notes")
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path / "in", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert (" True " in done.stdout) == (number == 0)
    assert (tmp_path / "disk.img").read_bytes() == b"x" * 10_000


@pytest.mark.parametrize("function", [aiocp.copy_file, aiocp.copy_tree])
def test_every_argument_is_listed(function: Callable[..., object]) -> None:
    """With its default, but where that is a number of bytes."""
    (listed,) = re.findall(rf"`{function.__name__}\((.*?)\)`", README, re.DOTALL)
    parameters = inspect.signature(function).parameters.values()
    expected = ["src", "dst", "*"]
    for one in parameters:
        if one.kind is one.KEYWORD_ONLY:
            default = "..." if one.name == "block_size" else json.dumps(one.default)
            values = {"null": "None", "true": "True", "false": "False", "[]": "()"}
            expected.append(f"{one.name}={values.get(default, default)}")
    assert expected == [word.strip() for word in " ".join(listed.split()).split(", ")]


def test_every_field_of_the_result_is_listed() -> None:
    section = README[README.index("## The library") : README.index("`method` is the rung")]
    assert {f"`{name}`" for name in aiocp.CopyResult._fields} <= set(re.findall(r"`\w+`", section))
