"""Copy files through Linux AIO; what has returned without an error is on the disk."""

from aiocp.copier import CopyResult, copy_file
from aiocp.errors import Cancelled, SourceChanged
from aiocp.tree_copier import TreeResult, copy_tree

__all__ = ["Cancelled", "CopyResult", "SourceChanged", "TreeResult", "copy_file", "copy_tree"]
