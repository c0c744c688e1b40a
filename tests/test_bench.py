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
