"""The command line: options from arguments, exit statuses from what became of them."""

import os
import sys
from contextlib import suppress
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit, setrlimit
from typing import NoReturn

from aiocp.exit_status import Exit
from aiocp.options import Options, UsageError, read, rewrite

_OPEN_FILES = 16_384
_COMPLETE = "_AIOCP_COMPLETE"  # set by the shell functions that --install-completion installs


def _parse(argv: list[str]) -> Options | int:
    """The options, or the exit status of --help and --version. Raises UsageError."""
    given = rewrite(argv)
    options = read(given)
    if options is not None and _COMPLETE not in os.environ:
        return options
    from aiocp.usage import explain

    return explain(given)


def run(argv: list[str]) -> int:
    """Run the command; return its exit status."""
    try:
        options = _parse(argv)
        if not isinstance(options, Options):
            status = options
        else:
            from aiocp import command  # and all that copies, which --help can do without

            status = command.perform(options)
        sys.stdout.flush()
        return status
    except UsageError as error:
        print(f"aiocp: {error}; try 'aiocp --help'", file=sys.stderr)
        return Exit.USAGE
    except KeyboardInterrupt:  # before the signals were taken
        return Exit.INTERRUPTED
    except OSError as error:
        print(f"aiocp: cannot write to standard output: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return Exit.NOT_COPIED


def _allow_open_files() -> None:
    """Take as many descriptors as this process may have: trees are faster with some thousands."""
    soft, hard = getrlimit(RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != RLIM_INFINITY and soft < wanted:
        setrlimit(RLIMIT_NOFILE, (wanted, hard))


def main() -> NoReturn:
    """The entry point of the `aiocp` command.

    Leaves without taking the interpreter down, which would take another 45 ms.
    """
    _allow_open_files()
    status = run(sys.argv[1:])
    with suppress(OSError):  # standard output was flushed, and its error reported, by `run`
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)
