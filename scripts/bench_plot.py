"""The figures as a picture: how many times aiocp's time each peer takes, and the sweep's heat map.

To be imported when all is measured: the memory of matplotlib would count as the peers'.
"""

from pathlib import Path

from matplotlib import pyplot
from matplotlib.axes import Axes

from bench_peers import SWEEP_BLOCKS, SWEEP_DEPTHS, size_name
from bench_report import Result, heat_map


def plot(results: list[Result], path: Path) -> None:
    """Draw a panel for each result."""
    heights = [1.2 + 0.25 * (5 if _is_sweep(result) else len(result.runs)) for result in results]
    figure, every = pyplot.subplots(
        len(results),
        figsize=(9, sum(heights)),
        squeeze=False,
        height_ratios=heights,
        layout="constrained",
    )
    for axes, result in zip(every[:, 0], results, strict=True):
        axes.set_title(f"{result.scenario.name}, {result.place}", loc="left")
        (draw_heat_map if _is_sweep(result) else draw_bars)(axes, result)
    figure.savefig(path)


def _is_sweep(result: Result) -> bool:
    return result.scenario.name == "sweep"


def draw_bars(axes: Axes, result: Result) -> None:
    """Median seconds, a line from the least to the most, and the ratio in words."""
    rows = result.rows()
    middles = [row["median"] or 0.0 for row in rows.values()]
    below = [
        middle - (row["min"] or 0.0) for middle, row in zip(middles, rows.values(), strict=True)
    ]
    above = [
        (row["max"] or 0.0) - middle for middle, row in zip(middles, rows.values(), strict=True)
    ]
    colors = ["tab:blue" if name.startswith("aiocp") else "tab:gray" for name in rows]
    bars = axes.barh(list(rows), middles, xerr=[below, above], color=colors, ecolor="black")
    ratios = [row["ratio"] for row in rows.values()]
    axes.bar_label(bars, ["" if each is None else f"  {each:.2f} x" for each in ratios])
    axes.invert_yaxis()
    axes.set_xlabel("seconds, and times aiocp's")


def draw_heat_map(axes: Axes, result: Result) -> None:
    """MiB per second by depth and block size."""
    rates = heat_map(result)
    axes.imshow(rates, aspect="auto", origin="lower")
    axes.set_xticks(range(len(SWEEP_BLOCKS)), map(size_name, SWEEP_BLOCKS))
    axes.set_yticks(range(len(SWEEP_DEPTHS)), map(str, SWEEP_DEPTHS))
    axes.set_xlabel("block size")
    axes.set_ylabel("depth")
    for row, line in enumerate(rates):
        for column, rate in enumerate(line):
            axes.text(column, row, f"{rate:.0f}", ha="center", va="center", color="white")
