"""What is copied through the workers of executors, all on this machine: the scenarios of --cluster.

Several are faster than one here only where each waits: for storage that is so far away, at such a
depth, that one worker leaves most of the processors to the others. On the disk of the machine one
is to take no longer than a copy without any. What many cost their coordinator is counted.
"""

from collections.abc import Iterator
from functools import partial

import bench_peers as peers
import bench_sources as sources
from bench_aims import takes, within
from bench_scenarios import Scenario, far_away
from bench_sources import GIB, KIB

FAR_TREE, FAR_FILE = "--depth 8 --latency 0.01", "--depth 4 --latency 0.1"
OVERHEAD = tuple(within("aiocp", 1.1, f"{engine} 1") for engine in peers.ENGINES)
SCALING = tuple(takes(f"{engine} 1", 3.5, f"{engine} 4") for engine in peers.ENGINES)


def cluster(*, quick: bool, size: int, files: int) -> Iterator[Scenario]:
    """All of them; `size` of a large file in bytes, `files` in a tree."""
    rounds = 1 if quick else 3
    yield Scenario(
        "cluster far tree",
        partial(sources.make_tree, files=files // 4),
        peers.cluster(FAR_TREE, (1, 2, 4)),
        files // 4,
        sources.uncached,
        (*OVERHEAD, *SCALING),
        "files",
        rounds=rounds,
        place=partial(far_away, 0.0),
        common=False,
    )
    yield Scenario(
        "cluster far file",
        partial(sources.make_random, size=GIB),  # four ranges
        peers.cluster(FAR_FILE, (1, 2, 4)),
        GIB,
        sources.uncached,
        (*OVERHEAD, *SCALING),
        rounds=rounds,
        place=partial(far_away, 0.0),
        common=False,
    )
    yield Scenario(
        "cluster tree",
        partial(sources.make_tree, files=files),
        peers.cluster("", (1,)),
        files,
        sources.uncached,
        OVERHEAD,
        "files",
        copies_kept=True,
        space=24 * KIB * files,
        common=False,
    )
    yield Scenario(
        "cluster file",
        partial(sources.make_random, size=size // 2),
        peers.cluster("", (1,)),
        size // 2,
        sources.uncached,
        OVERHEAD,
        common=False,
    )
    count = files * 5 // 2
    yield Scenario(
        "cluster cost",
        partial(sources.make_tree, files=count),
        peers.CLUSTER_COST,
        count,
        sources.clean,
        unit="files",
        copies_kept=True,
        space=24 * KIB * count,
        rounds=rounds,
        common=False,
    )
