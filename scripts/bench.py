"""Time aiocp against its peers: scenarios x peers, copies durable when the clock stops.

Each scenario that is named (any whose name has the words in it; without names those that do not
take hours) makes its source, lets the peers copy it in turns, compares every copy, and prints what
they took and which aims are met.
"""

import argparse
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from bench_cluster import cluster
from bench_peers import ROOT
from bench_report import Result, print_result, write_json
from bench_run import Failed, Peer, Race, WrongCopy, note
from bench_scenarios import Scenario, scale, scenarios
from bench_sources import GIB, KIB, MIB

CLONING = ("btrfs", "xfs")


def parse_size(text: str) -> int:
    """Bytes of 4096, 64K, 256M, 2G."""
    unit = {"K": KIB, "M": MIB, "G": GIB}.get(text[-1:], 1)
    return int(text[:-1] if unit > 1 else text) * unit


def parse_peer(text: str) -> tuple[str, Peer]:
    """NAME=COMMAND."""
    name, _, command = text.partition("=")
    if not command:
        raise ValueError(text)
    return name, Peer(command)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    add = parser.add_argument
    add("scenarios", nargs="*", metavar="NAME", help="of scenarios, or words of it: see --list")
    add("--list", action="store_true", help="the scenarios and their peers")
    add("--quick", action="store_true", help="small, 3 rounds: under three minutes")
    add("--sweep", action="store_true", help="the scenario of that name: depth x block size")
    add("--cluster", action="store_true", help="the scenarios of that name: through executors")
    add("--scale", metavar="N,...", help="aiocp alone on trees of so many files")
    add("--size", type=parse_size, help="of a large file, e.g. 2G (4G; quick 512M)")
    add("--files", type=int, help="in a tree (20000; quick 2000)")
    add("--rounds", type=int, help="how often each peer copies (5; quick 3)")
    add("--compare-once", action="store_true", help="only the copies of the first round")
    add("--only", metavar="PEER,...", help="these peers, and aiocp")
    help_peer = 'one more: a shell command that copies "$1" to "$2"'
    add(
        "--peer",
        type=parse_peer,
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help=help_peer,
    )
    add("--dir", type=Path, default=Path(), help="in which to copy")
    add("--on", metavar="TYPE,...", help="on new file systems instead: ext4, xfs, btrfs")
    add("--json", type=Path, metavar="FILE", help="write every run there")
    add("--plot", type=Path, metavar="FILE.png", help="draw bars, and the sweep's heat map")
    options = parser.parse_args()
    for named in ("sweep", "cluster"):
        if getattr(options, named):
            options.scenarios.append(named)
    quick = options.quick
    options.size = options.size or (512 * MIB if quick else 4 * GIB)
    options.files = options.files or (2000 if quick else 20_000)
    options.rounds = options.rounds or (3 if quick else 5)
    return options


def chosen(options: argparse.Namespace) -> list[Scenario]:
    """The scenarios asked for, with the peers asked for."""
    how = {"quick": options.quick, "size": options.size, "files": options.files}
    every = [*scenarios(**how), *cluster(**how)]
    if options.scale:
        every = list(scale([int(count) for count in options.scale.split(",")]))
    elif options.scenarios:
        words = options.scenarios
        every = [each for each in every if any(word in each.name for word in words)]
    elif not options.list:
        every = [each for each in every if each.common]
    if not every:
        raise Failed("no such scenario: see --list")
    only = ["aiocp", *options.only.split(",")] if options.only else None
    return [
        replace(
            each,
            peers={
                name: peer
                for name, peer in each.peers.items()
                if only is None or name in only or each.name == "sweep"
            }
            | dict(options.peer),
        )
        for each in every
    ]


@contextmanager
def place(scenario: Scenario, fstype: str, options: argparse.Namespace) -> Iterator[Path]:
    """Yield where to copy: a scenario's own place, a new file system, or a new directory."""
    if scenario.place:
        with scenario.place() as directory:
            yield directory
    elif fstype:
        sys.path.append(str(ROOT / "tests"))
        from filesystems import mounted

        inodes = ["-i", "4096"] if fstype == "ext4" and scenario.unit == "files" else []
        room = scenario.room(min(options.rounds, scenario.rounds))
        with mounted(fstype, room, mkfs_options=inodes, allocated=True) as directory:
            yield directory
    else:
        parent = options.dir.resolve()
        with tempfile.TemporaryDirectory(prefix="aiocp-bench-", dir=parent) as name:
            yield Path(name)


def measure(options: argparse.Namespace) -> Iterator[Result]:
    """Run what was asked for, and tell of each."""
    fstypes = options.on.split(",") if options.on else [""]
    for fstype in fstypes:
        for scenario in chosen(options):
            if scenario.place and fstype != fstypes[0]:
                continue
            where = "own file system" if scenario.place else fstype or str(options.dir)
            note(f"--- {scenario.name}, {where}")
            try:
                with place(scenario, fstype, options) as directory:
                    peers = {
                        name: peer
                        for name, peer in scenario.peers.items()
                        if not (peer.clones and fstype in CLONING)
                    }
                    race = Race(directory, peers, scenario.prepare)
                    race.make(scenario.make, tiny=scenario.programs_cold)
                    runs = race.run(
                        min(options.rounds, scenario.rounds),
                        compare_all=not options.compare_once,
                        keep=scenario.copies_kept,
                    )
            except Failed as failure:
                print(f"\n{scenario.name}, {where}: {failure}", flush=True)
                continue
            result = Result(scenario, where, runs)
            print_result(result)
            yield result


def main() -> None:
    options = parse_arguments()
    if options.list:
        for scenario in chosen(options):
            print(f"{scenario.name:<32}{', '.join(scenario.peers)}")
        return
    if options.plot and find_spec("matplotlib") is None:
        raise Failed("--plot takes matplotlib: scripts/install plot")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the directory goes then as well
    results: list[Result] = []
    try:
        results.extend(measure(options))  # what was measured stays when it is interrupted
    finally:
        if options.json:
            write_json(results, options.json)
    if options.plot:
        from bench_plot import plot

        plot(results, options.plot)
    if options.quick:
        print("\nThe aims are for the full sizes: a quick copy is mostly start-up.")


if __name__ == "__main__":
    try:
        main()
    except (Failed, WrongCopy) as failure:
        sys.exit(f"scripts/bench: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)
