"""The one interface of every model: rank the proposals of a reference for a query."""

from __future__ import annotations

import abc
import warnings
from collections.abc import Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from relocal_pyg.data.proposals import default_proposals
from relocal_pyg.errors import FeatureError, ProposalError
from relocal_pyg.moments import Moment, clip_moments, nms

if TYPE_CHECKING:
    from relocal_pyg.data.items import Protocol
    from relocal_pyg.models.calibrated import Confidence
    from relocal_pyg.models.matchers import Blocks


@dataclass(frozen=True)
class Ranking:
    """Answers for one query and one reference, best first.

    Attributes:
        moments: ``[M, 2]`` in steps of the reference, after refinement.
        scores: ``[M]``, falling.
        proposals: ``[M, 2]`` before refinement: what each moment was made of, or None where the
            model refines nothing.
    """

    moments: Tensor
    scores: Tensor
    proposals: Tensor | None = None

    @classmethod
    def sort(cls, moments: Tensor, scores: Tensor, proposals: Tensor | None = None) -> Ranking:
        """Order by falling score; ties keep their order."""
        order = torch.argsort(scores, descending=True, stable=True)
        before = None if proposals is None else proposals[order]
        return cls(moments[order], scores[order], before)

    def best(
        self,
        num_steps: int,
        top_k: int = 5,
        seconds_per_step: float = 1.0,
        nms_threshold: float = 0.5,
    ) -> list[Moment]:
        """The answers that are shown: inside the video, and no two of one place.

        Args:
            num_steps: Steps of the reference.
            top_k: How many moments at most.
            seconds_per_step: Duration of one step of the reference.
            nms_threshold: Of two answers with a larger tIoU only the better is given.

        Returns:
            At most ``top_k`` moments in seconds, best first.
        """
        moments = clip_moments(self.moments, num_steps)
        kept = nms(moments, self.scores, nms_threshold, limit=top_k)
        seconds = (moments[kept] * seconds_per_step).tolist()
        scores = self.scores[kept].tolist()
        before: list[tuple[float, float] | None] = [None] * len(kept)
        if self.proposals is not None:
            before = [(s, e) for s, e in (self.proposals[kept] * seconds_per_step).tolist()]
        return [
            Moment(start, end, score, proposal)
            for (start, end), score, proposal in zip(seconds, scores, before, strict=True)
        ]


