"""Flipped bits, cut files, full disks: damage is always found, and nothing sound is lost."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import run_code

from relocal_pyg.data import FeatureStore, write_features
from relocal_pyg.errors import CheckpointError, FeatureError, RelocalError, SearchIndexError
from relocal_pyg.models import ContrastMatcher, MultiGraphRelocalizer, load_model
from relocal_pyg.search import SearchIndex, build_index
from relocal_pyg.training.loop import Progress, load_state, save_state

pytestmark = pytest.mark.faults

ROWS = np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)


def small_model() -> MultiGraphRelocalizer:
    torch.manual_seed(0)
    return MultiGraphRelocalizer(6, hidden_channels=4, num_steps=3, head_channels=(4, 4))


def state_of(folder: Path) -> Callable[[], object]:
    """A training state; the reader gives everything that was stored, to compare."""
    model = small_model()
    optimizer = torch.optim.Adam(model.parameters())
    save_state(folder / "last", model, optimizer, Progress(step=7), {"seed": 1})

    def read() -> object:
        progress = load_state(folder / "last", model, optimizer, {"seed": 1})
        load_model(folder / "last")
        values = [value.tolist() for value in model.state_dict().values()]
        return vars(progress), values, repr(optimizer.state_dict())

    return read


def features_of(folder: Path) -> Callable[[], object]:
    write_features(folder / "a.h5", [("v", ROWS), ("w", ROWS[:50])])

    def read() -> object:
        store = FeatureStore(folder / "a.h5")
        try:
            return {name: store.read(name).tolist() for name in store.ids}
        finally:
            store.close()

    return read


def index_of(folder: Path) -> Callable[[], object]:
    build_index(folder / "index", ContrastMatcher(), [("v", ROWS, 1.0), ("w", ROWS[:50], 0.5)])

    def read() -> object:
        return SearchIndex(folder / "index", ContrastMatcher()).search(ROWS[3:9], first_stage=None)

    return read


MAKE = {"checkpoint": state_of, "features": features_of, "index": index_of}


def damage(file: Path, change: Callable[[bytes], bytes], read: Callable[[], object]) -> object:
    """Read with one file damaged; None where it is refused."""
    sound = file.read_bytes()
    file.write_bytes(change(sound))
    try:
        return read()
    except RelocalError as error:
        return None if str(file.parent) in str(error) else f"names no file: {error}"
    finally:
        file.write_bytes(sound)


def flip(bit: int) -> Callable[[bytes], bytes]:
    def change(data: bytes) -> bytes:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        return bytes(flipped)

    return change


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKE)
def test_a_flipped_bit_never_gives_a_wrong_answer(tmp_path: Path, count, figure, kind: str):
    read = MAKE[kind](tmp_path)
    wanted = read()
    files = [file for file in sorted(tmp_path.rglob("*")) if file.is_file()]
    sizes = np.array([file.stat().st_size for file in files], dtype=float)
    rng, tries = np.random.default_rng(1), count(60, 1000)
    raised = harmless = 0
    # Small files as often as large ones half of the time: a manifest is no safer than weights.
    for number in range(tries):
        share = sizes / sizes.sum() if number % 2 else None
        file = files[rng.choice(len(files), p=share)]
        answer = damage(file, flip(int(rng.integers(8 * file.stat().st_size))), read)
        raised += answer is None
        harmless += answer is not None and answer == wanted
    silent = tries - raised - harmless
    figure(
        "corruption",
        f"{kind}: of {tries} bit flips {raised} raise, {harmless} change nothing that is read, "
        f"{silent} silent",
    )
    assert silent == 0
    if kind == "checkpoint":
        assert raised >= 0.999 * tries
    assert raised >= 0.5 * tries


@pytest.mark.slow
def test_any_flipped_bit_in_the_list_of_shards_is_found(tmp_path: Path, count, figure):
    read = index_of(tmp_path)
    wanted, file = read(), tmp_path / "index" / "index.json"
    bits, refused = 8 * file.stat().st_size, 0
    # Every seventh bit falls into nearly every byte, at every place in it.
    tried = range(0, bits, count(7, 1))
    for bit in tried:
        answer = damage(file, flip(bit), read)
        assert answer is None or answer == wanted
        refused += answer is None
    figure(
        "corruption",
        f"list of shards, {len(tried)} of its {bits} bits: {refused} raise, "
        f"{len(tried) - refused} change white space, 0 silent",
    )


def test_a_shard_of_another_index_is_refused(tmp_path: Path):
    """Sound by itself, of the same model and the same name, but not the one that was added."""
    model, folders = ContrastMatcher(), (tmp_path / "one", tmp_path / "two")
    for folder, rows in zip(folders, (ROWS, ROWS + 1), strict=True):
        build_index(folder, model, [("v", rows, 1.0)])
    shutil.rmtree(folders[0] / "shard-00000")
    (folders[1] / "shard-00000").rename(folders[0] / "shard-00000")
    for verify in (True, False):
        with pytest.raises(SearchIndexError, match="not the one that the index lists"):
            SearchIndex(folders[0], model, verify=verify)
    shutil.rmtree(folders[0] / "shard-00000")
    with pytest.raises(SearchIndexError, match="shard-00000"):
        SearchIndex(folders[0], model)


@pytest.mark.slow
@pytest.mark.parametrize("kind", MAKE)
def test_a_cut_file_is_refused(tmp_path: Path, count, kind: str):
    read = MAKE[kind](tmp_path)
    wanted, rng = read(), np.random.default_rng(2)
    files = [file for file in sorted(tmp_path.rglob("*")) if file.is_file()]
    for file in files:
        for _ in range(count(3, 60)):
            size = int(rng.integers(file.stat().st_size))
            answer = damage(file, lambda data, size=size: data[:size], read)
            assert answer is None or answer == wanted
        # The index's own list has a checksum; what says whose folder it is concerns writers alone.
        left = wanted if file == tmp_path / "index" / "manifest.json" else None
        assert damage(file, lambda data: data[: len(data) // 2], read) == left
        assert damage(file, lambda _: b"", read) == left


FULL_DISK = """
import ctypes, os, subprocess, sys
from pathlib import Path
place = Path(sys.argv[1])
# As unshare(1) does: what is mounted here is seen by this process alone.
assert ctypes.CDLL(None).unshare(0x00020000) == 0
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place)], check=True)
import numpy as np, torch
from relocal_pyg.data import FeatureStore, write_features
from relocal_pyg.errors import OutputError
from relocal_pyg.models import ContrastMatcher, VideoLevel, load_model
from relocal_pyg.search import SearchIndex, add_videos, build_index
from relocal_pyg.io.write import write_json
rows = np.random.default_rng(0).standard_normal((40, 8))
torch.manual_seed(0)
small, large = VideoLevel(8, 16), VideoLevel(64, 512)
wanted = [value.tolist() for value in small.state_dict().values()]
small.save(place / "model")
write_features(place / "a.h5", [("v", rows)])
write_json(place / "a.json", [1])
build_index(place / "index", ContrastMatcher(), [("v", rows, 1.0)])
(place / "ballast").write_bytes(bytes(2**20))
attempts = {
    "model": lambda: large.save(place / "model"),
    "a.h5": lambda: write_features(place / "a.h5", ((f"v{i}", rows) for i in range(5000))),
    "a.json": lambda: write_json(place / "a.json", ["x" * 2**21]),
    "index": lambda: add_videos(
        place / "index", ContrastMatcher(), [("w", np.ones((20000, 16))[:, :8] + rows[0], 1.0)]
    ),
}
for name, attempt in attempts.items():
    try:
        attempt()
    except OutputError as error:
        assert name in str(error), error
        print("typed", name)
