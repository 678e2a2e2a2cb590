"""C3D (Tran et al., ICCV 2015): the clip network behind the paper's features (section 5.2.1)."""

from __future__ import annotations

import hashlib
import math
import warnings
import zipfile
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from relocal_pyg.errors import CheckpointError, UsageError, check_number
from relocal_pyg.io.tensors import read_tensors

#: Convolutions in order with their output channels, and the pool after each (kernel in t, y, x).
LAYERS: tuple[tuple[str, int, tuple[int, int, int] | None], ...] = (
    ("conv1", 64, (1, 2, 2)),
    ("conv2", 128, (2, 2, 2)),
    ("conv3a", 256, None),
    ("conv3b", 256, (2, 2, 2)),
    ("conv4a", 512, None),
    ("conv4b", 512, (2, 2, 2)),
    ("conv5a", 512, None),
    ("conv5b", 512, (2, 2, 2)),
)
CLIP_FRAMES = 16
CROP = 112
#: Frames are scaled to this height and width, then the middle ``CROP`` x ``CROP`` is taken.
FRAME_SIZE = (128, 171)
# Position of each layer in the two nn.Sequential of jfzhang95/pytorch-video-recognition.
_PLACES = (0, 3, 6, 8, 11, 13, 16, 18)
_SEQUENTIAL = {f"features.{at}": layer[0] for at, layer in zip(_PLACES, LAYERS, strict=True)}
_SEQUENTIAL |= {"classifier.0": "fc6", "classifier.3": "fc7"}
_CLASSIFIERS = ("fc7", "fc8", "classifier", "cls_head")


