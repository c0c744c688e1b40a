"""What was copied as JSON objects, one a line, ASCII only.

A name that is no UTF-8 has a lone surrogate, as "\\udcff", for each byte that is not: `json.loads`
and `os.fsencode` make of it what it was.
"""

import json
from collections.abc import Callable, Mapping
from errno import errorcode
from json.encoder import encode_basestring_ascii
from typing import Any

from aiocp.outcome import Outcome
from aiocp.result import CopyResult, Worker
from aiocp.summary import Summary

# What has one type of value is written without json.dumps: a line takes 1.6 us, not 3.3, of the
# some 60 that a small file takes
_WRITTEN: Mapping[type, Callable[[Any], str]] = {
    str: encode_basestring_ascii,
    int: repr,
    bool: {False: "false", True: "true"}.__getitem__,
    type(None): {None: "null"}.__getitem__,
    tuple: lambda values: json.dumps([*map(_plain, values)]) if values else "[]",
}
_FORMS: dict[type, str] = {}  # of the objects, by what they tell of


def of_entry(entry: Outcome | CopyResult) -> str:
    """The object of something that was copied, or left alone: all its fields, `kind` as "type"."""
    form = _FORMS.get(type(entry)) or _form(type(entry))
    values = [_WRITTEN.get(type(value), json.dumps)(value) for value in (entry.kind, *entry)]
    return form.format(*values)


def _form(kind: type[Outcome | CopyResult]) -> str:
    fields = enumerate(kind._fields, 1)
    keys = ['"type": {0}', *(f'"{name}": {{{at}}}' for at, name in fields if name != "kind")]
    form = _FORMS[kind] = "{{" + ", ".join(keys) + "}}"
    return form


def of_error(error: OSError) -> str:
    """The object of what was not copied."""
    return json.dumps(
        {
            "type": "error",
            "source": error.filename,
            "destination": error.filename2,
            "operation": getattr(error, "operation", None),
            "errno": error.errno,
            "error": errorcode.get(error.errno or 0),
            "message": error.strerror,
        }
    )


def of_summary(summary: Summary) -> str:
    """The object that ends it."""
    workers = [*map(_plain, summary.workers)]
    return json.dumps({"type": "summary", **summary._asdict(), "workers": workers})


def _plain(value: str | Worker) -> object:
    """What is no object of Python's."""
    return value._asdict() if isinstance(value, Worker) else value
