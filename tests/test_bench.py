"""The benchmark runs from end to end: a scenario, its peers, the table and the JSON."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parent.parent / "scripts" / "bench.py"
SIZE = 8 << 20


def test_a_scenario_is_timed_compared_and_reported(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command: list[str | Path] = [
        sys.executable,
        BENCH,
        "large clean",
        "--size",
        "8M",
        "--rounds",
        "2",
    ]
    command += ["--dir", tmp_path, "--json", report]
    process = subprocess.run(command, capture_output=True, text=True)
    assert (0, True) == (process.returncode, "cp + sync" in process.stdout), process.stderr
    result = json.loads(report.read_text())["results"][0]
    assert ("large clean", SIZE) == (result["scenario"], result["size"])
    assert [2, 2] == [len(result["runs"][name]) for name in ("aiocp", "cp + sync")]
    assert [SIZE, SIZE] == [run["told"]["bytes_written"] for run in result["runs"]["aiocp"]]
    assert [report] == list(tmp_path.iterdir())


def test_a_wrong_copy_is_told(tmp_path: Path) -> None:
    command: list[str | Path] = [
        sys.executable,
        BENCH,
        "one small",
        "--rounds",
        "1",
        "--dir",
        tmp_path,
    ]
    command += ["--peer", 'liar=head -c 4096 /dev/zero >"$2"']
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 1
    assert "wrong copy by: head" in process.stderr
    assert [] == list(tmp_path.iterdir())


def test_executors_are_timed_from_inside_and_what_they_cost_is_told(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    command: list[str | Path] = [sys.executable, BENCH, "cluster tree", "cluster cost"]
    command += ["--files", "40", "--rounds", "1", "--only", "pool 1,8 workers"]
    command += ["--dir", tmp_path, "--json", report]
    process = subprocess.run(command, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    tree, cost = json.loads(report.read_text())["results"]
    run = tree["runs"]["pool 1"][0]
    assert run["wall"] == run["told"]["elapsed"]
    assert [40] == [worker["files"] for worker in run["told"]["workers"]]
    each = cost["runs"]["8 workers"][0]["told"]["each"]
    assert 2 / 100 == each["messages"]  # one there, and one back
    assert "10^9 files" in process.stdout
    assert [report] == list(tmp_path.iterdir())


def test_those_of_a_cluster_are_named() -> None:
    command: list[str | Path] = [sys.executable, BENCH, "--cluster", "--list"]
    listed = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    names = ("cluster far tree", "cluster far file", "cluster tree", "cluster file", "cluster cost")
    assert list(names) == [line[:32].strip() for line in listed]