class C3D(nn.Module):
    """C3D up to its first or second fully connected layer, as a network and as a backbone.

    Eight 3x3x3 convolutions with ReLU and five max pools (the first in space only, the last padded
    by one in space) take 16 frames of 112 x 112 to 8,192 numbers, then fc6 (and fc7) with ReLU.
    Weights are the user's file: :meth:`load_weights`. Fresh weights are random.

    Args:
        num_features: Width of fc6 and fc7; 4,096 in the published weights.
        layer: ``"fc6"`` (the paper's features) or ``"fc7"``.
        stride: Frames from one clip to the next when used as a backbone. The features released with
            ActivityNet have a stride of 8 and are read with every second row left out, which is
            the paper's 16.
        mean: Subtracted from pixels of 0..255, one number per channel in the network's order. The
            default is the average of the Sports-1M mean clip, blue first; the whole mean clip is
            not distributed with the public weights.
        bgr: Whether the weights expect blue first, as those trained with OpenCV input do.

    Raises:
        UsageError: An argument is not one of the above.

    Shapes:
        :meth:`forward` takes float ``[B, 3, 16, 112, 112]``; calling the module with uint8
        ``[B, 16, 128, 171, 3]`` crops, subtracts the mean and forwards. Output
        ``[B, num_features]``.
    """

    clip_frames = CLIP_FRAMES
    size = FRAME_SIZE
    mean: Tensor

    def __init__(
        self,
        num_features: int = 4096,
        layer: str = "fc6",
        stride: int = CLIP_FRAMES,
        mean: tuple[float, float, float] = (90.0, 98.0, 102.0),
        bgr: bool = True,
    ) -> None:
        super().__init__()
        if layer not in ("fc6", "fc7"):
            raise UsageError(f"layer is {layer!r}, 'fc6' or 'fc7' wanted")
        for name, number in (("stride", stride), ("num_features", num_features)):
            check_number(number, name, least=1, most=1_000_000, whole=True)
        if len(mean) != 3 or not all(map(math.isfinite, mean)):
            raise UsageError(f"mean is {mean}, three numbers wanted")
        self.layer, self.dim, self.clip_stride, self.bgr = layer, num_features, stride, bgr
        channels = 3
        for name, width, _ in LAYERS:
            setattr(self, name, nn.Conv3d(channels, width, kernel_size=3, padding=1))
            channels = width
        self.fc6 = nn.Linear(8192, num_features)
        if layer == "fc7":
            self.fc7 = nn.Linear(num_features, num_features)
        self.register_buffer("mean", torch.tensor(mean).float().view(3, 1, 1, 1), persistent=False)
        self.eval()

    @property
    def name(self) -> str:
        """Layer, preprocessing and a hash of the weights: stored features are found by it."""
        digest = hashlib.sha256()
        for tensor in (self.mean, *self.state_dict().values()):
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        order = "bgr" if self.bgr else "rgb"
        return f"c3d-{self.layer}-{order}-{digest.hexdigest()[:12]}"

    def forward(self, clips: Tensor) -> Tensor:
        """Give ``[B, num_features]`` for prepared clips, float ``[B, 3, 16, 112, 112]``."""
        hidden = clips
        for name, _, pool in LAYERS:
            hidden = functional.relu(getattr(self, name)(hidden))
            if pool is not None:
                # 7 x 7 would give 3 x 3; the published fc6 has 8,192 = 512 * 4 * 4 inputs.
                padding = (0, 1, 1) if name == "conv5b" else (0, 0, 0)
                hidden = functional.max_pool3d(hidden, pool, padding=padding)
        hidden = functional.relu(self.fc6(hidden.flatten(start_dim=1)))
        return functional.relu(self.fc7(hidden)) if self.layer == "fc7" else hidden

    def __call__(self, clips: Tensor) -> Tensor:
        """Forward prepared clips; RGB uint8 ``[B, 16, 128, 171, 3]`` is prepared first."""
        if clips.dtype != torch.uint8:
            return cast(Tensor, super().__call__(clips))
        with torch.no_grad():
            return cast(Tensor, super().__call__(self.prepare(clips)))

    def prepare(self, clips: Tensor) -> Tensor:
        """Crop the middle, order the channels, subtract the mean: ``[B, 3, 16, 112, 112]``.

        Args:
            clips: RGB uint8 ``[B, 16, H, W, 3]``, H and W at least 112 (UsageError).
        """
        height, width = clips.shape[2:4]
        if min(height, width) < CROP:
            raise UsageError(f"pictures of {height} x {width}, {CROP} x {CROP} and more wanted")
        top, left = (height - CROP) // 2, (width - CROP) // 2
        middle = clips[:, :, top : top + CROP, left : left + CROP]
        middle = middle.to(self.mean.device).permute(0, 4, 1, 2, 3).float()
        return (middle.flip(1) if self.bgr else middle) - self.mean

    def load_weights(self, path: str | Path) -> None:
        """Read published weights without running any code the file may hold.

        Files of ``torch.save`` (``.pt``, ``.pth``, and the ``c3d.pickle`` of DavideA/c3d-pytorch,
        which is one) and safetensors are read. Keys may be those of DavideA/c3d-pytorch
        (``conv1.weight``), jfzhang95/pytorch-video-recognition (``features.0.weight``) or
        open-mmlab/mmaction2 (``conv1a.conv.weight``), inside ``state_dict`` and after ``module.``
        or ``backbone.`` or not. The classifier is ignored.

        Raises:
            CheckpointError: The file cannot be read safely, or a tensor is missing, unknown or of
                another shape; the tensor is named and the network is left as it was.
        """
        wanted = self.state_dict()
        found: dict[str, Tensor] = {}
        for key, tensor in _read_tensors(Path(path)).items():
            name = _canonical(key)
            if name not in wanted:
                if name.startswith(_CLASSIFIERS):
                    continue
                raise CheckpointError("is no tensor of C3D", file=path, record=key)
            shape, needed = list(tensor.shape), list(wanted[name].shape)
            if shape != needed:
                raise CheckpointError(f"has shape {shape}, {needed} wanted", file=path, record=key)
            if not torch.isfinite(tensor).all():
                raise CheckpointError("holds values that are not finite", file=path, record=key)
            found[name] = tensor
        if lost := [name for name in wanted if name not in found]:
            raise CheckpointError("is missing", file=path, record=lost[0])
        self.load_state_dict(found)


def _canonical(key: str) -> str:
    """The name of a tensor here, whichever of the known layouts it comes from."""
    for prefix in ("module.", "backbone.", "model."):
        key = key.removeprefix(prefix)
    stem, _, kind = key.rpartition(".")
    stem = _SEQUENTIAL.get(stem, stem.removesuffix(".conv"))
    stem = {"conv1a": "conv1", "conv2a": "conv2"}.get(stem, stem)
    return f"{stem}.{kind}"


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise CheckpointError("no such file", file=path)
    if path.suffix == ".safetensors":
        return read_tensors(path, "is no safetensors file")
    # torch.save stores its parts uncompressed: a zip that grows when read is a bomb.
    try:
        size = 0
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise CheckpointError("is a damaged archive", file=path) from None
    if size > 2 * path.stat().st_size + 1_000_000:
        raise CheckpointError(f"would grow to {size} bytes when read", file=path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that are then refused
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"cannot be read ({error.strerror})", file=path) from None
    except Exception:  # torch.load raises whatever the unpickler meets
        raise CheckpointError(
            "cannot be read without running code from it: it is no file of torch.save or holds "
            "more than tensors; save its state_dict as .safetensors",
            file=path,
        ) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not content:
        raise CheckpointError("holds no dictionary of tensors", file=path)
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError("is no tensor", file=path, record=str(key))
    return content
