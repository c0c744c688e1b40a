"""What the benchmark measured: as tables, and as JSON."""

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench_peers import SWEEP_BLOCKS, SWEEP_DEPTHS, size_name, sweep_name
from bench_run import Run, Runs, ratio
from bench_scenarios import Scenario
from bench_sources import MIB

# figure: heading, unit, digits
COLUMNS = {
    "median": ("median s", 1, 3),
    "min": ("min", 1, 3),
    "max": ("max", 1, 3),
    "ratio": ("/ aiocp", 1, 2),
    "cpu": ("CPU s", 1, 3),
    "peak_memory": ("peak MiB", MIB, 0),
    "cached": ("cached MiB", MIB, 1),
    "rate": ("{unit}/s", 1, 0),
}


@dataclass(frozen=True)
class Result:
    """A scenario on a file system, and how its peers' runs went."""

    scenario: Scenario
    place: str
    runs: Runs

    def rows(self) -> dict[str, dict[str, float | None]]:
        """Figures by peer: seconds, bytes, and what is done in a second."""
        return {name: self._row(name, each) for name, each in self.runs.items()}

    def _row(self, name: str, each: list[Run]) -> dict[str, float | None]:
        middle = median(run.wall for run in each)
        amount = self.scenario.size / (MIB if self.scenario.unit == "MiB" else 1)
        return {
            "median": middle,
            "min": min(run.wall for run in each),
            "max": max(run.wall for run in each),
            "inner": median(run.inner for run in each),
            "ratio": ratio(self.runs, name),
            "cpu": median(run.cpu for run in each),
            "peak_memory": max(run.peak_memory for run in each),
            "cached": max((run.cached for run in each if run.cached is not None), default=None),
            "evicted": max((run.evicted for run in each if run.evicted is not None), default=None),
            "rate": amount / middle,
        }

    def aims(self) -> Iterator[tuple[str, float, bool]]:
        """What is aimed at, what was reached, and whether that will do."""
        for aim in self.scenario.aims:
            figure = aim.figure(self.runs)
            if figure is not None:
                yield aim.text, figure, aim.met(figure)


def print_result(result: Result) -> None:
    """The table, and which aims are met."""
    rows = result.rows()
    print(f"\n{result.scenario.name}, {result.place}")
    width = max(map(len, rows))
    headings = (heading for heading, _, _ in COLUMNS.values())
    line = "".join(f"{heading:>12}" for heading in headings)
    print(" " * width + line.format(unit=result.scenario.unit))
    for name, row in rows.items():
        cells = (_text(row[key], unit, digits) for key, (_, unit, digits) in COLUMNS.items())
        print(f"{name:<{width}}" + "".join(f"{cell:>12}" for cell in cells))
    for text, figure, met in result.aims():
        print(f"{'met   ' if met else 'MISSED'} {text}: {figure:.3g}")
    if result.scenario.name == "sweep":
        print_heat_map(result)
    if result.scenario.name == "cluster cost":
        print_cost(result)
    print(end="", flush=True)


def _text(value: float | None, unit: int, digits: int) -> str:
    return "-" if value is None else f"{value / unit:.{digits}f}"


def heat_map(result: Result) -> list[list[float]]:
    """MiB per second of the median run, by depth and by block size."""
    rows = result.rows()
    return [
        [rows[sweep_name(depth, block)]["rate"] or 0.0 for block in SWEEP_BLOCKS]
        for depth in SWEEP_DEPTHS
    ]


def print_heat_map(result: Result) -> None:
    """Depth down and block size across."""
    print("MiB/s".rjust(8) + "".join(f"{size_name(block):>8}" for block in SWEEP_BLOCKS))
    for depth, rates in zip(SWEEP_DEPTHS, heat_map(result), strict=True):
        print(f"{depth:>8}" + "".join(f"{rate:>8.0f}" for rate in rates))


# what a coordinator spends: on what, as told, the unit of each figure by its heading
COST = (
    ("once", "once", {"messages": 1, "kB sent": 1e3, "kB received": 1e3, "CPU ms": 1e-3}),
    ("a file", "each", {"messages": 1, "bytes sent": 1, "bytes received": 1, "CPU us": 1e-6}),
    (
        "10^9 files",
        "each",
        {"10^6 messages": 1e-3, "GB sent": 1, "GB received": 1, "CPU hours": 3.6e-6},
    ),
)


def print_cost(result: Result) -> None:
    """What a coordinator spends once, on each file, and on as many as that makes."""
    width = max(map(len, result.runs))
    for heading, when, units in COST:
        print(f"{heading:<{width}}" + "".join(f"{unit:>16}" for unit in units))
        for name, each in result.runs.items():
            keys = zip(("messages", "sent", "received", "cpu"), units.values(), strict=True)
            cells = (median(run.told[when][key] for run in each) / unit for key, unit in keys)
            print(f"{name:<{width}}" + "".join(f"{cell:>16.3g}" for cell in cells))


def write_json(results: list[Result], path: Path) -> None:
    """Every run and every figure."""
    report: dict[str, Any] = {
        "kernel": platform.release(),
        "cpus": os.cpu_count(),
        "results": [
            {
                "scenario": result.scenario.name,
                "place": result.place,
                "size": result.scenario.size,
                "unit": result.scenario.unit,
                "peers": {name: result.scenario.peers[name].command for name in result.runs},
                "summary": result.rows(),
                "aims": [
                    {"aim": text, "reached": figure, "met": met}
                    for text, figure, met in result.aims()
                ],
                "runs": {name: [asdict(run) for run in each] for name, each in result.runs.items()},
            }
            for result in results
        ],
    }
    path.write_text(json.dumps(report, indent=1) + "\n")
