"""Copy files through Linux AIO; what has returned without an error is on the disk."""

from aiocp.copier import CopyResult, copy_file
from aiocp.errors import Cancelled, SourceChanged

__all__ = ["Cancelled", "CopyResult", "SourceChanged", "copy_file"]
