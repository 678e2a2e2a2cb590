"""Shards with sound checksums and wild contents."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from relocal_pyg.errors import SearchIndexError
from relocal_pyg.io.record import sha256_file, write_manifest
from relocal_pyg.models import ContrastMatcher, MultiGraphRelocalizer
from relocal_pyg.search import SearchIndex, build_index
from relocal_pyg.search.storage import ShardList, fingerprint

NAN = float("nan")


def network() -> MultiGraphRelocalizer:
    torch.manual_seed(0)
    return MultiGraphRelocalizer(4, hidden_channels=6, num_steps=5, head_channels=(4, 3)).eval()


@pytest.fixture(params=[ContrastMatcher, network], ids=["contrast", "network"])
def built(request: Any, tmp_path: Path) -> tuple[Path, Any]:
    model = request.param()
    videos = ((f"v{n}", torch.randn(10 + n, 4), 0.5) for n in range(3))
    build_index(tmp_path / "index", model, videos, state_dtype=torch.float32)
    return tmp_path / "index", model


def forge(folder: Path, model: Any, listed: Callable[[ShardList], None] | None = None) -> None:
    """Make the checksums fit what is there."""
    index = ShardList.load(folder, fingerprint(model))
    if listed is not None:
        listed(index)
    write_manifest(folder / "shard-00000", "shard")
    digest = sha256_file(folder / "shard-00000" / "manifest.json")
    index.shards[0] = dataclasses.replace(index.shards[0], manifest=digest)
    index.save(folder)


def refused(folder: Path, model: Any) -> None:
    with pytest.raises(SearchIndexError) as caught:
        SearchIndex(folder, model).search(np.ones((3, 4)), first_stage=None)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def changed(array: np.ndarray, place: Any, value: Any) -> np.ndarray:
    array = array.copy()
    array[place] = value
    return array


ARRAYS: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "features not finite": ("features", lambda a: changed(a, (3, 1), NAN)),
    "features too narrow": ("features", lambda a: a[:, :2]),
    "features too few": ("features", lambda a: a[:-1]),
    "features of whole numbers": ("features", lambda a: a.astype(np.int64)),
    "features of double width": ("features", lambda a: a.astype(np.float64)),
    "features in one dimension": ("features", lambda a: a.ravel()),
    "features of words": ("features", lambda a: a.astype(str)),
    "means not finite": ("means", lambda a: changed(a, 0, np.inf)),
    "proposals reversed": ("proposals", lambda a: a[:, ::-1]),
    "proposals without end": ("proposals", lambda a: changed(a, (0, 1), np.inf)),
    "proposals far away": ("proposals", lambda a: changed(a, (0, 1), 1e9)),
    "proposals before the start": ("proposals", lambda a: changed(a, (0, 0), -1e9)),
    "proposals not finite": ("proposals", lambda a: changed(a, (0, 0), NAN)),
    "proposals of three": ("proposals", lambda a: np.concatenate([a, a[:, :1]], axis=1)),
    "lengths of float": ("lengths", lambda a: a.astype(np.float32)),
    "states of another shape": ("states", lambda a: np.zeros((len(a), 2, 3), np.float32)),
    "states of another kind": ("states", lambda a: a.astype(np.float16)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ARRAYS)
def test_an_array_that_no_index_holds_is_refused(built: tuple[Path, Any], name: str):
    folder, model = built
    which, change = ARRAYS[name]
    file = folder / "shard-00000" / f"{which}.npy"
    np.save(file, change(np.load(file)))
    forge(folder, model)
    refused(folder, model)


@pytest.mark.slow
def test_lengths_and_states_of_a_network_are_looked_at(tmp_path: Path):
    model = network()
    for name, place, value in (("lengths", 0, 99), ("lengths", 0, 0), ("states", (0, 0, 0), NAN)):
        folder = tmp_path / f"{name}{value}"
        build_index(folder, model, [("v", torch.randn(12, 4), 1.0)], state_dtype=torch.float32)
        file = folder / "shard-00000" / f"{name}.npy"
        np.save(file, changed(np.load(file), place, value))
        forge(folder, model)
        refused(folder, model)


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"steps": [10, 11, -12]},
        {"steps": [10, 11, 10**18]},
        {"steps": [10, 11, True]},
        {"steps": [10, 11]},
        {"steps": "33"},
        {"steps": [10, 11, 12.0]},
        {"proposals": [0, 0, 0]},
        {"seconds_per_step": [0.5, 0.5, 0]},
        {"seconds_per_step": [0.5, 0.5, -1]},
        {"seconds_per_step": [0.5, 0.5, 1e300]},
        {"ids": ["v0", "v1", "../../x"]},
        {"ids": None},
        {"fingerprint": "x"},
        {"format": 2},
    ],
)
def test_a_record_that_no_index_holds_is_refused(built: tuple[Path, Any], change: dict[str, Any]):
    folder, model = built
    file = folder / "shard-00000" / "shard.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    forge(folder, model)
    refused(folder, model)


@pytest.mark.slow
@pytest.mark.parametrize("ids", [["../../x"], ["v0", "v0"], [], [7], None, ["a\x1b]0;x/"]])
def test_ids_that_no_index_holds_are_refused(built: tuple[Path, Any], ids: Any):
    folder, model = built

    def listed(index: ShardList) -> None:
        index.shards[0] = dataclasses.replace(index.shards[0], ids=ids)

    file = folder / "shard-00000" / "shard.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "ids": ids}))
    forge(folder, model, listed)
    refused(folder, model)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("channels", 10**12),
        ("channels", -4),
        ("channels", True),
        ("channels", 5),
        ("state_dtype", "object"),
        ("state_dtype", ["float32"]),
    ],
)
def test_a_list_that_no_index_holds_is_refused(built: tuple[Path, Any], name: str, value: Any):
    folder, model = built
    forge(folder, model, lambda index: setattr(index, name, value))
    refused(folder, model)


def test_without_verifying_what_is_small_is_looked_at_all_the_same(tmp_path: Path):
    model = ContrastMatcher()
    build_index(tmp_path, model, [("v", torch.randn(12, 4), 1.0)])
    file = tmp_path / "shard-00000" / "proposals.npy"
    np.save(file, np.load(file)[:, ::-1])
    forge(tmp_path, model)
    with pytest.raises(SearchIndexError, match="row 0 is no window of its video"):
        SearchIndex(tmp_path, model, verify=False)
