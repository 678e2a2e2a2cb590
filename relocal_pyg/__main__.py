"""The command ``relocal`` as a process; ``python -m relocal_pyg`` is the same."""

import os
import signal
import sys
import threading
import warnings
from types import FrameType


def _interrupt(number: int, frame: FrameType | None) -> None:
    """End what runs; what it leaves half made may fail as it goes, which is nothing to report."""
    sys.unraisablehook = _again
    warnings.simplefilter("ignore")
    while frame is not None and frame.f_code is not _again.__code__:
        frame = frame.f_back
    if frame is None:
        raise KeyboardInterrupt
    _send_again()  # raised in there it would be lost


def _again(failure: "sys.UnraisableHookArgs") -> None:
    """An interrupt that fell into a destructor is lost there: it is sent once more."""
    if isinstance(failure.exc_value, KeyboardInterrupt):
        _send_again()


def _send_again() -> None:
    threading.Timer(0.01, os.kill, (os.getpid(), signal.SIGINT)).start()


def main() -> int:
    """Run the command line of this process; Ctrl-C and SIGTERM end it in one line, at any time."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # as a shell asks in the background
            signal.signal(number, _interrupt)
    try:
        from relocal_pyg.apps.cli import main as command

        code = command()
    except KeyboardInterrupt:
        code = 130
    except Exception:  # an interrupt between two steps of a lock ends as an error of the lock
        if sys.unraisablehook is not _again:
            raise
        code = 130
    if code == 130:  # what was under way is gone by now, and shows no bar again below the line
        print("relocal: interrupted", file=sys.stderr)
    if sys.unraisablehook is _again:  # told to end, a server too
        # Everything that was begun is undone or kept by now; libraries take seconds to wind up.
        if "multiprocessing" in sys.modules:
            from multiprocessing import active_children

            for child in active_children():
                child.kill()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
