"""What a protocol is made of: items, each one action of one video, and the pairs made of them."""

from __future__ import annotations

from dataclasses import dataclass


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