assert [value.tolist() for value in load_model(place / "model").state_dict().values()] == wanted
assert FeatureStore(place / "a.h5").ids == ["v"]
assert (place / "a.json").read_text() == "[\\n 1\\n]\\n"
assert len(SearchIndex(place / "index", ContrastMatcher())) == 1
assert sorted(os.listdir(place)) == ["a.h5", "a.json", "ballast", "index", "model"]
"""


@pytest.mark.slow
def test_a_full_disk_loses_nothing(tmp_path: Path, figure):
    """A real one: two megabytes in memory, mounted where only this process sees it."""
    disk = tmp_path / "disk"
    disk.mkdir()
    allowed = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "none", str(disk)],
        capture_output=True,
        check=False,
    )
    if allowed.returncode:
        pytest.skip("may not mount here; tests/test_storage.py limits the size of files instead")
    done = run_code(FULL_DISK, disk)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [
        "typed",
        "model",
        "typed",
        "a.h5",
        "typed",
        "a.json",
        "typed",
        "index",
    ]
    figure("full disk", "4/4 writers (checkpoint, features, report, index): error, old file intact")


def test_errors_of_damage_are_typed(tmp_path: Path):
    kinds = {"checkpoint": CheckpointError, "features": FeatureError, "index": RelocalError}
    for kind, error in kinds.items():
        folder = tmp_path / kind
        folder.mkdir()
        read = MAKE[kind](folder)
        file = max((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
        file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(error):
            read()
