"""The ``relocal`` command: parses, calls the rooms above, prints. No torch before it is needed."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import re
import sys
import typing
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Annotated, Any

import tyro

import relocal_pyg
from relocal_pyg.apps.cli.options import (
    RESULTS,
    TYPED,
    Output,
    WrongArgument,
    check_places,
    paths_of,
)
from relocal_pyg.errors import RelocalError, RunError, UsageError, ascii_line
from relocal_pyg.io.write import own_folder, writing

#: Commands in the order of the help, each in the module that it is imported from when it is asked
#: for.
COMMANDS = {
    **dict.fromkeys(("example", "demo", "train", "pretrain", "evaluate", "ablate"), "train"),
    "find": "find",
    **dict.fromkeys(("extract", "propose"), "extract"),
    **dict.fromkeys(("index", "search"), "search"),
    **dict.fromkeys(("watch", "batch"), "watch"),
    "convert": "extract",
    "serve": "watch",
    "check": "extract",
}

#: The option that the guard of :func:`command` adds.
Force = Annotated[
    bool, tyro.conf.arg(help="Replace files and folders that relocal did not write (inputs never).")
]

DESCRIPTION = "Find the moment of a long video that means the same as a query clip."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command line without the program's name; ``sys.argv[1:]`` where None.

    Returns:
        0 done; 1 the run failed; 2 wrong usage or bad input; 130 interrupted.
    """
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):  # names of files and videos may hold anything
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        TYPED.set(tuple(sys.argv[1:] if arguments is None else arguments))
        _run(list(TYPED.get()))
    except RelocalError as error:
        print(f"relocal: {error}", file=sys.stderr)
        return 1 if isinstance(error, RunError) else 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1
    except OSError as error:  # a disk, a permission: of the machine, not of this program
        print(f"relocal: {ascii_line(str(error))}", file=sys.stderr)
        return 2
    except MemoryError:
        print("relocal: not enough memory", file=sys.stderr)
        return 2
    except SystemExit as stop:  # tyro: 0 after --help, 2 after a wrong argument
        return stop.code if isinstance(stop.code, int) else 2
    finally:
        TYPED.set(())
    return 0


def command(name: str) -> Callable[..., None]:
    """The function behind a command, guarded: what it is given to read is never written over.

    What is marked by :class:`relocal_pyg.apps.cli.options.Output`, a parameter or a field of one,
    is written; every other path is an input. The guard adds the option ``--force``.
    """
    body = getattr(import_module(f"relocal_pyg.apps.cli.{COMMANDS[name]}"), name)
    hints = typing.get_type_hints(body, include_extras=True)
    marks = _marks(hints)
    groups = {
        key: _marks(typing.get_type_hints(hint, include_extras=True))
        for key, hint in hints.items()
        if dataclasses.is_dataclass(hint)
    }
    signature = inspect.signature(body)

    def guarded(*given: Any, force: bool = False, **named: Any) -> None:
        values = signature.bind(*given, **named).arguments
        for key, value in values.items():
            fields = vars(value) if key in groups else {key: value}
            empty = [name.replace("_", "-") for name, each in fields.items() if each == ()]
            for option in (f"--{name}" for name in empty if f"--{name}" in TYPED.get()):
                raise UsageError(f"{option} needs a value")
        outputs = [(mark, values.pop(key)) for key, mark in marks.items() if key in values]
        for key in groups.keys() & values.keys():
            outputs += [(mark, getattr(values[key], at)) for at, mark in groups[key].items()]
            values[key] = dataclasses.replace(values[key], **dict.fromkeys(groups[key]))
        for key, value in values.items():
            kind = signature.parameters[key].kind
            check_places(value, is_option=kind is inspect.Parameter.KEYWORD_ONLY)
        files, streams = [], False
        for mark, value in outputs:
            files += [path / "*" for path in paths_of(value) if mark.filled]
            for path in paths_of(value) if mark.is_file else ():
                if str(path) != "-":
                    files.append(path)
                elif mark.may_stream and sys.stdout is None:
                    raise UsageError("the standard output is closed: name a file")
                elif mark.may_stream:
                    streams = True
                else:
                    raise UsageError('only --json may be "-", the standard output')
        inputs = [path for value in values.values() for path in paths_of(value)]
        with writing(files, inputs=inputs, force=force), contextlib.ExitStack() as folders:
            for mark, value in outputs:
                if mark.folder and value:
                    folders.enter_context(own_folder(value, mark.folder))
            if streams:
                RESULTS.set(sys.stdout)
                folders.enter_context(contextlib.redirect_stdout(sys.stderr))
                folders.callback(RESULTS.set, None)
            body(*given, **named)

    for hint in map(hints.get, groups):
        hint.__doc__ = _joined(hint)
    guarded.__name__, guarded.__doc__ = name, _joined(body)
    guarded.__signature__ = signature  # type: ignore[attr-defined]
    guarded.__annotations__ = hints
    if marks or any(groups.values()):
        option = inspect.Parameter(
            "force", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Force
        )
        guarded.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[*signature.parameters.values(), option]
        )
        guarded.__annotations__ = {**hints, "force": Force}
    return guarded


def _joined(documented: object) -> str:
    """A docstring whose paragraphs are one line each: the parser leaves some lines as they are."""
    return re.sub(r"(?<=\S)\n(?: {8})?(?=\S)", " ", inspect.getdoc(documented) or "")


def _marks(hints: dict[str, Any]) -> dict[str, Output]:
    marked = ((key, mark) for key in hints for mark in getattr(hints[key], "__metadata__", ()))
    return {key: mark for key, mark in marked if isinstance(mark, Output)}


def _run(arguments: list[str]) -> None:
    if arguments[:1] == ["--version"]:
        print(f"relocal {relocal_pyg.__version__}")
        return
    typed = [word.split("=")[0] for word in arguments if re.match("--[a-z]", word)]
    for option in typed:  # the parser would take the last alone
        if typed.count(option) > 1 and option not in ("--query", "--not"):
            raise UsageError(f"{option} is given twice: give it once, with all of its values")
    config = (tyro.conf.OmitArgPrefixes,)
    try:
        if arguments and arguments[0] in COMMANDS:
            name, rest = arguments[0], arguments[1:]
            tyro.cli(command(name), prog=f"relocal {name}", args=rest, config=config)
        else:
            tyro.extras.subcommand_cli_from_dict(
                {name: command(name) for name in COMMANDS},
                prog="relocal",
                description=f"{DESCRIPTION} relocal --version says which version this is.",
                args=arguments,
                config=config,
            )
    except WrongArgument as error:
        raise UsageError(f"{_option_of(error.word, arguments)} {error.reason}") from None


def _option_of(word: str, arguments: list[str]) -> str:
    """The option that an argument belongs to, as it was typed."""
    for before, argument in zip(arguments, arguments[1:], strict=False):
        if argument == word and before.startswith("-"):
            return before
    return next((each.split("=")[0] for each in arguments if each.endswith(f"={word}")), "a number")


def _show_warning(message: Warning | str, *details: object, **more: object) -> None:
    text = ascii_line(" ".join(str(message).split()))
    print(f"relocal: warning: {text}", file=sys.stderr)
