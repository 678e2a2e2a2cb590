"""Actionness: for each step of a video, whether any action happens there, learned from features.

The original of Zhao et al. (ICCV 2017) runs a convolutional network on frames; this one is small.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from relocal_pyg import __version__
from relocal_pyg.data.items import Item, Protocol
from relocal_pyg.errors import (
    AnnotationError,
    CheckpointError,
    FeatureError,
    UsageError,
    check_number,
)
from relocal_pyg.io.record import read_config
from relocal_pyg.io.seeding import derive_seed, generator
from relocal_pyg.io.tensors import check_tensors, read_tensors, save_tensors
from relocal_pyg.io.write import replace_folder, write_json

#: Raised when the layout on disk changes; a newer one is refused.
FORMAT = 1

#: Label of a step that no item's context covers: nothing is known about it.
UNKNOWN = -1


class ActionnessClassifier(nn.Module):
    """Per-step network F - hidden - 2 with one ReLU; classes are background and action.

    Args:
        in_channels: Width F of a feature step.
        hidden_channels: Width of the hidden layer.
        kernel_size: 1 looks at each step alone; 3 also at its neighbours.

    Shapes:
        Input ``[n, F]``, output logits ``[n, 2]`` in the order (background, action).
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, in_channels: int, hidden_channels: int = 256, kernel_size: int = 1) -> None:
        super().__init__()
        self.in_channels, self.hidden_channels = in_channels, hidden_channels
        self.kernel_size = kernel_size
        for name, value in self.config().items():
            check_number(value, name, least=1, whole=True)
        if kernel_size % 2 == 0:
            raise UsageError(f"kernel_size is {kernel_size}: an odd number wanted")
        self.register_buffer("mean", torch.zeros(in_channels))
        self.register_buffer("scale", torch.ones(in_channels))
        self.hidden = nn.Conv1d(in_channels, hidden_channels, kernel_size, padding="same")
        self.out = nn.Linear(hidden_channels, 2)

    def config(self) -> dict[str, int]:
        """Constructor arguments."""
        return {
            "in_channels": self.in_channels,
            "hidden_channels": self.hidden_channels,
            "kernel_size": self.kernel_size,
        }

    def standardize(self, features: Tensor) -> None:
        """Take mean and spread of the channels from training steps ``[n, F]``."""
        self.mean.copy_(features.mean(dim=0))
        spread = features.std(dim=0, correction=0)
        # A channel that is constant in training must not be blown up where it is not.
        self.scale.copy_(torch.where(spread > 1e-6, spread, 1.0))

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``[n, 2]`` of the steps ``[n, F]`` of one video."""
        channels = ((features - self.mean) / self.scale).T[None]
        return self.out(torch.relu(self.hidden(channels))[0].T)

    @torch.inference_mode()
    def actionness(self, features: Tensor) -> Tensor:
        """Logits ``[n, 2]`` for :func:`relocal_pyg.proposals.group`, without gradients."""
        if features.ndim != 2 or features.shape[1] != self.in_channels or len(features) == 0:
            raise FeatureError(
                f"shape {tuple(features.shape)}, the actionness classifier wants "
                f"[n, {self.in_channels}]: train it on the same features"
            )
        return self(features.to(self.mean))

    def save(self, folder: str | Path) -> None:
        """Write ``model.safetensors`` and ``config.json`` into a folder, all or nothing."""
        config = {"format": FORMAT, "version": __version__, "model": type(self).__name__}
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        with replace_folder(folder, "actionness") as temporary:
            save_tensors(weights, temporary / "model.safetensors")
            write_json(temporary / "config.json", {**config, "config": self.config()})

    @classmethod
    def load(cls, folder: str | Path) -> ActionnessClassifier:
        """Read a classifier that :meth:`save` wrote.

        Raises:
            CheckpointError: Nothing there, a damaged file, a newer format, another model, or a
                tensor missing, extra or of another shape (it is named).
        """
        folder = Path(folder)
        file = folder / "config.json"
        content = read_config(folder, FORMAT, "model.safetensors")
        kind, settings = content["model"], content["config"]
        if kind != cls.__name__:
            raise CheckpointError("is not an actionness classifier", file=file, record=kind)
        try:
            with torch.device("meta"):  # no memory before the weights are seen to fit
                model = cls(**settings)
        except (UsageError, RuntimeError, TypeError) as error:
            raise CheckpointError(f"settings do not fit: {error}", file=file) from None
        if model.config() != settings:
            raise CheckpointError("settings do not fit", file=file, record="config")
        file = folder / "model.safetensors"
        weights = read_tensors(file)
        check_tensors(weights, model.state_dict(), file)
        model.to_empty(device="cpu").load_state_dict(weights)
        return model.eval()


def actionness_labels(items: Sequence[Item]) -> dict[str, tuple[int, Tensor]]:
    """What the annotations say about each step of each video.

    Returns:
        By video, the first step covered and int64 labels from there on: 1 inside an action of any
        class, 0 inside a context and outside every action, :data:`UNKNOWN` between contexts.

    Example:
        >>> item = Item("v#0", "v", "jump", (2, 7), (3, 5), ((3, 5),))
        >>> [(first, label.tolist()) for first, label in actionness_labels([item]).values()]
        [(2, [0, 1, 1, 0, 0])]
    """
    by_video: dict[str, list[Item]] = {}
    for item in sorted(items):
        by_video.setdefault(item.video_id, []).append(item)
    labels = {}
    for video_id, mine in by_video.items():
        first = min(item.context[0] for item in mine)
        label = torch.full((max(item.context[1] for item in mine) - first,), UNKNOWN)
        for item in mine:
            label[item.context[0] - first : item.context[1] - first] = 0
        for start, end in (moment for item in mine for moment in item.moments):
            label[start - first : end - first] = 1
        labels[video_id] = (first, label)
    return labels


def fit_actionness(
    protocol: Protocol,
    *,
    steps: int = 500,
    seed: int = 0,
    videos_per_step: int = 8,
    learning_rate: float = 1e-3,
    weight_decay: float = 1e-4,
    hidden_channels: int = 256,
    kernel_size: int = 1,
    show_progress: bool = False,
) -> ActionnessClassifier:
    """Train the classifier on the ``"train"`` split alone.

    Cross entropy, in which background and action weigh the same in total. The labels are those of
    the training classes: where a training video also shows an action of another class, that stretch
    counts as background, because nothing of the other splits may be looked at.

    Args:
        protocol: Its ``"train"`` items and its features are used.
        steps: Optimiser steps.
        seed: Names every draw: the same seed gives the same weights on the same machine.
        videos_per_step: Videos in a batch; all their known steps are used.
        learning_rate: Adam's.
        weight_decay: Adam's coupled L2 term.
        hidden_channels: See :class:`ActionnessClassifier`, also ``kernel_size``.
        kernel_size: Odd.
        show_progress: Show a progress bar.

    Returns:
        The classifier in evaluation mode.

    Raises:
        AnnotationError: The contexts hold only action, or none.
    """
    for name, count in (("steps", steps), ("videos_per_step", videos_per_step)):
        check_number(count, name, least=1, whole=True)
    check_number(learning_rate, "learning_rate", above=0)
    check_number(weight_decay, "weight_decay", least=0)
    labels = actionness_labels(protocol.splits["train"])
    every = torch.cat([label for _, label in labels.values()] or [torch.empty(0)]).long()
    counts = torch.bincount(every[every != UNKNOWN], minlength=2)
    if (counts == 0).any():
        missing = "background" if counts[0] == 0 else "action"
        raise AnnotationError(f"actionness cannot be learned: the training split has no {missing}")
    loss_of = nn.CrossEntropyLoss(weight=counts.sum() / (2 * counts), ignore_index=UNKNOWN)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "actionness"))
        model = ActionnessClassifier(protocol.features.dim, hidden_channels, kernel_size)
    videos = list(labels)
    sample = _draw(videos, 64, seed, "scale")
    model.standardize(torch.cat([_read(protocol, video, labels) for video in sample]))
    adam = torch.optim.Adam(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    for step in tqdm(range(steps), desc="Actionness", disable=not show_progress):
        batch = _draw(videos, videos_per_step, seed, step)
        logits = torch.cat([model(_read(protocol, video, labels)) for video in batch])
        loss = loss_of(logits, torch.cat([labels[video][1] for video in batch]))
        adam.zero_grad()
        loss.backward()
        adam.step()
    return model.eval()


def _read(protocol: Protocol, video: str, labels: Mapping[str, tuple[int, Tensor]]) -> Tensor:
    first, label = labels[video]
    return protocol.features.read(video, first, first + len(label))


def _draw(videos: Sequence[str], count: int, seed: int, key: object) -> list[str]:
    rng = generator(seed, "actionness", key)
    return [videos[i] for i in rng.choice(len(videos), min(count, len(videos)), replace=False)]
