"""SIGKILL at any moment: the old file or the whole new one, and nothing beside it.

scripts/crash runs the same loop for longer.
"""

import random
from pathlib import Path

import pytest

from crash import Tally, kills


def check(tally: Tally, count: int) -> None:
    """Nothing is broken, and kills have come both too late and in time."""
    assert ([], 0, count) == (tally.broken, tally.hidden, tally.cuts)
    assert min(tally.found["old"], tally.found["new"]) > count // 20


def test_at_any_moment_it_is_old_or_new(tmp_path: Path) -> None:
    """Each with its mode, and never a temporary name; for a new file none or the whole."""
    check(kills(tmp_path, 200, random.Random(1)), 200)


@pytest.mark.root
def test_on_every_file_system(filesystem: Path) -> None:
    """The same on ext4, XFS, Btrfs and tmpfs."""
    check(kills(filesystem, 50, random.Random(2)), 50)
