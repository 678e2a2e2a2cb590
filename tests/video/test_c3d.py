from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from relocal_pyg.errors import CheckpointError, UsageError
from relocal_pyg.video.backbones import Backbone
from relocal_pyg.video.c3d import C3D
from relocal_pyg.video.extract import extract_video

CONVOLUTIONS = ["conv1", "conv2", "conv3a", "conv3b", "conv4a", "conv4b", "conv5a", "conv5b"]
WIDTHS = [64, 128, 256, 256, 512, 512, 512, 512]


@pytest.fixture(scope="module")
def small():
    """The whole network with a narrow fc6, to keep files small."""
    torch.manual_seed(1)
    return C3D(num_features=8)


@pytest.fixture(scope="module")
def tensors(small):
    generator = torch.Generator().manual_seed(2)
    return {
        key: torch.randn(value.shape, generator=generator) * 0.02
        for key, value in small.state_dict().items()
    }


@pytest.fixture(scope="module")
def loaded():
    return C3D(num_features=8)


@pytest.fixture
def fresh(loaded):
    """A network of which every number is 7."""
    with torch.no_grad():
        for parameter in loaded.parameters():
            parameter.fill_(7)
    return loaded


@pytest.fixture
def thin():
    """Convolutions of one pixel each, 27 times as fast, where their numbers do not matter."""

    def make(**options):
        network = C3D(num_features=8, **options)
        for name in CONVOLUTIONS:
            given = getattr(network, name)
            setattr(network, name, nn.Conv3d(given.in_channels, given.out_channels, 1))
        return network.eval()

    return make


@pytest.fixture
def constants(loaded):
    """Tensors of one number each: small in a file of torch.save."""
    shapes = {key: value.shape for key, value in loaded.state_dict().items()}
    return {key: torch.tensor(i / 8).expand(s) for i, (key, s) in enumerate(shapes.items())}


def test_shapes_of_every_layer():
    # Shapes without numbers: nothing is computed on this device.
    with torch.device("meta"):
        network = C3D()
    seen: dict[str, tuple[int, ...]] = {}
    for name, module in network.named_children():
        module.register_forward_hook(
            lambda _, args, output, name=name: seen.update({name: (*args[0].shape, *output.shape)})
        )
    features = network(torch.zeros(1, 3, 16, 112, 112, device="meta"))
    # Time, height and width as in Figure 3 of the C3D paper.
    sides = [(16, 112), (16, 56), (8, 28), (8, 28), (4, 14), (4, 14), (2, 7), (2, 7)]
    before = 3
    for name, width, (length, side) in zip(CONVOLUTIONS, WIDTHS, sides, strict=True):
        assert seen[name] == (1, before, length, side, side, 1, width, length, side, side), name
        before = width
    assert seen["fc6"] == (1, 8192, 1, 4096)
    assert features.shape == (1, 4096)
    # Convolutions of 3 x 3 x 3 with biases, and fc6.
    pairs = zip([3, *WIDTHS], WIDTHS, strict=False)
    expected = sum(27 * i * o + o for i, o in pairs) + 8192 * 4096 + 4096
    assert sum(p.numel() for p in network.parameters()) == expected


@pytest.mark.slow
def test_forward_equals_the_layers_written_out(small, tensors):
    small.load_state_dict(tensors)
    clip = torch.randn(1, 3, 16, 112, 112)
    x = clip
    pools = {"conv1": (1, 2, 2), "conv2": 2, "conv3b": 2, "conv4b": 2, "conv5b": 2}
    for name in CONVOLUTIONS:
        x = torch.conv3d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], padding=1).clamp(0)
        if name == "conv5b":
            x = functional.pad(x, (1, 1, 1, 1))  # zeros, as nothing after a ReLU is below
        if name in pools:
            x = functional.max_pool3d(x, pools[name])
    expected = (x.flatten(1) @ tensors["fc6.weight"].T + tensors["fc6.bias"]).clamp(0)
    with torch.no_grad():
        torch.testing.assert_close(small(clip), expected, rtol=1e-4, atol=1e-5)
    assert expected.abs().max() > 0


def davide(tensors):
    extra = {"fc7.weight": torch.zeros(2, 8), "fc7.bias": torch.zeros(2)}
    return {**tensors, **extra, "fc8.weight": torch.zeros(3, 2), "fc8.bias": torch.zeros(3)}


def sequential(tensors):
    positions = dict(zip(CONVOLUTIONS, [0, 3, 6, 8, 11, 13, 16, 18], strict=True))
    renamed = {}
    for key, value in tensors.items():
        layer, kind = key.split(".")
        name = "classifier.0" if layer == "fc6" else f"features.{positions[layer]}"
        renamed[f"{name}.{kind}"] = value
    return {**renamed, "classifier.3.weight": torch.zeros(2, 8)}


