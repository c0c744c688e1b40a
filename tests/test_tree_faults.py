"""A fault at any call of a tree: what it hit is said, by path and reason, and the rest is right.

scripts/crash runs the same loop for longer.
"""

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tree_faults import every_call


@pytest.mark.root
@pytest.mark.parametrize(
    ("fstype", "over", "points"),
    [("ext4", False, [0.0, 0.4]), ("ext4", True, [0.7]), ("btrfs", True, [1.0])],
    ids=["ext4-new", "ext4-over another", "btrfs-over another"],
)
def test_every_call(
    mount_point: Callable[[str], Path], fstype: str, over: bool, points: list[float]
) -> None:
    """Whatever fails: no wrong byte, no litter, no hang, and nothing that is not said."""
    top = Path(tempfile.mkdtemp(dir=mount_point(fstype)))
    wrong = every_call(top, points, over=over, cloned=fstype == "btrfs")
    shutil.rmtree(top)
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)
