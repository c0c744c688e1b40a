"""File names as cp prints them: one printable word that a shell takes for the name again."""

import os
import re

_LETTERS = {7: "a", 8: "b", 9: "t", 10: "n", 11: "v", 12: "f", 13: "r"}
_SPECIAL = re.compile(r"""[!"$&()*;<=>?[\\^`{|}]|(?<=.)[#~]""")  # where cp has no double quotes


def quoted(path: str) -> str:
    """The path in quotes, with what cannot be printed, or decoded, escaped."""
    if "'" not in path and path.isprintable():
        return f"'{path}'"
    if "'" in path and path.isprintable() and not _SPECIAL.search(path):
        return f'"{path}"'
    words, escaping = ["'"], False
    for character in path:
        if character == "'":
            words.append("'\\''")
            escaping = False
            continue
        if character.isprintable() == escaping:
            words.append("''" if escaping else "'$'")
            escaping = not escaping
        words.append(_escaped(character) if escaping else character)
    return "".join([*words, "'"])


def _escaped(character: str) -> str:
    return "".join("\\" + _LETTERS.get(byte, f"{byte:03o}") for byte in os.fsencode(character))


def size_name(size: int) -> str:
    """A number of bytes as an option takes it: 4096, 64K, 1M."""
    for unit in ("", "K", "M"):
        if size % 1024 or unit == "M":
            return f"{size}{unit}"
        size //= 1024
    raise AssertionError
