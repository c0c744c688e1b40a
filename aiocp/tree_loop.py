"""The copy of a tree, driven by the running asyncio loop.

Its context tells an eventfd of completions, its stages tell the loop itself; either wakes it. Each
tree has a context of its own; those that together would need more descriptors than there are wait
for each other.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager, suppress
from time import perf_counter
from typing import Any
from weakref import WeakKeyDictionary

from aiocp.budget import room
from aiocp.context import Context
from aiocp.priority import lowered
from aiocp.result import TreeResult
from aiocp.tree_copier import TreeCopier
from aiocp.tree_copy import Wait

_trees: WeakKeyDictionary[asyncio.AbstractEventLoop, dict["asyncio.Future[None]", int]]
_trees = WeakKeyDictionary()  # each with its descriptors


async def copy_tree(how: TreeCopier) -> TreeResult:
    """Copy a tree. Where the task is cancelled what is begun is waited for."""
    begun = perf_counter()
    async with descriptors_for(how):
        with lowered(idle=how.idle):
            copy = how.begin()  # its threads inherit the priority
        try:
            with Context(how.limits.depth, how.how.block_size, idle=how.idle) as context:
                with _woken(context) as woken:
                    copy.tell(_threadsafe(woken.set))
                    try:
                        steps = how.steps(copy, context, lambda _: context.reap_now())
                        await _drive(steps, context, woken)
                    except (Exception, asyncio.CancelledError):
                        settling = _drive(_settle(copy.settle(), context), context, woken)
                        await settled(asyncio.ensure_future(settling))
                        raise
                return how.result(copy, context, begun)
        finally:
            copy.close()


@asynccontextmanager
async def descriptors_for(how: TreeCopier) -> AsyncIterator[None]:
    """Wait until the other trees of the loop leave as many as this one may need."""
    loop = asyncio.get_running_loop()
    trees = _trees.setdefault(loop, {})
    while trees and sum(trees.values()) + how.limits.descriptors > room():
        await asyncio.wait(trees, return_when=asyncio.FIRST_COMPLETED)
    ended = loop.create_future()
    trees[ended] = how.limits.descriptors
    try:
        yield
    finally:
        del trees[ended]
        ended.set_result(None)


async def settled(future: "asyncio.Future[Any]") -> None:
    """Wait for something to end, however often the task is cancelled meanwhile."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([future])
    future.exception()  # of which nobody is told any more


@contextmanager
def _woken(context: Context) -> Iterator[asyncio.Event]:
    """What is set when the context has completions."""
    loop, woken = asyncio.get_running_loop(), asyncio.Event()
    eventfd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def told() -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(eventfd)
        woken.set()

    try:
        context.notify(eventfd)
        loop.add_reader(eventfd, told)
        yield woken
    finally:
        loop.remove_reader(eventfd)
        os.close(eventfd)


def _threadsafe(call: Callable[[], object]) -> Callable[[], None]:
    """What has the loop make a call, unless it is closed."""
    loop = asyncio.get_running_loop()

    def told() -> None:
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(call)

    return told


async def _drive(
    steps: Generator[Wait, None, None], context: Context, woken: asyncio.Event
) -> None:
    with closing(steps):
        for on in steps:
            if on is None or (on is context and context.refused):
                await asyncio.sleep(0)
            else:
                await _wait(woken, on)
                woken.clear()


async def _wait(woken: asyncio.Event, on: Wait) -> None:
    """Wait until the loop is woken, not longer than so many seconds if it is a number."""
    if not isinstance(on, float):
        await woken.wait()
        return
    timer = asyncio.get_running_loop().call_later(on, woken.set)
    try:
        await woken.wait()
    finally:
        timer.cancel()


def _settle(steps: Iterator[Wait], context: Context) -> Generator[Wait, None, None]:
    """Wait for the stages, and for what is in flight."""
    yield from steps
    while context.in_flight:
        if not context.reap_now():
            yield context
