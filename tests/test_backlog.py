"""How much of what waits a worker is given at a time."""

from typing import Any, cast

import pytest

from aiocp.backlog import LEAST_FILES, MOST_BYTES, MOST_FILES, Backlog, Waiting
from aiocp.target import Target


class Somewhere:
    """What there is of a target in this."""

    class directory:  # noqa: N801 - as an attribute
        path = b"below"

        @staticmethod
        def join(name: bytes) -> bytes:
            return b"below/" + name


TARGET = cast(Target, Somewhere)


def backlog(*sizes: int) -> Backlog:
    waiting = Backlog()
    for i, size in enumerate(sizes):
        waiting.add(Waiting(TARGET, b"%d" % i, size, is_file=True, far=None))
    return waiting


def parts(waiting: Backlog, hands: int) -> list[list[bytes]]:
    """All that is given."""
    given = []
    while waiting:
        given.append(list(waiting.take(hands).paths()))
    return given


@pytest.mark.parametrize("hands", [1, 2, 4, 1000])
@pytest.mark.parametrize("files", [1, LEAST_FILES, 50_000, 200_000])
def test_all_of_it_is_given_once_and_in_order(files: int, hands: int) -> None:
    given = parts(backlog(*[100] * files), hands)
    assert [b"below/%d" % i for i in range(files)] == [path for part in given for path in part]
    lengths = [len(part) for part in given]
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths) <= MOST_FILES
    assert min(lengths[:-1], default=LEAST_FILES) >= LEAST_FILES


@pytest.mark.parametrize("hands", [2, 4, 1000])
def test_nobody_is_left_with_much(hands: int) -> None:
    """When one begins its last part the others have as much in hand together."""
    given = parts(backlog(*[100] * 50_000), hands)
    assert len(given[-1]) <= LEAST_FILES
    left = 0
    for part in reversed(given):
        assert len(part) <= max(LEAST_FILES, (left + len(part)) / hands)
        left += len(part)


def test_one_worker_has_few_parts() -> None:
    assert [MOST_FILES, MOST_FILES, 100] == [
        len(part) for part in parts(backlog(*[0] * (2 * MOST_FILES + 100)), 1)
    ]


def test_a_part_has_not_too_many_bytes() -> None:
    """Unless it is one file."""
    half, more = MOST_BYTES // 2, 2 * MOST_BYTES
    given = parts(backlog(half, half, half, more, half, 1, 1), 4)
    assert [2, 1, 1, 3] == [len(part) for part in given]


def test_when_there_is_enough() -> None:
    assert not backlog(*[0] * (LEAST_FILES - 1)).ready
    assert backlog(*[0] * LEAST_FILES).ready
    assert backlog(MOST_BYTES).ready
    waiting: Any = backlog(*[0] * (8 * MOST_FILES))
    assert waiting.full
    waiting.take(4)
    assert not waiting.full
