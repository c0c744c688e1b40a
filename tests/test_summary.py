"""What the workers of an executor have done, summed up, in words and as JSON."""

import json

from aiocp.json_lines import of_entry, of_summary
from aiocp.result import CopyResult, TreeResult, Worker
from aiocp.summary import Tally

ONE = Worker("one:1", 2, 30, 4_000_000, 0.5, 8e6, 256, 17)
OTHER = Worker("other:2", 1, 1, 0, 0.0, 0.0, 256, 0)


def tree(*workers: Worker) -> TreeResult:
    names = {"source": "tree", "destination": "copy"}
    values = {**dict.fromkeys(TreeResult._fields, 0), **names, "errors": (), "workers": workers}
    return TreeResult(**values)  # type: ignore[arg-type]


def test_workers_are_summed_up_by_name() -> None:
    """Over the operands; the rate is that of all their time, in flight is what was most."""
    tally = Tally(sync=True, verify=False)
    tally.result(tree(ONE, OTHER))
    tally.result(tree(ONE._replace(bytes=1_000_000, busy=2.0, rate=5e5, peak_in_flight=64)))
    summary = tally.summary(0)
    both = Worker("one:1", 4, 60, 5_000_000, 2.5, 2e6, 256, 64)
    assert (both, OTHER) == summary.workers
    assert [
        "one:1: 4 batches, 60 files: 5,000,000 bytes in 2.500 s, 2 MB/s; 64 of 256 in flight",
        "other:2: 1 batch, 1 file: 0 bytes in 0.000 s, 0 MB/s; 0 of 256 in flight",
    ] == summary.lines()[2:]
    assert [both._asdict(), OTHER._asdict()] == json.loads(of_summary(summary))["workers"]


def test_workers_of_a_file_are_objects() -> None:
    values = {**dict.fromkeys(CopyResult._fields, 0), "notes": ("a note",), "workers": (ONE, OTHER)}
    result = CopyResult(**values)  # type: ignore[arg-type]
    told = json.loads(of_entry(result))
    assert [ONE._asdict(), OTHER._asdict()] == told["workers"]
    assert ["a note"] == told["notes"]
    assert json.loads(of_entry(result._replace(notes=(), workers=())))["workers"] == []
