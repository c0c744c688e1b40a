"""What is said of a copy: file names as cp -v has them, errors, a summary; or all of it as JSON."""

import signal
import sys
from typing import TYPE_CHECKING, TextIO

from aiocp.errors import VerificationFailed
from aiocp.exit_status import Exit
from aiocp.options import Options
from aiocp.outcome import Outcome
from aiocp.progress import Progress
from aiocp.quoting import quoted
from aiocp.result import CopyResult, TreeResult

if TYPE_CHECKING:
    from aiocp.receipt import Receipt
    from aiocp.summary import Tally


class Said:
    """What is printed of a copy, and the exit status that belongs to it.

    `progress` is what shows how far it is: a bar makes room for what is printed. `receipt` takes
    the checksums, if they are not printed. `listens` tells whether `entry` has anything to do.
    """

    def __init__(self, options: Options) -> None:
        self.status = Exit.DONE
        self.progress: Progress | None = None
        self.receipt: Receipt | None = None
        self._debug, self._json = options.debug, options.as_json
        self._verbose = options.verbose or options.debug or options.dry_run
        self._dry_run = options.dry_run
        self.listens = bool(self._verbose or self._json or options.resume or options.checksum)
        self._prints_checksums = bool(
            options.checksum and not (options.checksum.file or options.as_json)
        )
        self._out = sys.stderr if options.as_json or self._prints_checksums else sys.stdout
        self._tally: Tally | None = None  # for a summary
        if self._verbose or self._json:
            from aiocp import summary

            real = not options.dry_run
            self._tally = summary.Tally(sync=options.sync and real, verify=options.verify and real)
        self._unwritten: OSError | None = None
        self._signal: str | None = None
        if options.as_json:
            from aiocp import json_lines  # now, while no file is open

            self._objects = json_lines

    def ask(self, path: str) -> bool:
        """Whether to replace a file; a no leaves something uncopied."""
        self._clear()
        print(f"aiocp: replace {quoted(path)}? ", end="", file=sys.stderr, flush=True)
        yes = sys.stdin.readline()[:1] in ("y", "Y")
        if not yes:
            self.status = max(self.status, Exit.NOT_COPIED)
        return yes

    def warn(self, words: str) -> None:
        self._complain(f"warning: {words}")

    def error(self, error: OSError) -> None:
        """What was not copied; of an error that names no files, that nothing was, and why."""
        what = ""
        if error.filename is not None:
            what = f"cannot copy {quoted(error.filename)} to {quoted(error.filename2)}: "
        self._complain(f"{what}{error.strerror}")
        differs = isinstance(error, VerificationFailed)
        self.status = max(self.status, Exit.DIFFERS if differs else Exit.NOT_COPIED)
        if self._tally is not None:
            self._tally.error()
        if self._json:
            self._print(self._objects.of_error(error), sys.stdout)

    def stopped(self, number: int, words: str) -> None:
        """That a signal has stopped the copy."""
        self._signal, self.status = signal.Signals(number).name, Exit(128 + number)
        self._complain(f"stopped by {self._signal}: {words}")

    def entry(self, entry: Outcome | CopyResult) -> None:
        """What cp -v says of a file, and with --debug how it was copied; its checksum."""
        if self._tally is not None:
            self._tally.entry(entry)
        if entry.checksum is not None:
            self._checksum(entry.checksum, entry.destination)
        if self._json:
            self._print(self._objects.of_entry(entry), sys.stdout)
        source, destination = quoted(entry.source), quoted(entry.destination)
        for note in entry.notes:
            if note.startswith("resume: "):
                self.warn(f"{destination}: {note}")
        if not self._verbose:
            return
        if entry.method == "skipped":
            if self._debug:
                self._print(f"skipped {destination}", self._out)
            return
        if entry.removed:
            self._print(f"removed {destination}", self._out)
        backup = f" (backup: {quoted(entry.backup)})" if entry.backup else ""
        how = f": {entry.method}" if self._debug else ""
        self._print(f"{source} -> {destination}{backup}{how}", self._out)

    def result(self, result: CopyResult | TreeResult) -> None:
        """What an operand was as a whole."""
        if self._tally is not None:
            self._tally.result(result)
        if self._debug and isinstance(result, CopyResult):
            for note in result.notes:
                self._print(f"  {note}", self._out)

    def end(self, *, sync: bool) -> None:
        """The receipt, of what was copied, unless a signal has stopped it, and the summary.

        Raises OSError where not everything could be printed.
        """
        if self.receipt is not None and self._signal is None:
            self._commit(self.receipt, sync)
        if self._tally is not None:
            self._sum_up(self._tally)
        if self._unwritten is not None:
            raise self._unwritten

    def _commit(self, receipt: "Receipt", sync: bool) -> None:
        """Put the receipt in place; where nothing could be copied there is none."""
        if not (receipt.lines or self.status is Exit.DONE):
            return
        try:
            receipt.commit(sync=sync)
        except OSError as error:
            self._complain(f"cannot write {quoted(receipt.path)}: {error.strerror}")
            self.status = max(self.status, Exit.NOT_COPIED)

    def _sum_up(self, tally: "Tally") -> None:
        summary = tally.summary(self.status, self._signal)
        if self._json:
            self._print(self._objects.of_summary(summary), sys.stdout)
        if self._verbose:
            for line in summary.lines(dry_run=self._dry_run):
                self._complain(line)

    def _checksum(self, digest: str, path: str) -> None:
        from aiocp.checksum import line

        if self.receipt is not None:
            self.receipt.add(line(digest, path))
        elif self._prints_checksums:
            self._print(line(digest, path), sys.stdout)

    def _complain(self, words: str) -> None:
        self._clear()
        print(f"aiocp: {words}", file=sys.stderr)

    def _print(self, line: str | bytes, out: TextIO) -> None:
        """Print a line, at once for a program that reads along; the copy goes on if nobody does."""
        if self._unwritten is not None:
            return
        if self.progress is not None and self.progress.shows and out.isatty():
            self._clear()
        try:
            if isinstance(line, bytes):
                out.buffer.write(line)
            else:
                out.write(f"{line}\n")
            if self._json:
                out.flush()
        except OSError as error:
            self._unwritten = error

    def _clear(self) -> None:
        if self.progress is not None:
            self.progress.clear()
