"""What typer is for: --help, --version, completion, and what is wrong with a command line."""

import inspect
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Annotated, Any

import typer

from aiocp.options import DECLARED, VALUED, Declared, Options, UsageError

EPILOG = (
    "Exit status: 0 everything is copied and on the disk, 1 something is not, 2 wrong usage,"
    " 3 what is on the disk is not what was read."
)

_Refused: Any = typer.BadParameter.__base__  # click's UsageError, wherever this typer keeps it


def explain(given: list[str]) -> Options | int:
    """Answer rewritten arguments: the exit status of --help or --version, else the options.

    Raises UsageError; SystemExit where a shell asks for completions.
    """
    _leave_out()
    app = typer.Typer(pretty_exceptions_enable=False)
    for argument in given[: given.index("--")]:
        if argument in VALUED:  # typer would take the next one, or --, for its value
            raise UsageError(f"option {argument!r} requires an argument")
    probes = any(argument.startswith("--probe=") for argument in given)
    app.command("aiocp", epilog=EPILOG, no_args_is_help=False)(_command(copies=not probes))
    command = typer.main.get_command(app)
    try:
        answer: Options | int | None = command.main(given, prog_name="aiocp", standalone_mode=False)
    except _Refused as error:
        message = error.format_message().rstrip(".")
        raise UsageError(f"{message[0].lower()}{message[1:]}") from None
    return answer or 0


def _leave_out() -> None:
    """Spare what typer loads with its help, and ours has none of: Markdown, and tracebacks in
    colour. It is 45 of 180 ms."""
    for module, name in (("rich.markdown", "Markdown"), ("rich.traceback", "Traceback")):
        stand_in = ModuleType(module)
        setattr(stand_in, name, object)
        sys.modules.setdefault(module, stand_in)


def _command(*, copies: bool) -> Callable[..., Options]:
    """A function as typer wants it, whose parameters are the fields of `Options`.

    The operands may be missing where nothing `copies`.
    """

    def command(**values: Any) -> Options:
        return Options(**values)

    command.__doc__ = Options.__doc__
    parameters = list(_parameters({} if copies else {"operands": []}))
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return command


def _parameters(defaults: dict[str, Any]) -> Iterator[inspect.Parameter]:
    defaults = {**defaults, **Options._field_defaults}
    for declared in DECLARED:
        yield inspect.Parameter(
            declared.field,
            inspect.Parameter.KEYWORD_ONLY,
            default=defaults.get(declared.field, inspect.Parameter.empty),
            annotation=Annotated[declared.kind, _parameter(declared)],
        )


def _parameter(declared: Declared) -> Any:
    option = declared.option
    if not option.names:
        return typer.Argument(metavar=option.metavar, help=option.words)
    version = declared.field == "version"
    return typer.Option(
        *option.names,
        help=option.words,
        rich_help_panel=option.panel,
        metavar=option.metavar,
        parser=option.parser and _refusing(option.parser),
        show_default=option.show_default,
        callback=_version if version else None,
        is_eager=version,
    )


def _refusing(parser: Callable[[str], object]) -> Callable[[str], object]:
    """A parser whose ValueError is what typer tells the user."""

    def parse(text: str) -> object:
        try:
            return parser(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None

    return parse


def _version(wanted: bool) -> bool:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"aiocp {version('aiocp')}")
        raise typer.Exit
    return wanted
