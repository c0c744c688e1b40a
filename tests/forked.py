"""Run the command in a forked child: what `python -m aiocp` does, without its start."""

import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from pathlib import Path

# what the command loads when it is needed, which an ordinary user may not be able to
from aiocp import cli, command, dry_run, dry_tree, link, parents, tree_copier  # noqa: F401

TIMEOUT = 60  # seconds


def aiocp(
    words: Sequence[str], top: Path, stdin: str = "", *, user: int = 0, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run aiocp in the directory `top`, as root or another `user`; what it said, and its status."""
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as out:
        given.write(stdin.encode())
        given.seek(0)
        with tempfile.TemporaryFile() as err:
            child = os.fork()
            if not child:
                for number, file in enumerate((given, out, err)):
                    os.dup2(file.fileno(), number)
                _run(words, top, user, environment)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said = []
            for file in (out, err):
                file.seek(0)
                said.append(file.read().decode(errors="surrogateescape"))
    return subprocess.CompletedProcess(words, status, *said)


def _run(words: Sequence[str], top: Path, user: int, environment: dict[str, str]) -> None:
    status = 99  # of what never ends by itself
    try:
        signal.alarm(TIMEOUT)
        os.environ.update(environment)
        if user:
            os.setgroups([])
            os.setgid(user)
            os.setuid(user)
        os.chdir(top)
        with open(0) as sys.stdin, open(1, "w") as sys.stdout, open(2, "w") as sys.stderr:
            try:
                status = cli.run(list(words))
            except BaseException:  # noqa: BLE001 - a child must not go on as its parent
                traceback.print_exc()
    finally:
        os._exit(status)
