"""The classifier sees the training split only, weighs classes evenly, and survives the disk."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from relocal_pyg.data.items import Item, Protocol
from relocal_pyg.errors import AnnotationError, CheckpointError, FeatureError, UsageError
from relocal_pyg.io.record import write_manifest
from relocal_pyg.proposals.actionness import (
    UNKNOWN,
    ActionnessClassifier,
    actionness_labels,
    fit_actionness,
)


class TestLabels:
    def test_equal_a_step_by_step_count(self) -> None:
        rng = np.random.default_rng(0)
        items = []
        for number in range(40):
            start = int(rng.integers(0, 80))
            length = int(rng.integers(3, 30))
            first = start + int(rng.integers(0, length - 1))
            moment = (first, first + 1 + int(rng.integers(0, start + length - first)))
            items.append(
                Item(
                    f"#{number}", f"v{number % 5}", "c", (start, start + length), moment, (moment,)
                )
            )
        labels = actionness_labels(items)
        assert labels.keys() == {f"v{number}" for number in range(5)}
        for video, (first, label) in labels.items():
            mine = [item for item in items if item.video_id == video]
            assert first == min(item.context[0] for item in mine)
            assert first + len(label) == max(item.context[1] for item in mine)
            for step, value in enumerate(label.tolist(), start=first):
                known = any(item.context[0] <= step < item.context[1] for item in mine)
                action = any(a <= step < b for item in mine for a, b in item.moments)
                assert value == (1 if action else 0 if known else UNKNOWN)

    def test_actions_of_every_class_count_whatever_the_order(self) -> None:
        first = Item("a", "v", "run", (0, 8), (1, 3), ((1, 3),))
        second = Item("b", "v", "jump", (0, 8), (5, 6), ((5, 6),))
        for items in ([first, second], [second, first]):
            assert actionness_labels(items)["v"][1].tolist() == [0, 1, 1, 0, 0, 1, 0, 0]


class TestNetwork:
    def test_alone_a_step_does_not_see_its_neighbours(self) -> None:
        model = ActionnessClassifier(5).eval()
        features = torch.randn(9, 5)
        whole = model.actionness(features)
        assert whole.shape == (9, 2)
        one_by_one = torch.cat([model.actionness(step[None]) for step in features])
        torch.testing.assert_close(whole, one_by_one)

    def test_kernel_of_three_equals_a_plain_network_on_stacked_neighbours(self) -> None:
        model = ActionnessClassifier(4, hidden_channels=6, kernel_size=3).eval()
        features = torch.randn(7, 4)
        padded = torch.cat([torch.zeros(1, 4), features, torch.zeros(1, 4)])
        weight, bias = model.hidden.weight, model.hidden.bias
        assert bias is not None
        rows = [
            sum(padded[t + k] @ weight[:, :, k].T for k in range(3)) + bias
            for t in range(len(features))
        ]
        expected = torch.stack([model.out(row.relu()) for row in rows])
        torch.testing.assert_close(model(features), expected)

    def test_standardize_makes_the_scale_of_the_features_irrelevant(self) -> None:
        features = torch.randn(50, 4) * torch.tensor([1.0, 100.0, 0.01, 1.0]) + 7
        features[:, 3] = 2.5
        model = ActionnessClassifier(4)
        model.standardize(features)
        inner = (features - model.mean) / model.scale
        torch.testing.assert_close(inner[:, :3].mean(dim=0), torch.zeros(3), atol=2e-4, rtol=0)
        torch.testing.assert_close(inner[:, :3].std(dim=0, correction=0), torch.ones(3))
        assert inner[:, 3].tolist() == [0.0] * 50
        assert model.scale[3] == 1

    def test_other_features_are_refused(self) -> None:
        with pytest.raises(FeatureError, match=r"\[n, 5\]"):
            ActionnessClassifier(5).actionness(torch.zeros(3, 4))
        with pytest.raises(FeatureError):
            ActionnessClassifier(5).actionness(torch.zeros(5))
        with pytest.raises(UsageError, match="odd"):
            ActionnessClassifier(5, kernel_size=2)


class TestFit:
    @pytest.mark.slow
    def test_finds_actions_of_a_class_never_seen(self, planted: Protocol) -> None:
        model = fit_actionness(planted, steps=150, seed=1)
        right = []
        for item in planted.splits["test"]:
            truth = torch.zeros(item.num_steps, dtype=torch.bool)
            for start, end in item.truths:
                truth[start:end] = True
            found = model.actionness(planted.reference(item)).argmax(dim=1) == 1
            right.append(found == truth)
        assert torch.cat(right).float().mean() > 0.95

    def test_reads_nothing_but_training_contexts(self, planted: Protocol) -> None:
        fit_actionness(planted, steps=3)
        asked = planted.features.asked  # type: ignore[attr-defined]
        assert {video[:5] for video, _, _ in asked} == {"train"}
        assert {(start, end) for _, start, end in asked} == {(5, 55)}

    def test_same_seed_same_weights_and_the_global_generator_is_left_alone(
        self, planted: Protocol
    ) -> None:
        before = torch.get_rng_state()
        first, again, other = (fit_actionness(planted, steps=4, seed=s) for s in (3, 3, 4))
        assert torch.equal(torch.get_rng_state(), before)
        for name, value in first.state_dict().items():
            assert torch.equal(value, again.state_dict()[name])
        assert not torch.equal(first.out.weight, other.out.weight)
        assert not first.training

    @pytest.mark.slow
    def test_background_and_action_weigh_the_same(self, planted: Protocol) -> None:
        # Features that say nothing: the best answer is a half each, though a fifth is action.
        features = planted.features
        features.videos = {v: torch.ones(60, 12) for v in features.videos}  # type: ignore[attr-defined]
        model = fit_actionness(planted, steps=300, videos_per_step=12)
        assert model.actionness(torch.ones(1, 12)).softmax(dim=1)[0, 1].item() == pytest.approx(
            0.5, abs=0.01
        )

    @pytest.mark.slow
    def test_steps_between_contexts_teach_nothing(self, planted: Protocol) -> None:
        # Two contexts of one video; the steps between them look like action and are unknown.
        items = []
        for item in planted.splits["train"]:
            for number, context in enumerate(((0, 12), (48, 60))):
                moment = (context[0] + 2, context[0] + 6)
                name = f"{item.item_id}{number}"
                items.append(Item(name, item.video_id, "c", context, moment, (moment,)))
                planted.features.videos[item.video_id][:] = 0  # type: ignore[attr-defined]
        for item in items:
            video = planted.features.videos[item.video_id]  # type: ignore[attr-defined]
            video[12:48] = 1
            video[slice(*item.moment), 0] = 1
        split = dataclasses.replace(planted, splits={"train": tuple(items)})
        model = fit_actionness(split, steps=200, weight_decay=0)
        marked = torch.zeros(1, 12)
        marked[0, 0] = 1
        assert model.actionness(marked).softmax(dim=1)[0, 1] > 0.95
        assert model.actionness(torch.zeros(1, 12)).softmax(dim=1)[0, 1] < 0.05

    @pytest.mark.parametrize(("moment", "missing"), [((5, 55), "background"), (None, "action")])
    def test_one_kind_of_step_is_not_enough(
        self, planted: Protocol, moment: tuple[int, int] | None, missing: str
    ) -> None:
        items = tuple(
            dataclasses.replace(item, moments=(moment,) if moment else ())
            for item in planted.splits["train"]
        )
        with pytest.raises(AnnotationError, match=missing):
            fit_actionness(dataclasses.replace(planted, splits={"train": items}), steps=1)

    def test_an_empty_training_split_says_so(self, planted: Protocol) -> None:
        with pytest.raises(AnnotationError, match="training split"):
            fit_actionness(dataclasses.replace(planted, splits={"train": ()}), steps=1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"steps": 2.5},
        {"videos_per_step": 0},
        {"learning_rate": float("nan")},
        {"weight_decay": -1},
        {"hidden_channels": 0},
        {"kernel_size": "3"},
    ],
)
def test_what_is_no_setting_is_refused(planted: Protocol, wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        fit_actionness(planted, **{"steps": 1, **wrong})


FITS = {"in_channels": 6, "hidden_channels": 8, "kernel_size": 1}


class TestDisk:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        model = ActionnessClassifier(6, hidden_channels=8, kernel_size=3)
        model.standardize(torch.randn(20, 6))
        model.save(tmp_path / "actionness")
        return tmp_path / "actionness"

    def change(self, folder: Path, **changes: object) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))
        write_manifest(folder, "actionness")

    def test_round_trip_gives_the_same_logits(self, tmp_path: Path) -> None:
        model = ActionnessClassifier(6, hidden_channels=8, kernel_size=3)
        model.standardize(torch.randn(20, 6) * 3)
        model.save(tmp_path / "a")
        features = torch.randn(11, 6)
        twin = ActionnessClassifier.load(tmp_path / "a")
        assert torch.equal(twin.actionness(features), model.actionness(features))
        assert not twin.training
        model.save(tmp_path / "a")  # over itself

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match="config.json is missing"):
            ActionnessClassifier.load(tmp_path)

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "manifest.json"])
    def test_a_flipped_bit_is_noticed(self, folder: Path, name: str) -> None:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(bytes(data))
        with pytest.raises(CheckpointError):
            ActionnessClassifier.load(folder)

    def test_a_file_that_the_manifest_does_not_list_is_not_read(self, folder: Path) -> None:
        manifest = folder / "manifest.json"
        files = json.loads(manifest.read_text())["files"]
        del files["model.safetensors"]
        manifest.write_text(json.dumps({"files": files}, indent=1) + "\n")
        with pytest.raises(CheckpointError, match="not listed"):
            ActionnessClassifier.load(folder)

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"format": 2}, "newer"),
            ({"format": "x"}, "configuration"),
            ({"model": "SST"}, "SST: is not an actionness classifier"),
            ({"config": {"in_channels": 6}}, "do not fit"),
            ({"config": {**FITS, "kernel_size": 4}}, "odd"),
            ({"config": {**FITS, "kernel_size": True}}, "fit"),
            ({"config": None}, "configuration"),
            ({"config": FITS}, "hidden.weight"),
            # Terabytes are not asked for before the file is seen to hold them.
            ({"config": {**FITS, "in_channels": 10**6, "hidden_channels": 10**6}}, "has shape"),
        ],
    )
    def test_settings_that_do_not_fit_are_named(
        self, folder: Path, changes: dict[str, object], words: str
    ) -> None:
        self.change(folder, **changes)
        with pytest.raises(CheckpointError, match=words):
            ActionnessClassifier.load(folder)

    def test_weights_that_do_not_fit_are_named(self, folder: Path) -> None:
        file = folder / "model.safetensors"
        weights = load_file(file)
        save_file({**weights, "more": torch.zeros(1)}, file)
        write_manifest(folder, "actionness")
        with pytest.raises(CheckpointError, match="more"):
            ActionnessClassifier.load(folder)
        del weights["out.bias"]
        save_file(weights, file)
        write_manifest(folder, "actionness")
        with pytest.raises(CheckpointError, match="out.bias"):
            ActionnessClassifier.load(folder)
        file.write_bytes(b"no tensors")
        write_manifest(folder, "actionness")
        with pytest.raises(CheckpointError, match="cannot be read"):
            ActionnessClassifier.load(folder)
