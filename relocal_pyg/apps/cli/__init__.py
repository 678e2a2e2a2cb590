"""The ``relocal`` command: parses, calls the rooms above, prints. No torch before it is needed."""

from __future__ import annotations

import io
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import tyro

from relocal_pyg.apps.cli.demo import demo
from relocal_pyg.apps.cli.evaluate import ablate, evaluate
from relocal_pyg.apps.cli.extract import check, extract, propose
from relocal_pyg.apps.cli.find import find
from relocal_pyg.apps.cli.index import index
from relocal_pyg.apps.cli.search import search
from relocal_pyg.apps.cli.serve import serve
from relocal_pyg.apps.cli.train import train
from relocal_pyg.errors import RelocalError, RunError, ascii_line

COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "ablate": ablate,
    "find": find,
    "extract": extract,
    "propose": propose,
    "index": index,
    "search": search,
    "serve": serve,
    "check": check,
}

DESCRIPTION = "Find the moment of a long video that means the same as a query clip."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command line without the program's name; ``sys.argv[1:]`` where None.

    Returns:
        0 done; 1 the run failed; 2 wrong usage or bad input; 130 interrupted.
    """
    # A stopped job (SIGTERM) leaves a checkpoint as Ctrl-C does.
    signal.signal(signal.SIGTERM, _interrupt)
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):  # names of files and videos may hold anything
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="relocal",
            description=DESCRIPTION,
            args=arguments,
            config=(tyro.conf.OmitArgPrefixes,),
        )
    except RunError as error:
        print(f"relocal: {error}", file=sys.stderr)
        return 1
    except RelocalError as error:
        print(f"relocal: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("relocal: interrupted", file=sys.stderr)
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
    return 0


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _show_warning(message: Warning | str, *details: object, **more: object) -> None:
    text = ascii_line(" ".join(str(message).split()))
    print(f"relocal: warning: {text}", file=sys.stderr)
