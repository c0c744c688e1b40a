"""File names are printed as cp prints them."""

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from aiocp.quoting import quoted

NAMES = [
    *("plain", "with space", "it's", "it's $x", 'a "b"', "a'\"b", "-", "~", "#x", "{", "a\\b"),
    *("''", "new\nline", "\n", "tab\t\x07bell", "end\x1b", "\x7f", "k\xe4se", "\u65e5\u672c"),
    *("'\n'", "?*[", "it's, \xe9", "\udcff\udcfe", "a\udcffb", "\x01\x022"),
    *("a=b", "it's+a;b", "it's%+,-.:]_", "it's@", "it's?", "it's{}", "it's#~", "it's\\"),
]


def cps(name: str, directory: Path) -> str:
    """The name in what cp -v says of a copy."""
    source = os.fsencode(directory / "source")
    subprocess.run(["rm", "-rf", source], check=True)
    os.mkdir(source)
    path = os.path.join(b"source", os.fsencode(name))
    with open(os.path.join(os.fsencode(directory), path), "wb"):
        pass
    said = subprocess.run(
        ["cp", "-v", path, "/dev/null"],
        cwd=directory,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        check=True,
    ).stdout.decode(errors="surrogateescape")
    return said.removesuffix(" -> '/dev/null'\n")


@pytest.mark.parametrize("name", NAMES)
def test_as_cp(name: str, tmp_path: Path) -> None:
    assert cps(name, tmp_path) == quoted(f"source/{name}")


@settings(
    max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
@given(st.binary(min_size=1, max_size=12).filter(lambda name: not {*name} & {0, ord("/")}))
def test_any_name(tmp_path: Path, name: bytes) -> None:
    """But those with characters that the C library prints and Python does not, of no width, and
    those to which cp adds two quotes for nothing."""
    text = os.fsdecode(name)
    assume(name not in (b".", b".."))
    assume("'" not in text or text.isprintable())
    assume(all(one.isascii() or one.isprintable() or "\udc80" <= one <= "\udcff" for one in text))
    assert cps(text, tmp_path) == quoted(f"source/{text}")


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.binary(min_size=1, max_size=12).filter(lambda name: 0 not in name))
def test_a_shell_takes_it_for_the_name(name: bytes) -> None:
    word = quoted(os.fsdecode(name))
    said = subprocess.check_output(["bash", "-c", f"printf %s {word}"])
    assert said == name
    assert word.isprintable()
