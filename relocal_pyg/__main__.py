"""``python -m relocal_pyg`` is the command ``relocal``."""

import sys

from relocal_pyg.apps.cli import main

if __name__ == "__main__":
    sys.exit(main())
