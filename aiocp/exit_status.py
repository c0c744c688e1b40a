"""How the command ends."""

import signal
from enum import IntEnum


class Exit(IntEnum):
    """Exit statuses; a copy stopped by a signal ends with 128 + its number, as in a shell."""

    DONE = 0
    NOT_COPIED = 1
    USAGE = 2
    DIFFERS = 3
    HUNG_UP = 128 + signal.SIGHUP
    INTERRUPTED = 128 + signal.SIGINT
    TERMINATED = 128 + signal.SIGTERM
