"""The `aiocp` command, and python -m aiocp."""

import gc
import signal
from typing import NoReturn


def main() -> NoReturn:
    """Run the command.

    Until the copy takes the signals, ^C ends the process at once, as it would end cp, instead of
    raising KeyboardInterrupt somewhere in the imports.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.disable()  # to look for garbage in what is only loaded takes 2 of 36 ms
    from aiocp import cli

    gc.freeze()
    gc.enable()
    cli.main()


if __name__ == "__main__":
    main()