def mmaction(tensors):
    renamed = {}
    for key, value in tensors.items():
        layer, kind = key.split(".")
        layer = {"conv1": "conv1a", "conv2": "conv2a"}.get(layer, layer)
        middle = ".conv" if layer.startswith("conv") else ""
        renamed[f"backbone.{layer}{middle}.{kind}"] = value
    return {"meta": {"epoch": 3}, "state_dict": {**renamed, "cls_head.fc_cls.bias": torch.ones(1)}}


def parallel(tensors):
    return {f"module.{key}": value for key, value in tensors.items()}


#: How the file is called and written has nothing to do with the names of the tensors in it.
LAYOUTS = [
    (layout, name)
    for layout in (dict, davide, sequential, mmaction, parallel)
    for name in ("w.pt", "w.pth", "c3d.pickle")
    if layout is dict or name == "w.pt" or os.environ.get("RELOCAL_FAULTS") == "full"
]


@pytest.mark.slow
@pytest.mark.parametrize(("layout", "name"), LAYOUTS)
def test_published_layouts_load(fresh, constants, tmp_path, layout, name):
    torch.save(
        layout(constants), tmp_path / name, _use_new_zipfile_serialization=name != "c3d.pickle"
    )
    fresh.load_weights(tmp_path / name)
    for key, value in fresh.state_dict().items():
        assert torch.equal(value, constants[key]), key


@pytest.mark.slow
def test_safetensors_load(fresh, tensors, tmp_path):
    save_file(davide(tensors), tmp_path / "w.safetensors")
    fresh.load_weights(str(tmp_path / "w.safetensors"))
    assert torch.equal(fresh.state_dict()["fc6.weight"], tensors["fc6.weight"])


@pytest.mark.parametrize(
    ("change", "record", "words"),
    [
        (lambda t: t.pop("conv3b.bias"), "conv3b.bias", "missing"),
        (lambda t: t.update({"conv9.weight": torch.ones(1)}), "conv9.weight", "no tensor of C3D"),
        (lambda t: t.update({"fc6.weight": torch.ones(8, 9)}), "fc6.weight", r"\[8, 8192\]"),
        (
            lambda t: t.update({"conv1.bias": torch.full((64,), torch.inf)}),
            "conv1.bias",
            "not finite",
        ),
    ],
)
def test_a_wrong_tensor_is_named(fresh, constants, tmp_path, change, record, words):
    change(constants)
    path = tmp_path / "w.pt"
    torch.save(constants, path)
    with pytest.raises(CheckpointError, match=words) as caught:
        fresh.load_weights(path)
    assert (caught.value.file, caught.value.record) == (str(path), record)
    assert all((value == 7).all() for value in fresh.state_dict().values())


def test_a_wrong_tensor_of_safetensors_is_named(fresh, tmp_path):
    path = tmp_path / "w.safetensors"
    save_file({"conv1.bias": torch.ones(64), "conv1.weight": torch.ones(64, 3)}, path)
    with pytest.raises(CheckpointError, match=r"\[64, 3, 3, 3, 3\] wanted") as caught:
        fresh.load_weights(path)
    assert (caught.value.file, caught.value.record) == (str(path), "conv1.weight")


class Payload:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (self.marker,))


@pytest.mark.parametrize("write", [torch.save, lambda x, p: p.write_bytes(pickle.dumps(x))])
@pytest.mark.parametrize("name", ["w.pt", "w.pickle", "w.pth"])
def test_code_in_a_file_is_not_run(fresh, tmp_path, monkeypatch, write, name):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker, path = tmp_path / "ran", tmp_path / name
    write({"conv1.weight": Payload(marker)}, path)
    with pytest.raises(CheckpointError, match="without running code|save its state_dict"):
        fresh.load_weights(path)
    assert not marker.exists()


def test_other_files_are_refused(fresh, tmp_path):
    (tmp_path / "w.pickle").write_bytes(pickle.dumps({"conv1.weight": np.ones(3)}))
    with pytest.raises(CheckpointError, match="safetensors"):
        fresh.load_weights(tmp_path / "w.pickle")
    for name in ("w.pt", "w.safetensors"):
        for data in (b"", b"text", b"\x80" * 500):
            (tmp_path / name).write_bytes(data)
            with pytest.raises(CheckpointError):
                fresh.load_weights(tmp_path / name)
    with pytest.raises(CheckpointError, match="no such file"):
        fresh.load_weights(tmp_path / "absent.pt")
    for content in ([torch.ones(2)], {}, {"conv1.weight": 3}, {3: torch.ones(1)}):
        torch.save(content, tmp_path / "w.pt")
        with pytest.raises(CheckpointError):
            fresh.load_weights(tmp_path / "w.pt")


