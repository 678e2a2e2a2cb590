"""Read spoilt feature files until one hangs or crashes this process: ``FILE FIRST LAST SPOILT``.

Prints the number of each case before it is read, and any exception that is not of the package.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from mutations import mutate

from relocal_pyg.data import FeatureStore
from relocal_pyg.data.features import scan
from relocal_pyg.errors import FeatureError


def main() -> None:
    sound, first, last, place = sys.argv[1:]
    data, spoilt = Path(sound).read_bytes(), Path(place)
    for case in range(int(first), int(last)):
        spoilt.write_bytes(mutate(data, np.random.default_rng([5, case]), text=False))
        print(case, flush=True)
        try:
            list(scan(spoilt, "features"))
            store = FeatureStore(spoilt)
            for name in store.ids:
                store.read(name)
            store.close()
        except FeatureError:
            pass
        except Exception as error:
            print(f"uncaught {error!r}", flush=True)


if __name__ == "__main__":
    main()
