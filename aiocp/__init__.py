"""Copy files through Linux AIO; what has returned without an error is on the disk."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiocp.copier import copy_file
    from aiocp.errors import Cancelled, ExecutorFailed, SourceChanged, VerificationFailed
    from aiocp.many import Copier
    from aiocp.outcome import Outcome
    from aiocp.result import CopyResult, TreeResult
    from aiocp.tree_copier import copy_tree

__all__ = [
    "Cancelled",
    "Copier",
    "CopyResult",
    "ExecutorFailed",
    "Outcome",
    "SourceChanged",
    "TreeResult",
    "VerificationFailed",
    "copy_file",
    "copy_tree",
]

_HOME = {
    "Cancelled": "errors",
    "Copier": "many",
    "CopyResult": "result",
    "ExecutorFailed": "errors",
    "Outcome": "outcome",
    "SourceChanged": "errors",
    "TreeResult": "result",
    "VerificationFailed": "errors",
    "copy_file": "copier",
    "copy_tree": "tree_copier",
}

if not TYPE_CHECKING:  # mypy would take it for any name

    def __getattr__(name: str) -> object:
        """Load what is asked for (PEP 562): `aiocp.libaio` needs none of it, a file no tree."""
        if name not in _HOME:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value: object = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
        globals()[name] = value
        return value
