"""Calls made in side threads: their results, their errors, and none left behind."""

import signal
import threading
from functools import partial

import pytest

from aiocp.stage import Stage


def raising(error: BaseException) -> int:
    raise error


@pytest.fixture(params=[1, 2, "no thread to be had"])
def stage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Stage[int]:
    if isinstance(request.param, str):
        monkeypatch.setattr(threading.Thread, "start", lambda _: raising(RuntimeError()))
        return Stage("test")
    return Stage("test", request.param)


def test_every_call_has_its_result(stage: Stage[int]) -> None:
    for number in range(100):
        stage.give(partial(int, number))
    assert 100 == stage.pending
    assert set(range(100)) == {stage.take() for _ in range(100)}
    assert (0, False) == (stage.pending, stage.done())
    stage.close()


def test_one_thread_keeps_the_order() -> None:
    stage: Stage[int] = Stage("test")
    for number in range(100):
        stage.give(partial(int, number))
    assert list(range(100)) == [stage.take() for _ in range(100)]
    stage.close()


@pytest.mark.parametrize("error", [OSError(5, "told"), MemoryError(), KeyboardInterrupt()])
def test_what_a_call_raises_is_raised_by_take(stage: Stage[int], error: BaseException) -> None:
    """And the next call is made all the same."""
    stage.give(partial(raising, error))
    stage.give(partial(int, 7))
    outcomes: list[object] = []
    for _ in range(2):
        try:
            outcomes.append(stage.take())
        except BaseException as raised:  # noqa: BLE001 - KeyboardInterrupt is one of them
            outcomes.append(raised)
    assert 7 in outcomes
    assert error in outcomes
    assert 0 == stage.pending
    stage.close()


def test_close_waits_for_the_call_that_is_being_made_and_forgets_the_rest() -> None:
    begun, go, made = threading.Event(), threading.Event(), []
    stage: Stage[None] = Stage("test")

    def first() -> None:
        begun.set()
        go.wait()
        made.append("first")

    stage.give(first)
    stage.give(lambda: made.append("second"))
    begun.wait()
    threading.Timer(0.01, go.set).start()
    stage.close()
    assert ["first"] == made
    assert not [thread for thread in threading.enumerate() if thread.name == "test"]


def test_a_stage_that_nobody_has_ends() -> None:
    """As where an exception cuts in between its beginning and whoever would close it."""
    stage: Stage[int] = Stage("test")
    [thread] = stage._threads
    stage.give(partial(int, 1))
    del stage
    thread.join()


def test_signals_are_for_the_owner() -> None:
    """One that is sent to the process interrupts no call of a side thread."""
    stage: Stage[set[int]] = Stage("test")
    stage.give(lambda: {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, [])})
    assert {signal.SIGINT, signal.SIGTERM, signal.SIGHUP} <= stage.take()
    stage.close()


def test_who_waits_takes_it_later(stage: Stage[int]) -> None:
    """`wait` leaves the result there, however often it is called; `tell` is called for each."""
    told: list[bool] = []
    stage.tell(lambda: told.append(True))
    for number in range(3):
        stage.give(partial(int, number))
    for left in (2, 1, 0):
        stage.wait()
        stage.wait()
        assert stage.done()
        assert stage.take() in range(3)
        assert left == stage.pending
    stage.close()
    assert [True] * 3 == told


def test_what_is_forgotten_is_not_pending() -> None:
    begun, go = threading.Event(), threading.Event()
    stage: Stage[bool] = Stage("test")

    def first() -> bool:
        begun.set()
        return go.wait()

    stage.give(first)
    stage.give(lambda: pytest.fail("it was forgotten"))
    begun.wait()
    stage.forget()
    assert 1 == stage.pending
    go.set()
    stage.take()
    assert 0 == stage.pending
    stage.close()
