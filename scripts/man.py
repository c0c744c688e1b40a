"""Write the man page, of what --help is made of as well: scripts/man."""

from itertools import groupby
from pathlib import Path

from aiocp.options import DECLARED, Declared, Options
from aiocp.usage import EPILOG

PAGE = Path(__file__).parent.parent / "aiocp" / "aiocp.1"

_SIGNALS = (
    "SIGINT, SIGTERM and SIGHUP stop the copy: what is in flight is waited for, what was there"
    " before stays, and the exit status is 128 and the signal's number. SIGUSR1 has it say how far"
    " it is."
)


def page() -> str:
    """The page in man(7)'s macros."""
    assert Options.__doc__
    first, *rest = Options.__doc__.split("\n\n")
    options = [declared for declared in DECLARED if declared.option.names]
    lines = [
        '.TH AIOCP 1 "" "aiocp" "User Commands"',
        ".SH NAME",
        r"aiocp \- copy files through Linux AIO, and exit when they are on the disk",
        ".SH SYNOPSIS",
        r"\fBaiocp\fR [\fIOPTION\fR]... \fISRC\fR... \fIDST\fR",
        ".br",
        r"\fBaiocp \-\-probe\fR \fIPATH\fR [\fB\-\-plot\fR \fIFILE\fR] [\fB\-\-json\fR]",
        ".SH DESCRIPTION",
        _text(first),
        *(f".PP\n{_text(paragraph)}" for paragraph in rest),
        ".SH OPTIONS",
    ]
    for panel, members in groupby(options, lambda declared: declared.option.panel):
        lines.append(f".SS {_text(panel)}")
        for declared in members:
            lines += [".TP", _names(declared), _text(declared.option.words)]
    lines += [".SH EXIT STATUS", _text(EPILOG.removeprefix("Exit status: "))]
    lines += [".SH SIGNALS", _text(_SIGNALS)]
    lines += [".SH SEE ALSO", r"\fBcp\fR(1), \fBrsync\fR(1), \fBio_submit\fR(2), \fBfsync\fR(2)"]
    return "\n".join(lines) + "\n"


def _names(declared: Declared) -> str:
    """-t, --target-directory DIR"""
    option = declared.option
    names = ", ".join(
        rf"\fB{_text(name)}\fR" for names in option.names for name in names.split("/")
    )
    if declared.is_flag:
        return names
    value = option.metavar or "TEXT"
    if value.startswith("[="):
        return rf"{names}[=\fI{_text(value[2:-1])}\fR]"
    return rf"{names} \fI{_text(value)}\fR"


def _text(words: str) -> str:
    """Words as they stand: hyphens that can be copied, no line that starts with a control."""
    escaped = " ".join(words.split()).replace("\\", r"\e").replace("-", r"\-")
    return rf"\&{escaped}" if escaped.startswith((".", "'")) else escaped


if __name__ == "__main__":
    PAGE.write_text(page())
