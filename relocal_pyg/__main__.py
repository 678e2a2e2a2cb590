"""The command ``relocal`` as a process; ``python -m relocal_pyg`` is the same."""

import os
import signal
import sys


def main() -> int:
    """Run the command line of this process; Ctrl-C and SIGTERM end it in one line, at any time.

    Returns:
        As :func:`relocal_pyg.apps.cli.main`.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        from relocal_pyg.apps.cli import main as command

        code = command()
    except KeyboardInterrupt:
        print("relocal: interrupted", file=sys.stderr)
        code = 130
    if code == 130:
        # Everything that was begun is undone or kept by now; libraries take seconds to wind up.
        if "multiprocessing" in sys.modules:
            from multiprocessing import active_children

            for child in active_children():
                child.kill()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
