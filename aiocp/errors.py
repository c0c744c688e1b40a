"""The exceptions a caller must tell apart, and how an OSError learns its operation."""

import os
from types import TracebackType


class SourceChanged(OSError):
    """The source changed while it was being copied; what was written has been thrown away."""


class Cancelled(Exception):
    """The copy was stopped through `cancel`; nothing of it is left."""


def fail(errno: int, operation: str) -> OSError:
    """An OSError, of the subclass that belongs to `errno`, whose text names the operation."""
    return OSError(errno, f"{operation}: {os.strerror(errno)}")


class operation:  # noqa: N801 - reads as a statement
    """`with operation("open source"):` puts these words in front of an OSError's reason."""

    __slots__ = ("_words",)

    def __init__(self, words: str) -> None:
        self._words = words

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if isinstance(error, OSError) and error.errno is not None:
            raise fail(error.errno, self._words) from error
