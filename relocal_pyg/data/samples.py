"""Training samples: triplets, and lists of one query and many proposals of one reference."""

from __future__ import annotations

import abc
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar

import numpy as np
import torch
import torch_geometric
from torch import Tensor
from torch.utils.data import Dataset
from torch_geometric.data import Data

from relocal_pyg.data.items import Item, Protocol
from relocal_pyg.data.pair_data import PairData, nearest_steps
from relocal_pyg.errors import AnnotationError, CheckpointError, UsageError, check_number
from relocal_pyg.graph import PairGraph
from relocal_pyg.io.record import sha256_json
from relocal_pyg.io.seeding import check_seed, generator
from relocal_pyg.io.tensors import check_tensors, read_tensors, save_tensors
from relocal_pyg.io.write import replace_file, writing
from relocal_pyg.moments import encode_offsets, tiou

_Sample = TypeVar("_Sample")


class SeededSamples(Dataset[_Sample], Generic[_Sample]):
    """Base of every training set: sample ``i`` is drawn from the stream ``(seed, stream, i)``.

    Each kind of sample has a ``stream`` of its own; the ``"train"`` split of the protocol is used.
    """

    stream: ClassVar[str]

    def __init__(self, protocol: Protocol, *, num_samples: int, seed: int) -> None:
        number = int(check_number(num_samples, "num_samples", least=1, whole=True))
        self.protocol, self.num_samples = protocol, number
        self.seed = check_seed(seed)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, number: int) -> _Sample:
        if not -self.num_samples <= number < self.num_samples:
            raise IndexError(number)
        return self.draw(generator(self.seed, self.stream, int(number) % self.num_samples))

    @abc.abstractmethod
    def draw(self, rng: np.random.Generator) -> _Sample:
        """Draw one sample; ``rng`` is the only source of randomness."""


_T = TypeVar("_T")


class PartnerSampler:
    """Draws a query and its partners from the items of one split.

    A query video is drawn first and then one of its actions, so that a video with many actions does
    not dominate; partners likewise (section 5.2.1).

    Raises:
        AnnotationError: No class has items in two videos.
    """

    def __init__(self, items: Sequence[Item]) -> None:
        self._items = sorted(items)
        self._videos: dict[str, dict[str, list[Item]]] = {}
        for item in self._items:
            self._videos.setdefault(item.label, {}).setdefault(item.video_id, []).append(item)
        by_video: dict[str, list[Item]] = defaultdict(list)
        for item in self._items:
            if len(self._videos[item.label]) > 1:
                by_video[item.video_id].append(item)
        if not by_video:
            raise AnnotationError("training needs a class with actions in two videos at least")
        self._queries = list(by_video.values())
        self._labels = sorted(self._videos)
        self._moments: dict[tuple[str, str], set[tuple[int, int]]] = defaultdict(set)
        for item in self._items:
            self._moments[item.video_id, item.label].update(item.moments)

    def query(self, rng: np.random.Generator) -> Item:
        """An action whose class also occurs in another video."""
        return _pick(_pick(self._queries, rng), rng)

    def positive(self, query: Item, rng: np.random.Generator) -> Item:
        """An action of the query's class in another video."""
        videos = self._videos[query.label]
        others = [video for video in videos if video != query.video_id]
        return _pick(videos[_pick(others, rng)], rng)

    def negative(self, query: Item, rng: np.random.Generator) -> Item:
        """An action of another class, in a video without the query's class where there is one."""
        labels = [label for label in self._labels if label != query.label]
        if not labels:
            what = "of another class are wanted, there is one class: set negatives=video"
            raise AnnotationError(f"negatives {what}, or use another system")
        videos = self._videos[_pick(labels, rng)]
        clean = [video for video in videos if (video, query.label) not in self._moments]
        return _pick(videos[_pick(clean or list(videos), rng)], rng)

    def elsewhere(self, query: Item, rng: np.random.Generator) -> Item:
        """Any action of another video, which may show the query's class or not."""
        return _pick([item for item in self._items if item.video_id != query.video_id], rng)

    def moments_inside(self, item: Item, label: str) -> list[tuple[int, int]]:
        """The moments of a class inside the context of an item, in steps of that context."""
        first, last = item.context
        return [
            (max(start, first) - first, min(end, last) - first)
            for start, end in sorted(self._moments.get((item.video_id, label), ()))
            if start < last and end > first
        ]


class PartnerSamples(SeededSamples[_Sample]):
    """Base of those that draw a query and its partners."""

    def __init__(self, protocol: Protocol, *, num_samples: int, seed: int) -> None:
        super().__init__(protocol, num_samples=num_samples, seed=seed)
        self._sampler = PartnerSampler(protocol.splits["train"])


