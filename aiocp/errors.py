"""The exceptions a caller must tell apart, and how an OSError learns its operation."""

import os
from errno import EINVAL
from types import TracebackType
from typing import Protocol


class SourceChanged(OSError):
    """The source changed while it was being copied; what was written has been thrown away."""

    operation = "look at source"


class VerificationFailed(OSError):
    """What is on the disk is not what was read of the source: errno EBADMSG, or that of the error
    which reading it back has met."""

    operation = "verify"


class ExecutorFailed(OSError):
    """An executor, or one of its workers, could not do its part of a copy; the text says which, and
    `__cause__` is what the executor has raised, if it has."""

    operation = "executor"


class Cancelled(Exception):
    """The copy was stopped through `cancel`; nothing of it is left, or the text says what."""


class Cancel(Protocol):
    """What stops a copy: a `threading.Event`, or anything else that can be asked."""

    def is_set(self) -> bool: ...


def look(cancel: Cancel | None) -> None:
    """Raise `Cancelled` if the copy is to stop."""
    if cancel is not None and cancel.is_set():
        raise Cancelled


def fail(errno: int, operation: str) -> OSError:
    """An OSError, of the subclass that belongs to `errno`, whose text names the operation."""
    error = OSError(errno, f"{operation}: {os.strerror(errno)}")
    error.operation = operation  # type: ignore[attr-defined]
    return error


def add_words(error: OSError | Cancelled, words: str) -> None:
    """Add to what is told of a copy that was stopped."""
    if isinstance(error, Cancelled):
        error.args = (*error.args, words)
    else:
        error.strerror = f"{error.strerror}; {words}"


def same_file() -> OSError:
    """The error for a copy of a file to itself."""
    from shutil import SameFileError  # it loads the compression modules

    error = SameFileError(EINVAL, "source and destination are the same file")
    error.operation = "compare"  # type: ignore[attr-defined]
    return error


class operation:  # noqa: N801 - reads as a statement
    """`with operation("open source"):` puts these words in front of an OSError's reason.

    An error that names its operation already keeps it.
    """

    __slots__ = ("_words",)

    def __init__(self, words: str) -> None:
        self._words = words

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and error.errno and not hasattr(error, "operation"):
            raise fail(error.errno, self._words) from error