def test_an_archive_that_inflates_is_refused(fresh, tmp_path):
    torch.save({"conv1.weight": torch.zeros(5_000_000)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in plain.namelist():
            bomb.writestr(entry, plain.read(entry))
    assert (tmp_path / "bomb.pt").stat().st_size < 100_000
    with pytest.raises(CheckpointError, match="would grow"):
        fresh.load_weights(tmp_path / "bomb.pt")
    data = (tmp_path / "bomb.pt").read_bytes()
    (tmp_path / "bomb.pt").write_bytes(data.replace(b"PK\x01\x02", b"PK\x09\x09"))
    with pytest.raises(CheckpointError, match="damaged archive"):
        fresh.load_weights(tmp_path / "bomb.pt")


@pytest.mark.slow
def test_fc7(thin, constants, tmp_path):
    network = thin(layer="fc7")
    last = {"fc7.weight": torch.randn(8, 8), "fc7.bias": torch.randn(8)}
    network.load_state_dict(last, strict=False)
    before: list[torch.Tensor] = []
    network.fc6.register_forward_hook(lambda _, args, output: before.append(output.clone()))
    with torch.no_grad():
        found = network(torch.randn(1, 3, 16, 112, 112))
    expected = (before[0].clamp(0) @ last["fc7.weight"].T + last["fc7.bias"]).clamp(0)
    torch.testing.assert_close(found, expected)
    assert expected.abs().max() > 0
    network = C3D(num_features=8, layer="fc7")
    torch.save({**constants, **last}, tmp_path / "w.pt")
    network.load_weights(tmp_path / "w.pt")
    assert torch.equal(network.fc7.weight, last["fc7.weight"])
    torch.save(constants, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="missing"):
        network.load_weights(tmp_path / "w.pt")


@pytest.mark.parametrize(
    "option",
    [{"layer": "fc8"}, {"stride": 0}, {"num_features": 0}, {"num_features": 2.5}, {"mean": (1, 2)}]
    + [{"mean": (1, 2, float("nan"))}],
)
def test_an_argument_that_is_none_is_named(option):
    with pytest.raises(UsageError, match=f"{next(iter(option))} is"):
        C3D(**option)


@pytest.mark.parametrize("bgr", [True, False])
def test_preparation(bgr):
    network = C3D(num_features=1, mean=(1.0, 2.0, 3.0), bgr=bgr)
    clips = torch.randint(0, 256, (2, 16, 128, 171, 3), dtype=torch.uint8)
    prepared = network.prepare(clips)
    assert prepared.shape == (2, 3, 16, 112, 112)
    with pytest.raises(UsageError, match="111 x 171"):
        network.prepare(clips[:, :, :111])
    for _ in range(20):
        b, t, y, x = (int(torch.randint(0, n, (1,))) for n in (2, 16, 112, 112))
        pixel = clips[b, t, y + 8, x + 29].tolist()
        pixel = pixel[::-1] if bgr else pixel
        expected = [value - mean for value, mean in zip(pixel, (1, 2, 3), strict=True)]
        assert prepared[b, :, t, y, x].tolist() == expected


@pytest.mark.slow
def test_name_follows_weights_and_preparation(fresh):
    names = [fresh.name, fresh.name]
    assert names[0] == names[1]
    assert names[0].startswith("c3d-fc6-bgr-")
    fresh.bgr = False
    names.append(fresh.name)
    fresh.mean += 1
    names.append(fresh.name)
    with torch.no_grad():
        fresh.conv1.bias[0] += 1
    names.append(fresh.name)
    fresh.bgr = True
    fresh.mean -= 1
    assert len(set(names)) == 4


@pytest.mark.slow
def test_as_a_backbone(thin, tmp_path, write_video):
    pytest.importorskip("av")
    noise = np.random.default_rng(0).integers(0, 255, (14, 48, 64, 3), dtype=np.uint8)
    path = write_video(tmp_path / "a.mp4", list(noise))
    network = thin(stride=8)
    assert isinstance(network, Backbone)
    video = extract_video(path, network)
    # Fewer than 16 frames are filled up to one clip.
    assert video.features.shape == (1, 8)
    assert video.seconds_per_step == pytest.approx(8 / 25)
    assert not video.features.requires_grad
    assert video.settings["backbone"] == network.name
