"""Kills and power cuts while a tree is copied: every name is whole, and after exit 0 all is there.

scripts/crash runs the same loops for longer.
"""

from pathlib import Path

import pytest

from crash import WAYS
from tree_crash import FILES, SPREAD, after_return, at_random_moments, kills

pytestmark = pytest.mark.root


@pytest.mark.parametrize("filesystem", ["ext4", "btrfs"], indirect=True)
def test_killed_at_any_moment(filesystem: Path) -> None:
    """Old or new, with all attributes, and no temporary name, of files, links and nodes alike."""
    tally = kills(filesystem, 20)
    assert ([], 0, 20) == (tally.broken, tally.hidden, tally.cuts)
    assert tally.found["part"] > 0


@pytest.mark.parametrize(("fstype", "way"), WAYS)
def test_after_exit_0_nothing_is_lost(fstype: str, way: str) -> None:
    """Names, bytes, modes, times, attributes, links, hard links, directories and theirs."""
    tally = after_return(fstype, way, 2, files=FILES[fstype])
    assert ([], 2) == (tally.broken, tally.found["all"])


@pytest.mark.parametrize(("fstype", "way"), WAYS)
def test_what_workers_have_copied_is_not_lost(fstype: str, way: str) -> None:
    """After exit 0, and at any moment: as what one process has."""
    tally = after_return(fstype, way, 1, files=FILES[fstype], options=SPREAD)
    assert ([], 1) == (tally.broken, tally.found["all"])
    tally = at_random_moments(fstype, way, 2, files=FILES[fstype], options=SPREAD)
    assert ([], 2) == (tally.broken, tally.cuts)


@pytest.mark.parametrize(("fstype", "way"), WAYS)
def test_cut_at_any_moment(fstype: str, way: str) -> None:
    """Old or new; what is not among the errors is there, and after exit 0 everything."""
    tally = at_random_moments(fstype, way, 3, files=FILES[fstype])
    assert ([], 3) == (tally.broken, tally.cuts)


@pytest.mark.parametrize(("fstype", "way"), WAYS)
def test_without_the_sync_it_is_lost(fstype: str, way: str) -> None:
    """So the cuts above would have shown a sync that is missing."""
    tally = after_return(fstype, way, 1, sync=False)
    assert (0, 1) == (tally.found["all"], tally.found["with exit 0"])
    assert tally.broken