class TripletDataset(PartnerSamples[tuple[PairData, PairData]]):
    """Samples ``(positive pair, negative pair)``; sample ``i`` depends on ``(seed, i)`` alone.

    Each video is represented by its proposal of largest tIoU with its own ground truth. PyG's
    ``DataLoader`` batches the two sides into two Batches. The positive carries ``offsets`` [1, 2],
    the targets of section 4.7.2.

    Args:
        protocol: Where items, features and proposals come from.
        num_samples: Length.
        seed: Names the stream.
        num_steps: T.
        ks: Graphs whose edges are stored in each pair, where ``materialize`` is set.
        negatives: ``"class"``: another class (the paper); ``"video"``: a proposal of the positive
            reference with tIoU below 0.2 to every ground truth.
        materialize: Store the edges; the network does not need them.
    """

    stream = "triplet"

    def __init__(
        self,
        protocol: Protocol,
        *,
        num_samples: int,
        seed: int,
        num_steps: int = 40,
        ks: Sequence[int] = (1, 2, 3),
        negatives: Literal["class", "video"] = "class",
        materialize: bool = False,
    ) -> None:
        super().__init__(protocol, num_samples=num_samples, seed=seed)
        if negatives not in ("class", "video"):
            raise UsageError(f"negatives is {negatives!r}: 'class' or 'video' wanted")
        self.num_steps = int(check_number(num_steps, "num_steps", least=1, whole=True))
        self.ks = tuple(PairGraph(self.num_steps, k).k for k in ks)
        self.negatives, self.materialize = negatives, materialize

    def draw(self, rng: np.random.Generator) -> tuple[PairData, PairData]:
        """Draw a query, a positive and a negative."""
        query = self._sampler.query(rng)
        positive = self._sampler.positive(query, rng)
        clip = self.protocol.query(query)
        proposals = self.protocol.proposals(positive, query)
        overlap, truths = best_truths(proposals, positive.truths)
        best = int(overlap.argmax())
        near = self._pair(clip, positive, proposals[best])
        near.offsets = encode_offsets(proposals[best], truths[best])[None]
        far = (overlap < 0.2).nonzero().flatten()
        if self.negatives == "video" and len(far):
            window = proposals[far[int(rng.integers(len(far)))]]
            return near, self._pair(clip, positive, window)
        negative = self._sampler.negative(query, rng)
        proposals = self.protocol.proposals(negative, query)
        overlap, _ = best_truths(proposals, negative.truths)
        return near, self._pair(clip, negative, proposals[int(overlap.argmax())])

    def _pair(self, clip: Tensor, reference: Item, window: Tensor) -> PairData:
        start, end = nearest_steps(window, reference.num_steps).tolist()
        features = self.protocol.features.read(
            reference.video_id, reference.context[0] + start, reference.context[0] + end
        )
        return PairData.from_features(
            clip, features, num_steps=self.num_steps, ks=self.ks, materialize=self.materialize
        )


