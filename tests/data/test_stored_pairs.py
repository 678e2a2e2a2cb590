"""Pairs and triplets as a data set of PyG: what is read back is what was drawn."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch_geometric.loader import DataLoader

from relocal_pyg.data import FeatureStore, StoredPairs, TripletDataset, write_features
from relocal_pyg.data.proposals import WindowProposals
from relocal_pyg.datasets.synthetic import Sparse, SyntheticConfig, synthetic
from relocal_pyg.errors import CheckpointError, UsageError


@pytest.fixture(scope="module")
def protocol():
    sizes = {"train_classes": 2, "val_classes": 2, "test_classes": 2}
    return synthetic(SyntheticConfig(**sizes, train_videos=2, val_videos=2, test_videos=2))


def test_what_is_read_back_is_what_was_drawn(protocol, tmp_path: Path):
    drawn = TripletDataset(protocol, num_samples=3, seed=4, num_steps=6, materialize=True)
    options = {"num_samples": 3, "seed": 4, "num_steps": 6}
    triplets = StoredPairs(tmp_path, protocol, **options)
    pairs = StoredPairs(tmp_path, protocol, **options, kind="pairs")
    assert (len(triplets), len(pairs)) == (3, 6)
    for number in range(3):
        for side, (kept, wanted) in enumerate(zip(triplets[number], drawn[number], strict=True)):
            assert set(kept.keys()) == set(wanted.keys())
            for key in kept.keys():  # noqa: SIM118 - not a dict
                assert torch.equal(kept[key], wanted[key]), key
            alone = pairs[2 * number + side]
            assert torch.equal(alone.x, wanted.x)
            assert alone.y.tolist() == [1 - side]
    positive, negative = next(iter(DataLoader(triplets, batch_size=3)))
    assert positive.x.shape == negative.x.shape == (36, protocol.features.dim)
    batch = next(iter(DataLoader(pairs, batch_size=2)))
    assert int(batch.edge_index_k2.max()) == 23  # the second pair's nodes come after the first's


def test_other_settings_are_another_folder_and_the_same_are_not_drawn_again(
    protocol, tmp_path: Path, monkeypatch
):
    first = StoredPairs(tmp_path, protocol, num_samples=2, num_steps=6)
    other = StoredPairs(tmp_path, protocol, num_samples=2, num_steps=7)
    assert first.processed_dir != other.processed_dir
    assert (first[0][0].num_nodes, other[0][0].num_nodes) == (12, 14)
    monkeypatch.setattr(TripletDataset, "draw", None)  # drawing again would fail
    again = StoredPairs(tmp_path, protocol, num_samples=2, num_steps=6)
    assert torch.equal(again[1][0].x, first[1][0].x)


def test_what_a_caller_changes_is_not_kept(protocol, tmp_path: Path):
    triplets = StoredPairs(tmp_path, protocol, num_samples=1, num_steps=6)
    pairs = StoredPairs(tmp_path, protocol, num_samples=1, num_steps=6, kind="pairs")
    for read in (lambda: triplets[0][0], lambda: pairs[1]):
        before = read().clone()
        changed = read()
        changed.x.zero_()
        changed.step_mask.logical_not_()
        assert torch.equal(read().x, before.x)
        assert torch.equal(read().step_mask, before.step_mask)


def test_what_is_drawn_of_other_features_or_windows_is_another_folder(protocol, tmp_path: Path):
    class Louder:
        """Twice the features of another source, read in a way that has a name."""

        def __init__(self, key: str) -> None:
            self.key, self.dim = key, protocol.features.dim

        def read(self, *where):
            return 2 * protocol.features.read(*where)

    stores, listed = [], []
    videos = {item.video_id: None for items in protocol.splits.values() for item in items}
    for number in (1, 2):
        rows = {name: number * protocol.features.read(name) for name in videos}
        write_features(tmp_path / f"{number}.h5", rows.items())
        stores.append(FeatureStore(tmp_path / f"{number}.h5"))
        windows = torch.tensor([[0.0, 2.0 + number], [1.0, 4.0]])
        listed.append(lambda item, _, windows=windows: windows)
    folders = {
        StoredPairs(tmp_path, other, num_samples=1, num_steps=6).processed_dir
        for other in (
            protocol,
            replace(protocol, features=Louder("rgb")),
            replace(protocol, features=Louder("flow")),
            *(replace(protocol, features=source) for source in stores),
            *(replace(protocol, propose=source) for source in listed),
            *(replace(protocol, features=Sparse(protocol.features, t)) for t in (0.5, 1.0)),
            replace(protocol, propose=WindowProposals((3, 5))),
            replace(protocol, propose=WindowProposals((3, 5), stride=0.5)),
        )
    }
    assert len(folders) == 11
    copy = shutil.copy(tmp_path / "1.h5", tmp_path / "moved.h5")
    same = (replace(protocol, features=FeatureStore(each)) for each in (tmp_path / "1.h5", copy))
    assert len({each.fingerprint for each in same}) == 1


def test_a_damaged_file_says_what_to_do_and_can_be_drawn_again(protocol, tmp_path: Path):
    options = {"num_samples": 2, "num_steps": 6}
    wanted = StoredPairs(tmp_path, protocol, **options)[1][0].x
    file = Path(StoredPairs(tmp_path, protocol, **options).processed_paths[0])
    sound = load_file(file)
    for rows in ({}, {**sound, "x": sound["x"][:1]}, {**sound, "x": sound["x"] * torch.nan}):
        save_file(rows, file)
        with pytest.raises(CheckpointError, match="triplets.safetensors.*force_reload=True"):
            StoredPairs(tmp_path, protocol, **options)[1]
        again = StoredPairs(tmp_path, protocol, **options, force_reload=True)
        assert torch.equal(again[1][0].x, wanted)


@pytest.mark.parametrize("kind", ["triplets", "pairs"])
def test_workers_of_every_start_method_can_have_it(protocol, tmp_path: Path, kind):
    stored = StoredPairs(tmp_path, protocol, num_samples=1, num_steps=6, kind=kind)
    drawn = TripletDataset(protocol, num_samples=1, seed=0, num_steps=6)
    again, sampler = pickle.loads(pickle.dumps((stored, drawn)))
    first = again[0][0] if kind == "triplets" else again[0]
    assert torch.equal(first.x, sampler[0][0].x)
    assert torch.equal(first.x, drawn[0][0].x)


def test_rows_do_not_travel_and_parts_share_them(protocol, tmp_path: Path):
    """Each worker that is spawned got all rows, and held up the others while they were sent."""
    stored = StoredPairs(tmp_path, protocol, num_samples=20, num_steps=40)
    before = len(pickle.dumps(stored))
    wanted = stored[3][0].x
    assert len(pickle.dumps(stored)) == before
    part = stored[2:4]
    assert torch.equal(part[1][0].x, wanted)
    assert part._rows is stored._rows


def test_what_is_no_setting_is_refused(protocol, tmp_path: Path):
    for wrong in ({"kind": "triplet"}, {"num_samples": 0}, {"num_samples": 1.5}):
        with pytest.raises(UsageError, match=next(iter(wrong))):
            StoredPairs(tmp_path, protocol, **{"num_samples": 1, "num_steps": 6, **wrong})
    with pytest.raises(UsageError, match="root"):
        StoredPairs(None, protocol, num_samples=1)
    with pytest.raises(UsageError, match="k is 0"):
        StoredPairs(tmp_path, protocol, num_samples=1, ks=(0,))
    assert list(tmp_path.iterdir()) == []


def test_whole_numbers_of_numpy_name_the_same_folder(protocol, tmp_path: Path):
    plain = {"num_samples": 2, "seed": 3, "num_steps": 6}
    first = StoredPairs(tmp_path, protocol, **plain, ks=(1, 2))
    kinds = {name: np.int64(value) for name, value in plain.items()}
    again = StoredPairs(tmp_path, protocol, **kinds, ks=np.array([1, 2]))
    assert again.processed_dir == first.processed_dir
    assert torch.equal(again[1][0].x, first[1][0].x)
    assert again[0][0].ks == (1, 2)


def test_samples_can_be_drawn_again(protocol, tmp_path: Path, monkeypatch):
    options = {"num_samples": 1, "num_steps": 6}
    wanted = StoredPairs(tmp_path, protocol, **options)[0][0].x
    other = TripletDataset(protocol, num_samples=1, seed=7, num_steps=6)[0]
    monkeypatch.setattr(TripletDataset, "draw", lambda *_: other)
    assert torch.equal(StoredPairs(tmp_path, protocol, **options)[0][0].x, wanted)
    again = StoredPairs(tmp_path, protocol, **options, force_reload=True)
    assert torch.equal(again[0][0].x, other[0].x)
    assert not torch.equal(other[0].x, wanted)
