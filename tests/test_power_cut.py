"""Power cuts: what the command has said is on the disk is on the disk, and the rest is old or new.

scripts/crash runs the same loops for longer.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from aiocp import copy_file
from aiocp.batch import Batch
from aiocp.destination import Destination
from crash import WAYS, Disk, after_return, at_random_moments, disk

pytestmark = pytest.mark.root


@pytest.mark.parametrize(("fstype", "way"), WAYS)
def test_after_the_return_nothing_is_lost(fstype: str, way: str) -> None:
    """Every new byte under the right name with the right mode: any size, new and replaced."""
    tally = after_return(fstype, way, 10)
    assert ([], 30) == (tally.broken, tally.found["new"])


@pytest.mark.parametrize(("fstype", "way"), WAYS)
def test_at_any_moment_it_is_old_or_new(fstype: str, way: str) -> None:
    """The old file or the whole new one; for a new file none or the whole; after exit 0 the new."""
    tally = at_random_moments(fstype, way, 10)
    assert ([], 10) == (tally.broken, tally.cuts)


@pytest.mark.parametrize(("fstype", "way"), WAYS)
def test_without_the_sync_a_power_cut_loses_the_copy(fstype: str, way: str) -> None:
    """So the cuts above would have shown a sync that is missing."""
    tally = after_return(fstype, way, 5, sync=False)
    assert len(tally.broken) >= 5


def and_cut(place: Callable[..., object], target: Disk) -> Callable[..., object]:
    """What does as `place`, and cuts the power."""

    def place_and_cut(*arguments: object) -> object:
        result = place(*arguments)
        target.cut()
        return result

    return place_and_cut


@pytest.mark.parametrize("old", [False, True], ids=["new", "replaced"])
@pytest.mark.parametrize("fstype", ["ext4", "xfs"])
def test_cut_between_the_name_and_its_sync(
    fstype: str, old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error, also on XFS: the sync of a directory succeeds there after a shutdown."""
    (tmp_path / "source").write_bytes(b"new")
    with disk(fstype, "shutdown") as target:
        destination = target.mount_point / "copy"
        if old:
            destination.write_bytes(b"old")
        target.sync()
        for kind, method in ((Destination, "commit"), (Batch, "place")):
            monkeypatch.setattr(kind, method, and_cut(getattr(kind, method), target))
        with pytest.raises(OSError, match="copied, but its name is not durable: sync: "):
            copy_file(tmp_path / "source", destination)
        target.restart()
        assert destination.exists() == old
        assert not old or destination.read_bytes() == b"old"
