"""The one interface of every model: rank the proposals of a reference for a query."""

from __future__ import annotations

import abc
import contextlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, cast

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

import relocal_pyg
from relocal_pyg import __version__
from relocal_pyg.data.items import Protocol
from relocal_pyg.data.proposals import default_proposals
from relocal_pyg.errors import TOO_LARGE, FeatureError, ProposalError, RelocalError, check_number
from relocal_pyg.io.tensors import save_tensors
from relocal_pyg.io.write import replace_folder
from relocal_pyg.models.network_config import check_settings
from relocal_pyg.models.similarity import BLOCK, Rows
from relocal_pyg.moments import Moment, clip_moments, nms, to_tensor

#: Format of a checkpoint, raised when its layout changes; a newer one is refused.
FORMAT = 3

#: From answers ``[A, 2]`` in steps and their scores ``[A]``, best first, to the probability of each
#: being right ``[A]``, and that of the reference holding the action at all.
Probabilities = Callable[[Tensor, Tensor], tuple[Tensor, float]]


@dataclass(frozen=True)
class Ranking:
    """Answers for one query and one reference, best first, where the model computed them.

    Attributes:
        moments: ``[M, 2]`` in steps of the reference, after refinement.
        scores: ``[M]``, falling.
        proposals: ``[M, 2]`` before refinement: what each moment was made of, or None where the
            model refines nothing.
        probabilities: Gives answers their probabilities; None where the model is not calibrated
            (:class:`relocal_pyg.models.calibrated.Calibrated`).
    """

    moments: Tensor
    scores: Tensor
    proposals: Tensor | None = None
    probabilities: Probabilities | None = None

    @classmethod
    def sort(cls, moments: Tensor, scores: Tensor, proposals: Tensor | None = None) -> Ranking:
        """Order by falling score; ties keep their order."""
        order = torch.argsort(scores, descending=True, stable=True)
        before = None if proposals is None else proposals[order]
        return cls(moments[order], scores[order], before)

    @property
    def origins(self) -> Tensor:
        """``[M, 2]``, what each moment was made of: itself where nothing was refined."""
        return self.moments if self.proposals is None else self.proposals

    def scores_of(self, windows: Tensor) -> Tensor:
        """Scores ``[W]`` of windows ``[W, 2]`` that were ranked, in their order.

        Each gets the best of what was made of it; one that was passed over the worst of all.
        """
        known, which = torch.unique(torch.cat([windows, self.origins]), dim=0, return_inverse=True)
        best = self.scores.new_full((len(known),), -torch.inf)
        best.scatter_reduce_(0, which[len(windows) :], self.scores, "amax")
        found = best[which[: len(windows)]]
        return torch.where(found.isinf(), self.scores.min(), found)

    def cpu(self) -> Ranking:
        """The same in main memory."""
        before = None if self.proposals is None else self.proposals.cpu()
        return replace(self, moments=self.moments.cpu(), scores=self.scores.cpu(), proposals=before)

    def best(
        self,
        num_steps: int,
        top_k: int = 5,
        seconds_per_step: float = 1.0,
        nms_threshold: float = 0.5,
    ) -> list[Moment]:
        """The answers that are shown, at most ``top_k``: inside the video, and no two of one place.

        Args:
            num_steps: Steps of the reference.
            top_k: How many moments at most.
            seconds_per_step: Duration of one step of the reference: moments are in seconds.
            nms_threshold: Of two answers with a larger tIoU only the better is given.
        """
        own = self.cpu()
        moments, scores = clip_moments(own.moments.double(), num_steps), own.scores.double()
        real = (moments[:, 0] < moments[:, 1]).nonzero().flatten()  # some lie past an end
        kept = real[nms(moments[real], scores[real], nms_threshold, limit=top_k)]
        moments, scores = moments[kept], scores[kept]
        before: list[list[float]] | list[None] = [None] * len(kept)
        if own.proposals is not None:
            before = (own.proposals[kept].double() * seconds_per_step).tolist()
        found = [
            Moment(start, end, score, None if proposal is None else (proposal[0], proposal[1]))
            for (start, end), score, proposal in zip(
                (moments * seconds_per_step).tolist(), scores.tolist(), before, strict=True
            )
        ]
        if self.probabilities is None or not found:
            return found
        probability, presence = self.probabilities(moments, scores)
        return [
            replace(moment, probability=value, presence=presence)
            for moment, value in zip(found, probability.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class Surroundings:
    """What is known beside a query and a reference; a model may ignore any of it.

    Attributes:
        query_video: Features ``[v, F]`` of the whole video that the query was cut from.
        seconds_per_step: Duration of one step.
        background: Mean row ``[F]`` of a library that the videos belong to.
    """

    query_video: Any = None
    seconds_per_step: float | None = None
    background: Tensor | None = None


#: Largest score that its tanh is undone for: the last float32 below 1.
SATURATED = 1 - 2**-24


class Relocalizer(abc.ABC):
    """A system that finds the moment of a reference that means the same as a query.

    A subclass answers in :meth:`_rank`, where everything is on its device already. It keeps
    ``self._config = arguments(locals())`` first of all in its constructor, where that has
    arguments, so that it can be rebuilt; or it says :meth:`config` itself.

    Attributes:
        title: The name shown in tables.
        trainable: Whether :meth:`TrainableRelocalizer.fit` exists and has to be called.
        reconstructed: Whether the system was rebuilt without its source.
        by_blocks: Whether it takes rows as they are, moves a block when it looks at it, and never
            holds a whole video.
        in_channels: Width F of the features that it takes; None for any.
        max_windows: About how many windows it is given where there are no proposals.
        max_videos: How many videos of an index it is given in a search; None for any number.
        ends_in_tanh: Whether its scores went through a last tanh that :meth:`raw_scores` undoes.
    """

    title: str
    trainable: ClassVar[bool] = False
    reconstructed: ClassVar[bool] = False
    by_blocks: ClassVar[bool] = False
    max_windows: ClassVar[int] = 4000
    max_videos: ClassVar[int | None] = None
    ends_in_tanh: ClassVar[bool] = False
    in_channels: int | None = None
    _config: Mapping[str, Any] = MappingProxyType({})

    @property
    def rounds(self) -> Sequence[Sequence[float]]:
        """How far :meth:`rank` moves the ends of the best answers, as shares of a moment's length.

        Round after round, to look at finer windows; :meth:`rank_videos` does not.
        """
        return ()

    @property
    def device(self) -> torch.device | None:
        """Where it computes; None for wherever the query is."""
        return None

    @property
    def dtype(self) -> torch.dtype | None:
        """Type of the rows that it takes; None for any."""
        return None

    def config(self) -> dict[str, Any]:
        """Constructor arguments, plain JSON values only: what decides its answers."""
        return dict(self._config)

    def rank(
        self,
        query: Tensor,
        reference: Rows,
        proposals: Tensor,
        *,
        query_video: Rows | None = None,
        seconds_per_step: float | None = None,
        background: Tensor | None = None,
    ) -> Ranking:
        """Rank moments of a reference; inputs may be on any device.

        Args:
            query: Features of the clip, float32 ``[m, F]``, ``m >= 1``.
            reference: Features of the long video, float32 ``[n, F]``, ``n >= 1``: a tensor, or rows
                in a file.
            proposals: Candidates, float32 ``[M, 2]`` in steps of the reference, ``M >= 1``.
                A model that makes its own moments may ignore them.
            query_video: See :class:`Surroundings`, as the other two.
            seconds_per_step: Where known.
            background: Where known.

        Returns:
            The :class:`Ranking`; it may hold another number of moments than ``proposals``.
        """
        around = Surroundings(query_video, seconds_per_step, background)
        with evaluating(self):
            return self._rank(*self._enter(query, reference, proposals, around))

    def _rank(
        self, query: Tensor, reference: Any, proposals: Tensor, around: Surroundings
    ) -> Ranking:
        """:meth:`rank` with everything on the model's device."""
        raise NotImplementedError

    def _enter(
        self, query: Tensor, reference: Rows, proposals: Tensor, around: Surroundings
    ) -> tuple[Tensor, Any, Tensor, Surroundings]:
        """Bring everything to the model's device, rows as it wants them: no other place does."""
        device = query.device if self.device is None else self.device
        dtype = self.dtype
        sides = []
        for rows in (reference, around.query_video):
            if rows is None or self.by_blocks:
                sides.append(rows)
                continue
            whole = rows if isinstance(rows, Tensor) else torch.cat(list(rows.split(BLOCK)))
            sides.append(whole.to(device, dtype))
        background = None if around.background is None else around.background.to(device, dtype)
        windows = proposals if proposals is None else proposals.to(device)
        around = replace(around, query_video=sides[1], background=background)
        return query.to(device, dtype), sides[0], windows, around

    @property
    def refinements(self) -> tuple[str, ...]:
        """Ways to refine proposals that validation compares, from none to the most."""
        return ("none", "refined")

    def rankings(
        self, query: Tensor, reference: Tensor, proposals: Tensor, **known: Any
    ) -> dict[str, Ranking]:
        """The answers by each of :attr:`refinements`; arguments as in :meth:`rank`."""
        ranking = self.rank(query, reference, proposals, **known)
        plain = Ranking(ranking.origins, ranking.scores, ranking.proposals)
        return dict(zip(self.refinements, (plain, ranking), strict=True))

    def rank_videos(
        self, query: Tensor, references: Sequence[Tensor], proposals: Sequence[Tensor], **known: Any
    ) -> list[Ranking]:
        """:meth:`rank` of each of many references, together where a network answers.

        Finer windows are left to the caller, see :attr:`rounds`.
        """
        pairs = zip(references, proposals, strict=True)
        return [self.rank(query, *pair, **known) for pair in pairs]

    def encode(self, reference: Tensor, proposals: Tensor) -> tuple[Tensor, Tensor] | None:
        """What is the same of each proposal for every query and worth keeping; None for nothing.

        From ``[n, F]`` and ``[M, 2]`` in steps, states ``[M, T, d]`` and their lengths ``[M]``.
        """
        return None

    def score_encoded(
        self, query: Tensor, states: Tensor, lengths: Tensor, proposals: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Moments ``[M, 2]`` and scores ``[M]`` of proposals ``[M, 2]`` kept by :meth:`encode`."""
        raise NotImplementedError

    def localize(
        self,
        query: ArrayLike,
        reference: ArrayLike | Rows,
        *,
        proposals: ArrayLike | None = None,
        top_k: int = 5,
        seconds_per_step: float = 1.0,
        query_video: ArrayLike | Rows | None = None,
        nms_threshold: float = 0.5,
        background: ArrayLike | None = None,
    ) -> list[Moment]:
        """Find the moments of a reference that mean the same as a query.

        Args:
            query: Features of the clip, ``[m, F]``.
            reference: Features of the long video, ``[n, F]``: an array, or rows in a file.
            proposals: Candidates ``[M, 2]`` in seconds; made by sliding windows where None. Where
                there are none, so is the answer, with a warning.
            top_k: How many moments to give at most.
            seconds_per_step: Duration of one feature step of the reference; at the default of 1
                seconds and steps are the same.
            query_video: Features of the whole video that the query was cut from, where known.
            nms_threshold: Of two answers with a larger tIoU only the better is given.
            background: Mean row ``[F]`` of a library that the videos belong to, where known.

        Returns:
            At most ``top_k`` moments in seconds, best first.

        Raises:
            FeatureError: An array is not a finite, non-empty ``[n, F]``, or widths differ.
            ProposalError: ``proposals`` is not ``[M, 2]`` with ``start < end``, or all lie outside.
            UsageError: ``seconds_per_step`` or ``top_k`` is out of range.
            RelocalError: Scores are not finite.
        """
        check_number(top_k, "top_k", least=1, whole=True)
        check_number(seconds_per_step, "seconds_per_step", above=0)
        check_number(nms_threshold, "nms_threshold", least=0, most=1)
        clip = as_features(query, "query")
        width = clip.shape[1]
        self.check_width(width, "query")
        video, around = as_rows(reference, "reference", width), None
        if query_video is not None:
            around = as_rows(query_video, "query_video", width)
        mean = None
        if background is not None:
            mean = cast(Tensor, as_rows(cast(Any, [background]), "background", width))[0]
        if proposals is None:
            candidates = default_proposals(len(video), len(clip), limit=self.max_windows)
        elif isinstance(proposals, Sized) and len(proposals) == 0:
            warnings.warn("there are no proposals, so there is no answer", stacklevel=2)
            return []
        else:
            candidates = as_proposals(proposals) / seconds_per_step
            if not ((candidates[:, 0] < len(video)) & (candidates[:, 1] > 0)).any():
                raise ProposalError("none lies inside the reference: they are in seconds of it")
        ranking = self.rank(
            clip,
            video,
            candidates,
            query_video=around,
            seconds_per_step=seconds_per_step,
            background=mean,
        )
        if not ranking.scores.isfinite().all():
            raise RelocalError("scores are not finite: weights are not, or features are extreme")
        return ranking.best(len(video), top_k, seconds_per_step, nms_threshold)

    def check_width(self, channels: int, record: str, file: str | Path | None = None) -> None:
        """Refuse features of another width; ``record`` and ``file`` say in the error what they are.

        Raises:
            FeatureError: The model takes another width.
        """
        if self.in_channels not in (None, channels):
            raise FeatureError(
                f"has {channels} channels and the model takes {self.in_channels}: use the features "
                "(backbone and PCA) that it was trained on",
                file=file,
                record=record,
            )

    @torch.inference_mode(mode=False)  # in that mode nothing has gradients
    def explain(
        self,
        query: Tensor,
        reference: Rows,
        moment: tuple[float, float],
        query_video: Rows | None = None,
        seconds_per_step: float | None = None,
    ) -> Tensor | None:
        """How much each pair of steps added to the score of a moment.

        Args:
            query: ``[m, F]``.
            reference: ``[n, F]``.
            moment: Start and end in steps, of :meth:`scored_span`.
            query_video: ``[v, F]`` or None.
            seconds_per_step: Duration of one step, where the ranking knew it.

        Returns:
            ``[m, n]``, in units of the score before its tanh; None where a model cannot say.
        """
        around = Surroundings(query_video, seconds_per_step)
        window = torch.tensor([moment], dtype=query.dtype)
        return self._explain(*self._enter(query, reference, window, around))

    def _explain(
        self, query: Tensor, reference: Any, window: Tensor, around: Surroundings
    ) -> Tensor | None:
        """:meth:`explain` of a window ``[1, 2]`` with everything on the model's device."""
        return None

    def scored_span(self, moment: Moment) -> tuple[float, float]:
        """What the score of an answer belongs to: its proposal, where there is one."""
        return moment.proposal or (moment.start, moment.end)

    def raw_scores(self, scores: Tensor) -> Tensor:
        """Scores before the last tanh, float64; as they are where there is none."""
        if not self.ends_in_tanh:
            return scores
        return torch.atanh(scores.double().clamp(-SATURATED, SATURATED))


class Wrapper(Relocalizer):
    """A system made of another one: limits, width and device are of that one."""

    def __init__(self, model: Relocalizer) -> None:
        self.model = model
        for name in ("title", "max_windows", "max_videos", "in_channels"):
            setattr(self, name, getattr(model, name))

    @property
    def device(self) -> torch.device | None:
        """Where the model computes."""
        return self.model.device

    def config(self) -> dict[str, Any]:
        """The model's constructor arguments."""
        return self.model.config()


def arguments(names: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments, in range, from ``locals()`` in the first line of a constructor."""
    names = {name: value for name, value in names.items() if name not in ("self", "__class__")}
    checked = check_settings(names, ("widths",))
    return {k: list(v) if isinstance(v, tuple) else v for k, v in checked.items()}


class TrainableRelocalizer(nn.Module, Relocalizer):
    """A model with weights: what the training loop asks of it, and how it is kept."""

    trainable: ClassVar[bool] = True
    #: Whether it answers sensibly before it is trained here; then only weights that beat that start
    #: by more than chance are kept (:func:`relocal_pyg.training.fit`).
    starts_informed: ClassVar[bool] = False
    #: Processes over which the loop averages gradients: a loss that is a sum is multiplied by it.
    ranks: int = 1

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the rows that it takes: that of its weights."""
        return next(self.parameters()).dtype

    @abc.abstractmethod
    def training_set(
        self, protocol: Protocol, *, num_samples: int, seed: int
    ) -> torch.utils.data.Dataset[Any]:
        """Training samples of the protocol's ``"train"`` split.

        Sample ``i`` depends on ``(seed, i)`` alone, so that training resumes exactly. Samples are
        batched by ``torch_geometric.loader.DataLoader``.
        """

    @abc.abstractmethod
    def training_losses(self, batch: Any) -> dict[str, Tensor]:
        """Losses of one batch: ``"loss"`` is minimised, every entry is logged."""

    def parameter_groups(
        self, learning_rate: float, offset_learning_rate: float
    ) -> list[dict[str, Any]]:
        """Groups for ``torch.optim.Adam``; one of everything, unless there is a regression head."""
        return [{"params": list(self.parameters()), "lr": learning_rate}]

    @property
    def refinement(self) -> str:
        """The way to refine that :meth:`rank` takes."""
        return self.refinements[-1]

    def set_refinement(self, way: str) -> None:  # noqa: B027
        """Told after a validation which of :attr:`refinements` was the best.

        A model that can leave proposals alone remembers it; the default does nothing.
        """

    def fit(self, protocol: Protocol, **options: Any) -> Any:
        """Train on a protocol; options and result are those of :func:`relocal_pyg.training.fit`."""
        # The loop sits below: only the face of the package reaches it from here.
        return relocal_pyg.training.fit(self, protocol, **options)

    def save(self, folder: str | Path) -> None:
        """Write the weights and the configuration, all or nothing, for ``load_model``.

        Raises:
            CheckpointError: Weights are not finite.
            OutputError: The folder cannot be written; what it held is intact.
        """
        with replace_folder(Path(folder), "model") as temporary:
            self.write(temporary)

    def write(self, folder: Path) -> None:
        """Write ``model.safetensors`` and ``config.json`` into an existing folder."""
        weights = {name: value.contiguous() for name, value in self.state_dict().items()}
        save_tensors(weights, folder / "model.safetensors")
        record = {
            "format": FORMAT,
            "version": __version__,
            "model": type(self).__name__,
            "config": self.config(),
        }
        text = json.dumps(record, indent=1, sort_keys=True)
        (folder / "config.json").write_text(text, encoding="utf-8")


@contextlib.contextmanager
def evaluating(model: object) -> Iterator[None]:
    """Put a model in evaluation mode, and back, where it or what it wraps is a module."""
    while not isinstance(model, nn.Module) and hasattr(model, "model"):
        model = model.model
    if not isinstance(model, nn.Module) or not model.training:
        yield
        return
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:  # a part may have been frozen
            module.training = training


def separate(
    everything: Sequence[nn.Parameter],
    head: Sequence[nn.Parameter],
    learning_rate: float,
    offset_learning_rate: float,
) -> list[dict[str, Any]]:
    """Two groups: everything but a regression head, and that head, which decays no weights.

    One Adam is the paper's two, because the head reads a detached vector (section 5.2.2).
    """
    known = {id(parameter) for parameter in head}
    return [
        {"params": [each for each in everything if id(each) not in known], "lr": learning_rate},
        {"params": list(head), "lr": offset_learning_rate, "weight_decay": 0.0},
    ]


def as_features(array: ArrayLike, name: str) -> Tensor:
    """Check a feature array and give it as float32 ``[n, F]``.

    Raises:
        FeatureError: Not two-dimensional, empty, not real numbers, or not finite or too large (the
            first bad step is named).
    """
    tensor = to_tensor(array, FeatureError, name).detach()
    if tensor.ndim != 2:
        raise FeatureError(f"has {tensor.ndim} dimensions, [steps, channels] wanted", record=name)
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise FeatureError(f"holds {tensor.dtype}, real numbers wanted", record=name)
    if tensor.shape[0] == 0 or tensor.shape[1] == 0:
        raise FeatureError(f"is empty: shape {tuple(tensor.shape)}", record=name)
    tensor = tensor.float()
    good = (tensor.amax(dim=1) < TOO_LARGE) & (tensor.amin(dim=1) > -TOO_LARGE)  # not of NaN
    if not good.all():
        first = int((~good).nonzero()[0])
        reason = "too large" if tensor[first].isfinite().all() else "not finite"
        raise FeatureError(f"step {first} is {reason}", record=name)
    return tensor


def as_rows(rows: ArrayLike | Rows, name: str, channels: int) -> Rows:
    """:func:`as_features` of an array; rows in a file are as they are.

    Raises:
        FeatureError: As :func:`as_features`; there are no rows, or the query has other channels.
    """
    if isinstance(rows, Tensor | str | bytes) or not hasattr(rows, "split"):
        rows = as_features(cast(ArrayLike, rows), name)
    rows = cast(Rows, rows)
    if len(rows) == 0:
        raise FeatureError("is empty", record=name)
    width = next(iter(rows.split(BLOCK))).shape[1]
    if width != channels:
        raise FeatureError(
            f"{name} has {width} channels and the query {channels}: "
            "extract both with the same backbone"
        )
    return rows


def as_proposals(array: ArrayLike) -> Tensor:
    """Check proposals and give them as float32 ``[M, 2]``.

    Raises:
        ProposalError: Wrong shape, empty, not finite, or a start not before its end.
    """
    tensor = to_tensor(array, ProposalError).float()
    if tensor.ndim != 2 or tensor.shape[1] != 2 or len(tensor) == 0:
        raise ProposalError(f"shape {tuple(tensor.shape)}, [M, 2] with M >= 1 wanted")
    good = torch.isfinite(tensor).all(dim=1) & (tensor[:, 0] < tensor[:, 1])
    if not good.all():
        first = int((~good).nonzero()[0])
        raise ProposalError(f"proposal {first} is {tensor[first].tolist()}: start < end wanted")
    return tensor
