"""What the command reads of its arguments itself is what typer makes of them."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from aiocp.arguments import MEANS
from aiocp.options import DECLARED, Options, UsageError, read, rewrite
from aiocp.usage import explain

NAMES = [name for each in DECLARED for names in each.option.names for name in names.split("/")]
WORDS = [
    "",
    "a",
    "b/c",
    "-",
    "--",
    "x=y",
    "auto",
    "al",
    "never",
    "sha256",
    "sha256=x",
    "4096",
    "64K",
    "1MiB",
    "7",
    "0",
]


def by_typer(rewritten: list[str]) -> Options | int | str:
    try:
        return explain(rewritten)
    except UsageError as error:
        return str(error)


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from(NAMES),
            st.sampled_from(WORDS),
            st.sampled_from(["-rp", "-av", "-tDIR", "--pres", "--spa=al", "--frob", "-q", "-bS.x"]),
            st.builds("{}={}".format, st.sampled_from(NAMES), st.sampled_from(WORDS)),
        ),
        max_size=7,
    )
)
def test_typer_says_the_same(argv: list[str]) -> None:
    """What is in order is the same for both; what is not, typer has an answer to, or it is in
    order after all."""
    if {"--version", "--help"} & set(argv):
        return
    rewritten = rewrite(argv)
    options = read(rewritten)
    if options is not None:
        assert options == by_typer(rewritten)
    else:
        assert isinstance(by_typer(rewritten), Options | str)


def test_every_option_is_read_without_typer() -> None:
    """One after the other, with a value that it takes."""
    values: dict[str, Any] = {"depth": 7, "block_size": 8192, "bwlimit": 8192}
    values["checksum"] = "xxh128"
    seen = set()
    for declared in DECLARED[1:-1]:
        for names in declared.option.names:
            for name, on in zip(names.split("/"), (True, False), strict=False):
                value = str(values.get(declared.field, "auto"))
                argv = [f"{name}={value}"] if name.startswith("--") else [name, value]
                if declared.is_flag or name in MEANS:
                    argv = [name]
                options = read(rewrite([*argv, "SRC", "DST"]))
                assert options is not None, argv
                assert options.operands == ["SRC", "DST"]
                if declared.is_flag and name not in MEANS:
                    assert getattr(options, declared.field) is on
                seen.add(declared.field)
    assert len(seen) == len(DECLARED) - 2
