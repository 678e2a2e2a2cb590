"""Written lists against plain arithmetic, and the recall of the released list."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from relocal_pyg.data.features import FeatureStore
from relocal_pyg.data.items import Protocol
from relocal_pyg.data.proposals import read_proposal_list
from relocal_pyg.errors import FeatureError, OutputError, ProposalError
from relocal_pyg.moments import tiou
from relocal_pyg.proposals import ActionnessClassifier, fit_actionness, propose, tag_proposals
from relocal_pyg.proposals.tag import describe


@pytest.fixture
def classifier(planted: Protocol) -> ActionnessClassifier:
    return fit_actionness(planted, steps=80)


@pytest.mark.slow
def test_list_of_a_protocol_reads_back_with_truths_and_proposals(
    planted: Protocol, classifier: ActionnessClassifier, tmp_path: Path
) -> None:
    written = propose(planted, classifier, tmp_path / "list.txt")
    records = read_proposal_list(tmp_path / "list.txt")
    items = {item.video_id: item for split in planted.splits.values() for item in split}
    assert list(records) == sorted(items) == [record.video_id for record in written]
    for video_id, record in records.items():
        # "test" comes before "train"; the list covers the whole video of 60 steps.
        assert record.truth_labels.tolist() == [1 if items[video_id].label == "test" else 2]
        np.testing.assert_allclose(record.truths[0] * 60, items[video_id].moment, atol=1e-9)
        features = planted.features.read(video_id)
        expected, _ = tag_proposals(classifier, features)
        np.testing.assert_allclose(record.moments * 60, expected, atol=1e-5)
        assert record.overlaps[:, 0].max() > 0.9


def test_descriptions_equal_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    starts, lengths = rng.integers(0, 90, 40), rng.integers(1, 30, 40)
    proposals = torch.from_numpy(np.stack([starts, starts + lengths], axis=1)).float()
    truths = [(7, 10, 30), (2, 50, 55), (7, 50, 80)]
    record = describe("v", proposals, 120, [*truths, truths[0]])
    assert record.truth_labels.tolist() == [2, 7, 7]
    for row, (start, end) in enumerate(proposals.int().tolist()):
        best, label, share = 0.0, 0, 0.0
        for number, first, last in sorted(truths):
            shared = max(0, min(end, last) - max(start, first))
            overlap = shared / (end - start + last - first - shared)
            if overlap > best:
                best, label, share = overlap, number, shared / (end - start)
        assert record.labels[row] == label
        assert record.overlaps[row].tolist() == pytest.approx([best, share])
        assert (record.moments[row] * 120).tolist() == pytest.approx([start, end])


@pytest.mark.slow
def test_list_of_a_feature_file_names_no_truths_and_leaves_out_what_is_broken(
    planted: Protocol, classifier: ActionnessClassifier, tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "f.h5", "w") as file:
        for number in range(3):
            features = planted.features.read(f"train{number}").numpy()
            file.create_dataset(f"train{number}/c3d_features", data=features)
        file["train1/c3d_features"][7, 2] = np.nan
    store = FeatureStore(tmp_path / "f.h5")
    with pytest.warns(UserWarning, match=r"left out.*train1.*step 7"):
        records = propose(store, classifier, tmp_path / "list.txt")
    store.close()
    assert [record.video_id for record in records] == ["train0", "train2"]
    assert all(len(record.truths) == 0 and len(record.moments) > 0 for record in records)
    assert all((record.labels == 0).all() and (record.overlaps == 0).all() for record in records)


@pytest.mark.slow
def test_other_features_an_empty_protocol_and_a_bad_place_are_refused(
    planted: Protocol, classifier: ActionnessClassifier, tmp_path: Path
) -> None:
    with pytest.raises(FeatureError, match="12 wide"):
        propose(planted, ActionnessClassifier(7), tmp_path / "list.txt")
    with pytest.raises(OutputError):
        propose(planted, classifier, tmp_path)
    planted.splits = {"train": (), "val": ()}
    with pytest.raises(ProposalError, match="no video"):
        propose(planted, classifier, tmp_path / "list.txt")
    assert not (tmp_path / "list.txt").exists()


@pytest.mark.slow
def test_recall_of_the_released_activitynet_list(shared_data: Path) -> None:
    folder = shared_data / "activitynet"
    records = read_proposal_list(folder / "activitynet1.2_tag_val_normalized_proposal_list.txt")
    database = json.loads((folder / "activity_net.v1-2.json").read_text())["database"]
    assert [name for name, record in records.items() if len(record.moments) == 0] == ["_xgGaxc1jNE"]
    best = []
    for video_id, record in records.items():
        video = database[video_id]
        assert video["subset"] == "validation"
        truths = torch.tensor([a["segment"] for a in video["annotations"]], dtype=torch.float64)
        found = torch.from_numpy(record.moments) * video["duration"]
        overlap = tiou(found[:, None], truths[None])
        best.append(overlap.amax(dim=0) if len(found) else torch.zeros(len(truths)).double())
    overlaps = torch.cat(best)
    assert len(overlaps) == 3582
    recall = [(overlaps > step / 100).double().mean().item() * 100 for step in range(50, 100, 5)]
    # The figures of docs/paper.md.
    expected = [87.2, 83.9, 80.4, 76.1, 71.8, 65.7, 59.8, 52.2, 40.8, 24.2]
    assert recall == pytest.approx(expected, abs=0.06)