class StoredPairs(torch_geometric.data.Dataset):
    """Samples of :class:`TripletDataset` kept on disk, as PyG's data sets are; nothing is fetched.

    Everything that decides the samples names the folder ``root/processed/<hash>``: other settings
    or items are another folder, and nothing stale is read.

    Args:
        root: Folder that this data set may write into.
        protocol: As in :class:`TripletDataset`.
        num_samples: Triplets.
        seed: Names the stream of samples.
        kind: ``"triplets"``: sample i is ``(positive, negative)``; ``"pairs"``: the positive of
            triplet i is sample 2i with ``y`` 1, its negative sample 2i + 1 with ``y`` 0.
        num_steps: T.
        ks: The graphs, whose edges each pair holds.
        transform: Applied to each sample, of triplets the tuple.
        force_reload: Draw the samples again.

    Raises:
        AnnotationError: As :class:`PartnerSampler`.
        UsageError: No such kind, or a number below 1.
    """

    def __init__(
        self,
        root: str | Path,
        protocol: Protocol,
        *,
        num_samples: int,
        seed: int = 0,
        kind: Literal["triplets", "pairs"] = "triplets",
        num_steps: int = 40,
        ks: Sequence[int] = (1, 2, 3),
        transform: Callable[[Any], Any] | None = None,
        force_reload: bool = False,
    ) -> None:
        self._triplets = drawn = TripletDataset(
            protocol, num_samples=num_samples, seed=seed, num_steps=num_steps, ks=ks
        )
        if root is None or kind not in ("triplets", "pairs"):
            raise UsageError(f"root {root}, kind {kind!r}: a folder, 'triplets' or 'pairs' wanted")
        self.kind = kind
        facts = {"protocol": protocol.fingerprint, "samples": drawn.num_samples}
        facts |= {"seed": drawn.seed, "num_steps": drawn.num_steps, "format": 1}
        self._settings = sha256_json(facts)[:16]
        self._again = force_reload
        super().__init__(str(root), transform, force_reload=force_reload)

    @property
    def processed_dir(self) -> str:
        """``root/processed/<hash of the settings>``."""
        return str(Path(self.root) / "processed" / self._settings)

    @property
    def processed_file_names(self) -> list[str]:
        """One file of tensors."""
        return ["triplets.safetensors"]

    @cached_property
    def _rows(self) -> dict[str, Tensor]:
        drawn, file = self._triplets, Path(self.processed_paths[0])
        nodes = (drawn.num_samples, 2, 2 * drawn.num_steps)
        sizes = {"x": (*nodes, drawn.protocol.features.dim), "step_mask": nodes}
        sizes["offsets"] = (drawn.num_samples, 1, 2)
        wanted = {name: torch.empty(size, device="meta") for name, size in sizes.items()}
        try:
            check_tensors(found := read_tensors(file), wanted, file)
        except CheckpointError as error:
            reason = f"{error.reason}: draw the samples again with force_reload=True"
            raise CheckpointError(reason, file=file, record=error.record) from None
        return found

    def __getstate__(self) -> dict[str, Any]:
        # A worker reads the file itself: rows that travel would be in memory once more each time.
        return {name: value for name, value in vars(self).items() if name != "_rows"}

    def __copy__(self) -> StoredPairs:
        # PyG's parts of a data set (``stored[:100]``) are copies: these do share the rows.
        made = type(self).__new__(type(self))
        made.__dict__.update(self.__dict__)
        return made

    def process(self) -> None:
        """Draw the triplets and write them."""
        pairs = [self._triplets[number] for number in range(len(self._triplets))]
        rows = {
            name: torch.stack([torch.stack([side[name] for side in pair]) for pair in pairs])
            for name in ("x", "step_mask")
        }
        rows["offsets"] = torch.stack([near.offsets for near, _ in pairs])
        with writing(force=self._again), replace_file(self.processed_paths[0]) as temporary:
            save_tensors(rows, temporary)

    def len(self) -> int:
        """Samples: triplets, or twice as many pairs."""
        return len(self._triplets) * (2 if self.kind == "pairs" else 1)

    def get(self, idx: int) -> Any:
        """A pair, or a positive and a negative one."""
        if self.kind == "triplets":
            return self._side(idx, 0), self._side(idx, 1)
        return self._side(*divmod(idx, 2))

    def _side(self, number: int, side: int) -> PairData:
        # A copy: what is kept must not change with a sample.
        x, mask = (self._rows[name][number, side].clone() for name in ("x", "step_mask"))
        pair = PairData(x=x, step_mask=mask)
        for k in self._triplets.ks:
            pair[f"edge_index_k{k}"] = PairGraph(self._triplets.num_steps, k).edge_index()
        if self.kind == "pairs":
            pair.y = torch.tensor([1 - side])
        elif side == 0:
            pair.offsets = self._rows["offsets"][number].clone()
        return pair