class Relocalizer(abc.ABC):
    """A system that finds the moment of a reference that means the same as a query.

    Attributes:
        title: The name shown in tables.
        trainable: Whether :meth:`TrainableRelocalizer.fit` exists and has to be called.
        reconstructed: Whether the system was rebuilt without its source.
        calibration: Gives answers their probabilities; None where nothing was calibrated
            (:func:`relocal_pyg.models.calibrated.calibrate`).
    """

    title: ClassVar[str]
    trainable: ClassVar[bool] = False
    reconstructed: ClassVar[bool] = False
    calibration: Confidence | None = None

    @abc.abstractmethod
    def rank(
        self,
        query: Tensor,
        reference: Tensor,
        proposals: Tensor,
        *,
        query_video: Tensor | None = None,
    ) -> Ranking:
        """Rank moments of a reference.

        Args:
            query: Features of the clip, float32 ``[m, F]``, ``m >= 1``.
            reference: Features of the long video, float32 ``[n, F]``, ``n >= 1``.
            proposals: Candidates, float32 ``[M, 2]`` in steps of the reference, ``M >= 1``.
                A model that makes its own moments may ignore them.
            query_video: Features of the whole video that the query was cut from, where known.

        Returns:
            The :class:`Ranking`; it may hold another number of moments than ``proposals``.
        """

    @property
    def refinements(self) -> tuple[str, ...]:
        """Ways to refine proposals that validation compares, from none to the most."""
        return ("none", "refined")

    def rankings(
        self,
        query: Tensor,
        reference: Tensor,
        proposals: Tensor,
        *,
        query_video: Tensor | None = None,
    ) -> dict[str, Ranking]:
        """The answers by each of :attr:`refinements`; arguments as in :meth:`rank`."""
        ranking = self.rank(query, reference, proposals, query_video=query_video)
        before = ranking.moments if ranking.proposals is None else ranking.proposals
        return dict(zip(self.refinements, (Ranking(before, ranking.scores), ranking), strict=True))

    def localize(
        self,
        query: ArrayLike,
        reference: ArrayLike,
        *,
        proposals: ArrayLike | None = None,
        top_k: int = 5,
        seconds_per_step: float = 1.0,
        query_video: ArrayLike | None = None,
        nms_threshold: float = 0.5,
    ) -> list[Moment]:
        """Find the moments of a reference that mean the same as a query.

        Args:
            query: Features of the clip, ``[m, F]``.
            reference: Features of the long video, ``[n, F]``.
            proposals: Candidates ``[M, 2]`` in seconds; made by sliding windows where None. Where
                there are none, so is the answer, with a warning.
            top_k: How many moments to give at most.
            seconds_per_step: Duration of one feature step of the reference; at the default of 1
                seconds and steps are the same.
            query_video: Features of the whole video that the query was cut from, where known.
            nms_threshold: Of two answers with a larger tIoU only the better is given.

        Returns:
            At most ``top_k`` moments in seconds, best first.

        Raises:
            FeatureError: An array is not a finite, non-empty ``[n, F]``, or widths differ.
            ProposalError: ``proposals`` is not ``[M, 2]`` with ``start < end``.
        """
        clip, video = as_features(query, "query"), as_features(reference, "reference")
        around = None if query_video is None else as_features(query_video, "query_video")
        wanted = getattr(self, "in_channels", None)
        if wanted not in (None, clip.shape[1]):
            raise FeatureError(
                f"has {clip.shape[1]} channels and the model takes {wanted}: use the "
                "features it was trained on",
                record="query",
            )
        for name, other in (("reference", video), ("query_video", around)):
            if other is not None and other.shape[1] != clip.shape[1]:
                raise FeatureError(
                    f"{name} has {other.shape[1]} channels and the query {clip.shape[1]}: "
                    "extract both with the same backbone"
                )
        if proposals is None:
            candidates = default_proposals(len(video), len(clip))
        elif isinstance(proposals, Sized) and len(proposals) == 0:
            warnings.warn("there are no proposals, so there is no answer", stacklevel=2)
            return []
        else:
            candidates = as_proposals(proposals) / seconds_per_step
        ranking = self.rank(clip, video, candidates, query_video=around)
        found = ranking.best(len(video), top_k, seconds_per_step, nms_threshold)
        return self.judge(ranking, found, clip, video, around, seconds_per_step)

    def explain(
        self,
        query: Tensor,
        reference: Tensor,
        moment: tuple[float, float],
        query_video: Tensor | None = None,
    ) -> Tensor | None:
        """How much each meeting of two steps added to the score of a moment.

        Args:
            query: ``[m, F]``.
            reference: ``[n, F]``.
            moment: Start and end in steps, of :meth:`scored_span`.
            query_video: ``[v, F]`` or None.

        Returns:
            ``[m, n]``; None where a model cannot say.
        """
        return None

    def scored_span(self, moment: Moment) -> tuple[float, float]:
        """What the score of an answer belongs to: its proposal, where there is one."""
        return moment.proposal or (moment.start, moment.end)

    def raw_scores(self, scores: Tensor) -> Tensor:
        """Scores as they were before a last function that squashes them; here there is none."""
        return scores

    def judge(
        self,
        ranking: Ranking,
        moments: list[Moment],
        query: Tensor,
        reference: Tensor | Blocks,
        query_video: Tensor | Blocks | None = None,
        seconds_per_step: float = 1.0,
    ) -> list[Moment]:
        """Answers with their probabilities; as they are where nothing was calibrated.

        Arguments as in :meth:`relocal_pyg.models.calibrated.Confidence.judge`.
        """
        if self.calibration is None or not moments:
            return moments
        return self.calibration.judge(
            self, ranking, moments, query, reference, query_video, seconds_per_step
        )


