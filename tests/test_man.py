"""The man page says what --help says."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aiocp.options import DECLARED

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "aiocp" / "aiocp.1"


def test_it_is_what_scripts_man_writes() -> None:
    code = "import sys; sys.path.insert(0, 'scripts'); import man; sys.stdout.write(man.page())"
    written = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert written == PAGE.read_text(), "run scripts/man"


def test_every_option_is_in_it() -> None:
    shown = PAGE.read_text().replace("\\-", "-")
    for declared in DECLARED:
        for names in declared.option.names:
            for name in names.split("/"):
                assert re.search(rf"^.*\\fB{name}\\fR.*$", shown, re.MULTILINE), name


@pytest.mark.skipif(not shutil.which("groff"), reason="groff is not installed")
def test_groff_has_nothing_to_say_against_it() -> None:
    done = subprocess.run(
        ["groff", "-man", "-ww", "-Tutf8", "-P-c", PAGE], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = re.sub(".\b", "", done.stdout)  # bold is struck twice
    assert "-t, --target-directory DIR" in shown
    assert max(map(len, shown.splitlines())) <= 80