def best_truths(proposals: Tensor, truths: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
    """Largest tIoU ``[M]`` of proposals ``[M, 2]`` with a ground truth, and that one ``[M, 2]``."""
    all_truths = torch.tensor(truths, dtype=proposals.dtype)
    overlap, which = tiou(proposals[:, None], all_truths[None]).max(dim=1)
    return overlap, all_truths[which]


def _pick(values: Sequence[_T], rng: np.random.Generator) -> _T:
    return values[int(rng.integers(len(values)))]


#: A target that also counts proposals which are nearly the best: what few items can teach.
SOFT_TARGET = 0.1
#: Training items below which a sharper target was learned by heart.
FEW_ITEMS = 100


class ListDataset(PartnerSamples[Data]):
    """Samples of one query and the graded proposals of one reference.

    A triplet of two classes never shows a network where a moment ends; a list of overlapping
    proposals of one reference, graded by tIoU, does. Proposals of a further video, mostly without
    the action, make scores comparable across videos: one that holds the action has to win against
    one that does not. Sample ``i`` depends on ``(seed, i)`` alone.

    Each sample is a ``Data`` with ``query`` [m, F], ``reference`` [n, F], ``query_video`` [v, F],
    ``proposals`` [M, 2] in steps, ``overlap`` [M] (tIoU with the best ground truth), ``offsets``
    [M, 2] (targets of section 4.7.2) and ``temperature`` [1]; with ``far_proposals`` also
    ``far_reference`` [n', F], ``far_proposals`` [N, 2] and ``far_overlap`` [N].

    Args:
        protocol: Where items, features and proposals come from; its ``"train"`` split is used.
        num_samples: Length of the data set.
        seed: Names the stream of samples.
        list_length: Proposals kept; half of them, where there are so many, overlap a ground truth.
        far_proposals: Proposals kept of one more reference, that of any action of another video;
            half of them, where there are so many, overlap that action.
        target_temperature: Divides the tIoUs of a list; at least 0.1 where the split has fewer than
            100 items.
        surroundings: Share of the samples whose query comes with the video it was cut from; the
            others are bare clips.
    """

    stream = "list"

    def __init__(
        self,
        protocol: Protocol,
        *,
        num_samples: int,
        seed: int,
        list_length: int = 48,
        far_proposals: int = 0,
        target_temperature: float = SOFT_TARGET,
        surroundings: float = 1.0,
    ) -> None:
        super().__init__(protocol, num_samples=num_samples, seed=seed)
        self.list_length = int(check_number(list_length, "list_length", least=1, whole=True))
        self.far_proposals = int(check_number(far_proposals, "far_proposals", least=0, whole=True))
        self.surroundings = check_number(surroundings, "surroundings", least=0, most=1)
        check_number(target_temperature, "target_temperature", above=0)
        few = len(protocol.splits["train"]) < FEW_ITEMS
        self.temperature = max(target_temperature, SOFT_TARGET) if few else target_temperature

    def draw(self, rng: np.random.Generator) -> Data:
        """Draw a query, a reference and its list."""
        query = self._sampler.query(rng)
        reference = self._sampler.positive(query, rng)
        proposals = self.protocol.proposals(reference, query)
        overlap, truths = best_truths(proposals, reference.truths)
        kept = choose_proposals(overlap, self.list_length, rng)
        proposals, overlap, truths = proposals[kept], overlap[kept], truths[kept]
        clip = self.protocol.query(query)
        bare = rng.random() >= self.surroundings
        return Data(
            query=clip,
            reference=self.protocol.reference(reference),
            query_video=clip[:0] if bare else self.protocol.reference(query),
            proposals=proposals,
            overlap=overlap,
            offsets=encode_offsets(proposals, truths),
            temperature=torch.tensor([self.temperature]),
            num_nodes=len(proposals),
            **(self._far(query, rng) if self.far_proposals else {}),
        )

    def _far(self, query: Item, rng: np.random.Generator) -> dict[str, Tensor]:
        """Graded proposals of another video, half of them at an action, mostly of another class."""
        item = self._sampler.elsewhere(query, rng)
        proposals = self.protocol.proposals(item, query)
        own, _ = best_truths(proposals, item.truths)
        proposals = proposals[choose_proposals(own, self.far_proposals, rng)]
        truths = self._sampler.moments_inside(item, query.label)
        overlap = proposals.new_zeros(len(proposals))
        if truths:
            overlap, _ = best_truths(proposals, truths)
        return {
            "far_reference": self.protocol.reference(item),
            "far_proposals": proposals,
            "far_overlap": overlap,
        }


@dataclass(frozen=True)
class WindowList:
    """A training sample: one query and graded windows of one or more references.

    Attributes:
        query: ``[m, F]``.
        query_video: ``[v, F]``; None, or no rows, for a bare clip.
        references: ``[n, F]`` each.
        windows: ``[M, 2]`` in steps, for each reference.
        overlaps: tIoU ``[M]`` with the best answer, for each reference.
        temperature: Divides the tIoUs.
        background: Row ``[F]`` that all is centred by, or None.
        seconds_per_step: Duration of a step, or None.
    """

    query: Tensor
    query_video: Tensor | None
    references: Sequence[Tensor]
    windows: Sequence[Tensor]
    overlaps: Sequence[Tensor]
    temperature: float = 0.05
    background: Tensor | None = None
    seconds_per_step: float | None = None

    @classmethod
    def of(cls, sample: Data) -> WindowList:
        """A sample of :class:`relocal_pyg.data.samples.ListDataset`."""
        references, windows, overlaps = [sample.reference], [sample.proposals], [sample.overlap]
        if "far_proposals" in sample and len(sample.far_proposals):
            references.append(sample.far_reference)
            windows.append(sample.far_proposals)
            overlaps.append(sample.far_overlap)
        temperature = float(sample.temperature)
        return cls(sample.query, sample.query_video, references, windows, overlaps, temperature)


def choose_proposals(overlap: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Pick proposals for a list: the best, up to half that overlap a truth, the rest at random.

    Returns:
        Sorted positions ``[min(M, count)]``.
    """
    if len(overlap) <= count:
        return torch.arange(len(overlap))
    best = int(overlap.argmax())
    shuffled = torch.from_numpy(rng.permutation(len(overlap)))
    shuffled = shuffled[shuffled != best]
    near = overlap[shuffled] > 0.3
    first = shuffled[near][: count // 2]
    rest = torch.cat([shuffled[~near], shuffled[near][count // 2 :]])
    picked = torch.cat([torch.tensor([best]), first, rest])[:count]
    return picked.sort().values