class TrainableRelocalizer(nn.Module, Relocalizer):
    """A model with weights: what the training loop asks of it, and how it is kept.

    A subclass names its constructor arguments in :meth:`config`, so that :meth:`save` and
    :func:`relocal_pyg.models.load_model` can rebuild it.
    """

    trainable: ClassVar[bool] = True
    #: Whether it answers sensibly before it is trained here; then only weights that beat that start
    #: by more than chance are kept (:func:`relocal_pyg.training.fit`).
    starts_informed: ClassVar[bool] = False

    @abc.abstractmethod
    def config(self) -> dict[str, Any]:
        """Constructor arguments, plain JSON values only."""

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
        """Groups for ``torch.optim.Adam``; one group of everything unless a model says otherwise.

        Args:
            learning_rate: For everything but a regression head of its own.
            offset_learning_rate: For that head, where there is one.
        """
        return [{"params": list(self.parameters()), "lr": learning_rate}]

    def set_refinement(self, way: str) -> None:  # noqa: B027
        """Told after a validation which of :attr:`refinements` was the best.

        A model that can leave proposals alone remembers it; the default does nothing.
        """

    def fit(self, protocol: Protocol, **options: Any) -> Any:
        """Train on a protocol; options and result are those of :func:`relocal_pyg.training.fit`."""
        # The loop sits below the models and uses them: imported late to keep the arrows one way.
        from relocal_pyg.training import fit

        return fit(self, protocol, **options)

    def save(self, folder: str | Path) -> None:
        """Write the weights and the configuration; read them with ``load_model``."""
        from relocal_pyg.models.checkpoint import save_model

        save_model(self, folder)


def as_features(array: ArrayLike, name: str) -> Tensor:
    """Check a feature array and give it as float32 ``[n, F]``.

    Raises:
        FeatureError: Not two-dimensional, empty, not real numbers, or not finite (the first bad
            step is named).
    """
    try:
        tensor = torch.as_tensor(array)
    except (TypeError, ValueError, RuntimeError) as error:
        raise FeatureError(f"not an array of numbers ({error})", record=name) from None
    if tensor.ndim != 2:
        raise FeatureError(f"has {tensor.ndim} dimensions, [steps, channels] wanted", record=name)
    if tensor.is_complex() or tensor.dtype == torch.bool:
        raise FeatureError(f"holds {tensor.dtype}, real numbers wanted", record=name)
    if tensor.shape[0] == 0 or tensor.shape[1] == 0:
        raise FeatureError(f"is empty: shape {tuple(tensor.shape)}", record=name)
    tensor = tensor.float()
    finite = torch.isfinite(tensor).all(dim=1)
    if not finite.all():
        raise FeatureError(f"step {int((~finite).nonzero()[0])} is not finite", record=name)
    return tensor


def as_proposals(array: ArrayLike) -> Tensor:
    """Check proposals and give them as float32 ``[M, 2]``.

    Raises:
        ProposalError: Wrong shape, empty, not finite, or a start not before its end.
    """
    try:
        tensor = torch.as_tensor(array, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ProposalError(f"not an array of numbers ({error})") from None
    if tensor.ndim != 2 or tensor.shape[1] != 2 or len(tensor) == 0:
        raise ProposalError(f"shape {tuple(tensor.shape)}, [M, 2] with M >= 1 wanted")
    good = torch.isfinite(tensor).all(dim=1) & (tensor[:, 0] < tensor[:, 1])
    if not good.all():
        first = int((~good).nonzero()[0])
        raise ProposalError(f"proposal {first} is {tensor[first].tolist()}: start < end wanted")
    return tensor
