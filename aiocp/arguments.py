"""cp's way of giving arguments, made into one that the parser understands.

The parser knows no optional values, no order among different options and no abbreviations. So argv
is read here as getopt_long(3) reads it, and written anew: long options with their values, what is
short for several options as these, of options that exclude each other the last one, then `--` and
the operands.
"""

import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping

from aiocp.metadata import ALL, ATTRIBUTES, DEFAULT_MODE, attributes

_ATTRIBUTES = "mode,ownership,timestamps"

# the value of a long option that is given without one
OPTIONAL = {
    "--preserve": _ATTRIBUTES,
    "--update": "older",
    "--backup": "",
    "--context": "",
    "--reflink": "always",
}

# what stands for other options
MEANS = {
    "--archive": ("--archive", "--no-dereference", "--preserve=all"),
    "-a": ("--archive", "--no-dereference", "--preserve=all"),
    "-d": ("--no-dereference", "--preserve=links"),
    "-p": (f"--preserve={_ATTRIBUTES}",),
    "-u": ("--update=older",),
    "-R": ("--recursive",),
    "-b": ("--backup=",),
    "-Z": ("--context=",),
}

# the last one given counts
EXCLUSIVE = (
    ("-H", "-L", "--dereference", "-P", "--no-dereference"),
    ("-i", "--interactive", "-n", "--no-clobber"),
)


def rewrite(arguments: Iterable[str], names: Collection[str], valued: Collection[str]) -> list[str]:
    """Return arguments of the same meaning for a parser that knows the options `names`.

    `valued` are those of them that take a value. What is unknown or lacks its value stays as it is,
    for the parser to complain of.
    """
    waiting = deque(arguments)
    options: list[str] = []
    operands: list[str] = []
    while waiting:
        argument = waiting.popleft()
        if argument == "--":
            break
        if argument.startswith("--"):
            options += _long(argument, waiting, names, valued)
        elif argument.startswith("-") and argument != "-":
            options += _short(argument, waiting, valued)
        else:
            operands.append(argument)
            if "POSIXLY_CORRECT" in os.environ:
                break
    return [*map(_signed, _last_of_each(options)), "--", *operands, *waiting]


def _long(
    argument: str, waiting: deque[str], names: Collection[str], valued: Collection[str]
) -> Iterator[str]:
    name, equals, value = argument.partition("=")
    name = _in_full(name, names)
    if name in MEANS and not equals:
        yield from MEANS[name]
    elif name in OPTIONAL and not equals:
        yield f"{name}={OPTIONAL[name]}"
    elif name in valued and not equals and waiting:
        yield f"{name}={waiting.popleft()}"
    else:
        yield name + equals + value


def _short(argument: str, waiting: deque[str], valued: Collection[str]) -> Iterator[str]:
    """The options of a bundle such as -rpt DIR."""
    for at, letter in enumerate(argument[1:], 2):
        option = "-" + letter
        if option in valued and option not in MEANS:
            yield option + (argument[at:] or (waiting.popleft() if waiting else ""))
            return
        yield from MEANS.get(option, (option,))


def _in_full(name: str, names: Collection[str]) -> str:
    """The option that a name abbreviates, if it is one only."""
    if name in names:
        return name
    found = [full for full in names if full.startswith(name)]
    return found[0] if len(found) == 1 else name


def _last_of_each(options: list[str]) -> list[str]:
    for group in EXCLUSIVE:
        given = [at for at, option in enumerate(options) if option in group]
        for at in reversed(given[:-1]):
            del options[at]
    return options


def _signed(option: str) -> str:
    """--preserve and --no-preserve as one option, which keeps their order."""
    name, equals, value = option.partition("=")
    if equals and name in ("--preserve", "--no-preserve"):
        return f"--preserve={'+' if name == '--preserve' else '-'}{value}"
    return option


def in_full(value: str, meanings: Mapping[str, str]) -> str:
    """What a value means that may be abbreviated, as long as it can mean one thing only.

    Raises ValueError.
    """
    found = {meanings[word] for word in meanings if word.startswith(value)}
    if value in meanings:
        return meanings[value]
    if not value or len(found) != 1:
        raise ValueError(f"takes {', '.join(meanings)}, not {value!r}")
    return found.pop()


def preserved(lists: Iterable[str]) -> frozenset[str]:
    """What is to be kept after all --preserve ("+mode,links") and --no-preserve ("-mode").

    Raises ValueError for an attribute that there is not.
    """
    known = {name: name for name in (*sorted(ATTRIBUTES), ALL)}
    kept: set[str] = set()
    for signed in lists:
        given = attributes(in_full(name, known) for name in signed[1:].split(","))
        if signed.startswith("+"):
            kept |= given
        else:
            kept -= given
        if "mode" in given:
            (kept.discard if signed.startswith("+") else kept.add)(DEFAULT_MODE)
    return frozenset(kept)
