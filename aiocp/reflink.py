"""When a copy shares the blocks of its source instead of having its own, by cp's rules."""

import stat
from errno import EDQUOT, EINVAL, EIO, ENOMEM, ENOSPC, ENOSYS, ENOTTY, EOPNOTSUPP, EXDEV
from typing import Literal

from aiocp.destination import Destination
from aiocp.errors import fail
from aiocp.source import Source

Reflink = Literal["auto", "always", "never"]

# what is an error of its own, not a refusal: a copy would meet it as well
_ERRORS = (EIO, ENOMEM, ENOSPC, EDQUOT)

# what refuses every file of one device to every directory of another
_NEVER_BETWEEN = (EXDEV, EOPNOTSUPP, ENOTTY, ENOSYS)


def clone(source: Source, destination: Destination, how: Reflink, refused: set[int]) -> bool:
    """Make the destination a clone of the source; False where that cannot be and need not.

    `refused` remembers the devices from which this destination's can clone nothing.

    Raises OSError: EIO, ENOMEM, ENOSPC, EDQUOT; with "always" whatever the reason is.
    """
    if how == "never":
        return False
    if how == "auto":
        regular = stat.S_ISREG(source.stat.st_mode) and destination.regular
        if not (regular and source.size) or source.stat.st_dev in refused:
            return False
    try:
        destination.clone(source)
    except OSError as error:
        if how == "always" or error.errno in _ERRORS:
            raise fail(error.errno or EINVAL, "clone") from error
        if error.errno in _NEVER_BETWEEN:
            refused.add(source.stat.st_dev)
        return False
    return True
