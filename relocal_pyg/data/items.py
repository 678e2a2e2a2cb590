"""A protocol: items in named splits, where their features are, and how proposals are made."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from typing import Any
from typing import Protocol as TypingProtocol

from torch import Tensor

from relocal_pyg.errors import RelocalError
from relocal_pyg.io.record import sha256_json

#: Items that are looked at, about, to tell sources apart that do not say what they are.
_SAMPLED = 16


@dataclass(frozen=True, order=True)
class Item:
    """One annotated action: a query by its moment, a reference by its context.

    Every range is half-open, in steps of the whole video.

    Attributes:
        item_id: Unique inside a split, ``"<video_id>#<number>"``.
        video_id: Key of the video in the feature file.
        label: Class name.
        context: The stretch of the video that serves as the reference.
        moment: The action itself, inside ``context``.
        moments: Every action of the same class inside ``context``; holds ``moment``.
        seconds_per_step: Duration of one step of this video.
        subject: Who performs, where the annotation says so.
    """

    item_id: str
    video_id: str
    label: str
    context: tuple[int, int]
    moment: tuple[int, int]
    moments: tuple[tuple[int, int], ...]
    seconds_per_step: float = 1.0
    subject: str | None = None

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> Item:
        """Rebuild an item from plain values: lists become tuples of whole numbers again.

        Raises:
            KeyError: A field is missing.
            TypeError: One is of another kind.
            ValueError: A range is not two whole numbers.
        """

        def span(value: list[int]) -> tuple[int, int]:
            start, end = value
            return int(start), int(end)

        ranges = {name: span(fields[name]) for name in ("context", "moment")}
        return cls(**{**fields, **ranges, "moments": tuple(map(span, fields["moments"]))})

    @property
    def num_steps(self) -> int:
        """Length of the reference (the context) in steps."""
        return self.context[1] - self.context[0]

    @property
    def query_steps(self) -> int:
        """Length of the query (the moment) in steps."""
        return self.moment[1] - self.moment[0]

    @property
    def truths(self) -> list[tuple[int, int]]:
        """Every ground truth in steps of the reference, that is counted from ``context[0]``."""
        offset = self.context[0]
        return [(start - offset, end - offset) for start, end in self.moments]


@dataclass(frozen=True, order=True)
class Pair:
    """A query and the reference it is looked for in."""

    query: Item
    reference: Item


class FeatureSource(TypingProtocol):
    """Anything that gives the feature steps of a video: a ``FeatureStore`` or a plain wrapper."""

    def read(self, video_id: str, start: int = 0, end: int | None = None) -> Tensor:
        """Give steps ``[start, end)`` of a video as float32 ``[n, F]``."""
        ...

    @property
    def dim(self) -> int:
        """Width ``F`` of a step."""
        ...


#: Gives the proposals of a reference: float32 ``[M, 2]`` in steps of the reference's context.
#: The second argument is the query's length in steps.
ProposalSource = Callable[[Item, int], Tensor]


@dataclass
class Protocol:
    """A data set, its split and its proposals: all that training and evaluation need to know.

    Attributes:
        name: The name shown in tables, such as ``"anet-vrl"``.
        splits: Items by split name; ``"train"`` and ``"val"`` exist, all others are for testing.
        features: Where features are read.
        propose: Where proposals come from.
        exclude: Default for evaluation pairs: what a query never meets, ``"video"``, ``"item"``
            or ``"none"``.
        about: Facts for the run folder: source files, hashes, seeds, class lists.
    """

    name: str
    splits: Mapping[str, tuple[Item, ...]]
    features: FeatureSource
    propose: ProposalSource
    exclude: str = "video"
    about: dict[str, object] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """A hash of its name, its items, its source, and how features are read and windows made.

        Of a source of features, or of proposals, that does not say all by its fields, what it gives
        of some items is part of it.
        """
        items = {
            split: [asdict(item) for item in sorted(members)]
            for split, members in self.splits.items()
        }
        about = {"about": self.about, "features": _settings(self.features)}
        if not is_dataclass(self.features):
            about["first steps"] = self._sample(self._step)
        if is_dataclass(self.propose):
            about["proposals"] = repr(self.propose)
        else:
            about["proposals"] = self._sample(lambda item: self.proposals(item, item))
        return sha256_json({"name": self.name, "items": items, **about})

    def _sample(self, give: Callable[[Item], Tensor]) -> str:
        """Hash of what is given of some items of all splits."""
        items = [item for members in self.splits.values() for item in members]
        digest = hashlib.sha256()
        for item in items[:: max(1, len(items) // _SAMPLED)]:
            try:
                digest.update(give(item).float().cpu().numpy().tobytes())
            except RelocalError as error:  # reported where it is used
                digest.update(error.reason.encode())
        return digest.hexdigest()

    def _step(self, item: Item) -> Tensor:
        start = item.context[0]
        return self.features.read(item.video_id, start, start + 1)

    def query(self, item: Item) -> Tensor:
        """Features of the item's moment, ``[m, F]``."""
        return self.features.read(item.video_id, *item.moment)

    def reference(self, item: Item) -> Tensor:
        """Features of the item's context, ``[n, F]``."""
        return self.features.read(item.video_id, *item.context)

    def proposals(self, reference: Item, query: Item | None = None) -> Tensor:
        """Proposals of a reference, float32 ``[M, 2]`` in steps of its context."""
        return self.propose(reference, query.query_steps if query is not None else 0)

    def test_splits(self) -> list[str]:
        """Names of the splits that only testing may touch."""
        return [name for name in self.splits if name not in ("train", "val")]


def _settings(source: Any) -> Any:
    """How a source reads features: of one that is a data class, what its fields say."""
    if isinstance(source, str | int | float):
        return source
    if is_dataclass(source):
        return {each.name: _settings(getattr(source, each.name)) for each in fields(source)}
    return [str(getattr(source, name, None)) for name in ("key", "subsample")]
