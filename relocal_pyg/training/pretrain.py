"""Training before the user came: lists from worlds without end, and the loop that learns them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from relocal_pyg.data.proposals import QUERY_SCALES, geometric_lengths
from relocal_pyg.data.samples import ListDataset, WindowList, choose_proposals
from relocal_pyg.datasets.endless import Footage, FootageWorld, Rows, Scene, World, draw_world
from relocal_pyg.datasets.simulation import WorldConfig
from relocal_pyg.datasets.synthetic import Sparse, SyntheticConfig, synthetic
from relocal_pyg.errors import CheckpointError, UsageError
from relocal_pyg.io.seeding import generator
from relocal_pyg.io.write import replace_file
from relocal_pyg.models.compare import cosines
from relocal_pyg.models.matcher import MultiGraphMatcher
from relocal_pyg.models.network_config import MatcherConfig
from relocal_pyg.models.similarity import contrast_scores, step_similarity
from relocal_pyg.moments import tiou
from relocal_pyg.training.presets import RECOMMENDED

#: Shares of the lists: folders of clips that are all action, references that hold the same footage,
#: and references that are all action.
FOLDERS, COPIES, COVERED = 0.2, 0.08, 0.05
#: Share of the other lists that come from a library, whose mean row all is centred by.
LIBRARIES = 0.12
#: Share of all lists that are drawn from labelled data sets, how many of these are in turn, and how
#: many lists, whatever they are drawn from, pass before others are.
LABELLED, TURNS, SHARED = 0.5, 16, 960
#: Share of all lists that are of drawn films where there are any, half of it taken from those.
FILMED = 0.3
#: One network of the matcher that comes with the package.
SHIPPED = MatcherConfig(num_members=1)
#: The networks whose scores are averaged, and their optimiser steps: the first learns from
#: simulated features alone, the second from drawn films as well.
MEMBERS = {"features": 6_500, "films": 16_000}
#: What a run is made of, and where it is kept.
PARTS, STATE = ("model", "average", "optimiser"), "state.pt"
#: Windows of a video that a list is chosen from, at most, beside those at its answers.
MOST = 500


@dataclass(frozen=True)
class PretrainConfig:
    """How the shipped weights are found."""

    steps: int = MEMBERS["features"]
    """Optimiser steps."""
    lists: int = 4
    """Lists in a step, each from a world of its own."""
    learning_rate: float = 2e-3
    """Adam's."""
    warmup: int = 50
    """Steps over which it rises."""
    decay: float = 0.3
    """Share of the steps, the last, over which it falls to 0: how long a run is to be can be
    decided until then."""
    weight_decay: float = 1e-4
    """Adam's coupled L2 term."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    average: float = 0.997
    """Of the moving average of weights that is kept."""
    seed: int = 0
    """Names the stream of worlds."""


def draw_list(
    seed: int, number: int, config: MatcherConfig, footage: Sequence[FootageWorld] = ()
) -> WindowList:
    """List ``number`` of the stream ``seed``: a query and graded windows of two or more videos.

    Varied are: the world; whether the query comes with its video; how badly it is trimmed; whether
    the reference holds the same footage or only the same action; whether the action covers all of
    it, alone or in a folder of such clips.
    """
    rng = generator(seed, "endless", number)
    source = rng.random()
    labelled = LABELLED - FILMED / 2 if footage else LABELLED
    if source < labelled:
        return labelled_list(seed, number, config)
    if footage and source < labelled + FILMED:
        return footage_list(seed, number, config, footage)
    world = draw_world(rng)
    chance = rng.random()
    query, query_video = draw_query(world)
    background = None
    if chance < FOLDERS:
        copied = rng.random() < 0.3
        copy = same_footage(rng, query) if copied else None
        videos = [world.video(1, cover=True, copy=copy)]
        if copied and rng.random() < 0.5:
            videos.append(world.video(1, cover=True))
        classes = [world.others[n] for n in rng.permutation(len(world.others))]
        classes[0] = world.rival() if rng.random() < 0.5 else classes[0]
        others = [world.video(1, cover=True, action=action) for action in classes]
        videos += [Scene(other.rows, other.truths[:0]) for other in others]
        counts = [config.list_length // (4 if len(v.truths) else 8) for v in videos]
        if rng.random() < 0.7:
            background = torch.from_numpy(np.concatenate([v.rows for v in videos]).mean(axis=0))
    else:
        if chance < FOLDERS + COPIES:
            reference = world.video(1, copy=same_footage(rng, query))
        elif chance < FOLDERS + COPIES + COVERED:
            reference = world.video(1, cover=True)
        else:
            reference = world.video(int(rng.integers(1, world.staging.answers + 1)))
        videos = [reference, world.video(int(rng.random() < 0.12))]
        counts = [config.list_length, config.far_proposals]
        if rng.random() < LIBRARIES:
            library = [query_video, *(video.rows for video in videos)]
            background = torch.from_numpy(np.concatenate(library).mean(axis=0))
    second = None if world.staging.second is None else 1 / world.staging.second
    video = None if rng.random() < 0.4 else query_video
    return graded(rng, config, query, video, videos, counts, background, second)


def graded(
    rng: np.random.Generator,
    config: MatcherConfig,
    query: Rows,
    query_video: Rows | None,
    videos: Sequence[Scene],
    counts: Sequence[int],
    background: Tensor | None,
    seconds_per_step: float | None,
) -> WindowList:
    """A list of some windows of each video, ``counts`` of them, graded by what they overlap."""
    clip = torch.from_numpy(query)
    references, windows, overlaps = [], [], []
    for video, count in zip(videos, counts, strict=True):
        rows = torch.from_numpy(video.rows)
        found = candidates(rng, len(query), len(rows), video.truths)
        overlap = best_overlap(found, video.truths)
        kept = choose_windows(rng, clip, rows, found, overlap, count)
        references.append(rows)
        windows.append(found[kept])
        overlaps.append(overlap[kept])
    return WindowList(
        clip,
        None if query_video is None else torch.from_numpy(query_video),
        references,
        windows,
        overlaps,
        config.target_temperature,
        background,
        seconds_per_step,
    )


def footage_list(
    seed: int, number: int, config: MatcherConfig, worlds: Sequence[FootageWorld]
) -> WindowList:
    """A list of drawn films: one person's action looked for in another's film, or among clips."""
    rng = generator(seed, "footage list", number)
    world = worlds[int(rng.integers(len(worlds)))]
    # A quarter of the channels: faster, and another backbone for every list.
    channels = rng.permutation(world.films[0].rows.shape[1])[::4]
    films = [replace(film, rows=film.rows[:, channels]) for film in world.films]
    own, other, *others = (films[n] for n in rng.permutation(len(films)))
    shared = sorted({a[0] for a in own.actions} & {a[0] for a in other.actions})
    label = shared[rng.integers(len(shared))]
    choices = [action for action in own.actions if action[0] == label]
    _, start, end = choices[rng.integers(len(choices))]
    # Of a rate that leaves the query a dozen steps, as in use, or a little more or less.
    stride = max(1, min(8, 2 ** round(np.log2((end - start) / rng.uniform(8, 24)))))
    if rng.random() < 0.3:
        moved = rng.uniform(-0.25, 0.25, size=2) * (end - start)
        start = int(np.clip(start + round(moved[0]), 0, end - 2 * stride))
        end = int(np.clip(end + round(moved[1]), start + 2 * stride, len(own.rows)))
    query, query_video = own.rows[start:end:stride].copy(), own.rows[start % stride :: stride]
    background = None
    if rng.random() < FOLDERS:
        clips = [(film, action) for film in (other, *others) for action in film.actions]
        clips = [clips[n] for n in rng.permutation(len(clips))]
        mates = [clip for clip in clips if clip[1][0] == label][: rng.integers(1, 4)]
        clips = mates + [clip for clip in clips if clip[1][0] != label][:9]
        videos = []
        for film, (name, first, last) in clips:
            rows = film.rows[first:last:stride].copy()
            truths = [[0, len(rows)]] if name == label else []
            videos.append(Scene(rows, np.array(truths, dtype=np.int64).reshape(-1, 2)))
        counts = [max(2, config.list_length // (4 if len(v.truths) else 8)) for v in videos]
        if rng.random() < 0.7:
            rows = np.concatenate([video.rows for video in videos])
            background = torch.from_numpy(rows.mean(axis=0))
    else:
        videos = [_subsampled(rng, film, label, stride) for film in (other, others[0])]
        counts = [config.list_length, config.far_proposals]
    video = None if rng.random() < 0.4 else query_video.copy()
    second = stride / world.rate if rng.random() < 0.8 else None
    return graded(rng, config, query, video, videos, counts, background, second)


def _subsampled(rng: np.random.Generator, film: Footage, label: int, stride: int) -> Scene:
    """Every so many rows of a film, or of a part of it that shows the action if the film does."""
    first, last = 0, len(film.rows)
    shown = [action for action in film.actions if action[0] == label]
    if rng.random() < 0.5:
        _, start, end = shown[0] if shown else film.actions[0]
        first, last = int(rng.integers(start + 1)), int(rng.integers(end, last + 1))
    rows = film.rows[first:last:stride].copy()
    spans = [(max(a, first) - first, min(b, last) - first) for _, a, b in shown]
    ends = [(round(a / stride), min(round(b / stride), len(rows))) for a, b in spans if b > a]
    truths = [(a, b) for a, b in ends if b > a]
    return Scene(rows, np.array(truths, dtype=np.int64).reshape(-1, 2))


def labelled_list(seed: int, number: int, config: MatcherConfig) -> WindowList:
    """A list as fine-tuning meets them: of windows that know nothing of the query's length.

    Actions of a class are a few sub-actions in any order; lengths differ by a factor of 2 to 7.
    """
    turn = number // SHARED * TURNS + number % TURNS
    drawn = WindowList.of(_labelled(seed, turn, config)[number % SHARED])
    if generator(seed, "bare", number).random() < 0.25:
        drawn = replace(drawn, query_video=None)
    return drawn


@lru_cache(maxsize=TURNS)
def _labelled(seed: int, number: int, config: MatcherConfig) -> ListDataset:
    """Lists of a simulated data set drawn from wide ranges."""
    rng = generator(seed, "labelled", number)
    u = rng.uniform
    channels = int(rng.choice([16, 32, 64, 128, 256]))
    core = int(rng.integers(1, 4))
    world = WorldConfig(
        seed=int(rng.integers(2**31)),
        channels=channels,
        nuisance_channels=min(int(channels * u(0.1, 0.5)), channels - 4),
        sub_actions_per_theme=10 if core == 1 else 6,
        core=core,
        core_shown=u(0.5, 1.0),
        optional_shown=u(0.1, 0.7),
        pace=u(1.2, 5.0),
        variation=u(0.1, 0.7),
        activity=u(0.0, 0.8),
        scene=u(0.0, 1.0),
        style=u(0.2, 2.0),
        drift=u(0.2, 1.6),
        drift_steps=u(4.0, 40.0),
        noise=u(0.3, 1.5),
        distractors=u(0.1, 0.9),
        partial=u(0.0, 0.6),
    )
    shortest = int(rng.choice([4, 6, 10]))
    usual = int(shortest * u(1.3, 2.5))
    longest = int(usual * u(1.5, 3.0))
    protocol = synthetic(
        SyntheticConfig(
            world=world,
            train_videos=6,
            val_videos=2,
            test_videos=2,
            shortest_reference=max(40, 2 * longest),
            longest_reference=max(130, int(longest * u(4.0, 10.0))),
            shortest_moment=shortest,
            usual_moment=usual,
            longest_moment=longest,
        )
    )
    if rng.random() < 0.3:  # of features only what stands out is left
        protocol = replace(protocol, features=Sparse(protocol.features, u(0.3, 1.2)))
    return ListDataset(
        protocol,
        num_samples=SHARED,
        seed=number,
        list_length=config.list_length,
        far_proposals=config.far_proposals,
        target_temperature=config.target_temperature,
    )


def draw_query(world: World) -> tuple[Rows, Rows]:
    """A query, maybe badly trimmed or filmed at another rate, and the video it was cut from."""
    rng = world.rng
    video = world.video(1)
    start, end = (int(step) for step in video.truths[0])
    if rng.random() < 0.35:
        moved = rng.uniform(-0.3, 0.3, size=2) * (end - start)
        start = int(np.clip(start + round(moved[0]), 0, end - 2))
        end = int(np.clip(end + round(moved[1]), start + 2, len(video.rows)))
    rows, query = video.rows, video.rows[start:end]
    if rng.random() < 0.12:
        speed = float(np.exp(rng.uniform(-0.7, 0.7)))
        query, rows = resampled(query, speed), resampled(rows, speed)
    return query, rows


def resampled(rows: Rows, speed: float) -> Rows:
    """Rows of the same footage played ``speed`` times as fast, at least two."""
    count = max(2, round(len(rows) / speed))
    place = (np.arange(count) + 0.5) * len(rows) / count - 0.5
    low = np.clip(np.floor(place).astype(np.int64), 0, len(rows) - 1)
    high = np.minimum(low + 1, len(rows) - 1)
    share = np.clip(place - low, 0, 1)[:, None].astype(np.float32)
    return (1 - share) * rows[low] + share * rows[high]


def same_footage(rng: np.random.Generator, query: Rows) -> Rows:
    """The query once more: re-encoded, dimmed, maybe at another speed."""
    speed = float(np.exp(rng.uniform(-0.7, 0.7))) if rng.random() < 0.5 else 1.0
    rows = resampled(query, speed) if speed != 1.0 else query
    noise = rng.normal(size=rows.shape) * rows.std() * rng.uniform(0.02, 0.35)
    gain = rng.uniform(0.6, 1.1) * (1 + 0.1 * rng.normal(size=rows.shape[1]))
    return (rows * gain + noise).astype(np.float32)


def candidates(
    rng: np.random.Generator, query_steps: int, num_steps: int, truths: np.ndarray
) -> Tensor:
    """Windows as they are met in use: of the query's length, of a grid, and finer ones."""
    shortest = max(2, round(query_steps * rng.uniform(0.15, 0.6)))
    longest = max(shortest + 1, min(num_steps, 6 * query_steps))
    lengths = [round(scale * query_steps) for scale in QUERY_SCALES]
    grids = [_grid(num_steps, length, 1) for length in lengths]
    lengths = geometric_lengths(shortest, longest, 1.4)
    grids += [_grid(num_steps, length, max(1, length // 3)) for length in lengths]
    windows = np.concatenate(grids)
    windows = windows[rng.permutation(len(windows))[:MOST]]
    for start, end in truths:
        share = rng.choice([0.04, 0.1, 0.25], size=(60, 1)) * (end - start)
        ends = np.rint(np.array([start, end]) + share * rng.normal(size=(60, 2))).astype(np.int64)
        windows = np.concatenate([windows, ends.clip(0, num_steps)])
    windows = windows[windows[:, 0] < windows[:, 1]]
    # One number a window: far faster to make unique than pairs.
    number = np.unique(windows[:, 0] * (num_steps + 1) + windows[:, 1])
    return torch.from_numpy(np.stack(np.divmod(number, num_steps + 1), axis=1)).float()


def _grid(num_steps: int, length: int, stride: int) -> np.ndarray:
    """Windows of one length."""
    length = min(max(length, 1), num_steps)
    start = np.arange(0, num_steps - length + 1, stride)
    return np.stack([start, start + length], axis=1)


def best_overlap(windows: Tensor, truths: np.ndarray) -> Tensor:
    """Overlap (tIoU, ``[M]``) of each window with the nearest truth."""
    if len(truths) == 0:
        return torch.zeros(len(windows))
    return tiou(windows[:, None], torch.from_numpy(truths)[None].float()).amax(dim=1)


def choose_windows(
    rng: np.random.Generator,
    query: Tensor,
    reference: Tensor,
    windows: Tensor,
    overlap: Tensor,
    count: int,
) -> Tensor:
    """Positions of windows for a list: near ones, those that a matcher would take, any."""
    near = choose_proposals(overlap, count, rng)
    if len(windows) <= count:
        return near
    tempting = []
    contrast = contrast_scores(step_similarity(query, reference), windows)
    for scores in (contrast, _diagonal(query, reference, windows)):
        scores[overlap > 0.3] = -torch.inf
        best = scores.topk(min(2 * count, int((overlap <= 0.3).sum()))).indices
        tempting.append(best[torch.from_numpy(rng.permutation(len(best)))[: count // 6]])
    picked = torch.cat(tempting)
    far = near[overlap[near] <= 0.3]
    dropped = far[torch.from_numpy(rng.permutation(len(far)))[: len(picked)]]
    kept = near[~torch.isin(near, dropped)]
    return torch.unique(torch.cat([kept, picked]))


def _diagonal(query: Tensor, reference: Tensor, windows: Tensor, places: int = 8) -> Tensor:
    """Mean cosine along the diagonals of windows, ``[M]``."""
    mean = reference.mean(dim=0)
    share = torch.arange(places) * 2 + 1
    table = cosines(query[share * len(query) // (2 * places)] - mean, reference - mean)
    whole = windows.long()
    steps = whole[:, :1] + share * (whole[:, 1:] - whole[:, :1]) // (2 * places)
    return table[torch.arange(places), steps].mean(dim=1)


def pretrain(
    config: PretrainConfig | None = None,
    network: MatcherConfig | None = None,
    folder: Path | None = None,
    log: Callable[[str], None] = print,
    report_every: int = 100,
    footage: Sequence[FootageWorld] = (),
) -> MultiGraphMatcher:
    """Train a matcher on worlds without end; how ``load_model("pretrained")`` was made.

    Args:
        config: How; the defaults where None.
        network: Shape of the network and of its lists; :data:`SHIPPED` where None.
        folder: Where the state is kept, and the result in ``best``: a run that was cut off goes on
            as if it had not been. None keeps nothing.
        log: Told of the progress.
        report_every: Steps between two reports, at which the state is kept.
        footage: Drawn films that a share of the lists, :data:`FILMED`, comes from.

    Returns:
        The moving average of the weights, in evaluation mode.

    Raises:
        CheckpointError: The state in the folder cannot be read.
        UsageError: The folder holds a run of other settings or other films.
    """
    config, network = config or PretrainConfig(), network or SHIPPED
    torch.manual_seed(config.seed)
    model = MultiGraphMatcher(**asdict(network))
    run = _Run(config, model, deepcopy(model).eval(), footage)
    if folder is not None:
        run.resume(folder / STATE)
    losses: list[float] = []
    began = time.process_time()
    for step in range(run.step, config.steps):
        losses.append(run.advance(step))
        if (step + 1) % report_every == 0 or step + 1 == config.steps:
            if folder is not None:
                run.keep(folder / STATE)
            mean = np.mean(losses[-report_every:])
            log(f"step {step + 1}: loss {mean:.3f}, {time.process_time() - began:.0f} s")
    if folder is not None:
        run.average.save(folder / "best")
    return run.average


def joined(models: Sequence[MultiGraphMatcher]) -> MultiGraphMatcher:
    """The matcher whose score is the mean of those of a few, in evaluation mode.

    The contrast of rows as they are is added as in the preset ``recommended``.

    Args:
        models: Of one shape, a network each.
    """
    assert isinstance(RECOMMENDED.network, MatcherConfig)
    contrast = RECOMMENDED.network.contrast
    settings = {**models[0].config(), "num_members": len(models), "contrast": contrast}
    whole = MultiGraphMatcher(**settings)
    for member, model in zip(whole.members, models, strict=True):
        member.load_state_dict(model.members[0].state_dict())
    return whole.eval()


class _Run:
    """Weights, their moving average and the optimiser between two steps."""

    def __init__(
        self,
        config: PretrainConfig,
        model: MultiGraphMatcher,
        average: MultiGraphMatcher,
        footage: Sequence[FootageWorld],
    ) -> None:
        self.config, self.model, self.average, self.footage = config, model, average, footage
        self.optimiser = torch.optim.Adam(
            model.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )
        self.step = 0

    def advance(self, step: int) -> float:
        """One step; it depends on what came before, the seed and its number alone."""
        config, model = self.config, self.model.train()
        rate = min(1.0, (step + 1) / max(config.warmup, 1))
        rate *= min(1.0, (config.steps - step) / max(config.decay * config.steps, 1))
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate * rate
        torch.manual_seed(config.seed * 1_000_003 + step)
        numbers = range(step * config.lists, (step + 1) * config.lists)
        lists = [draw_list(config.seed, n, model.settings, self.footage) for n in numbers]
        self.optimiser.zero_grad()
        loss = model.list_losses(lists)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm)
        self.optimiser.step()
        fresh = 1 - min(config.average, (step + 1) / (step + 10))
        with torch.no_grad():
            for kept, value in zip(self.average.parameters(), model.parameters(), strict=True):
                kept.lerp_(value, fresh)
        self.step = step + 1
        return float(loss.detach())

    def _settings(self) -> dict[str, Any]:
        settings = asdict(self.config) | self.model.config() | {"ks": list(self.model.settings.ks)}
        settings["footage"] = [[len(film.rows) for film in world.films] for world in self.footage]
        # Until the rate falls, how long the run will be has made no difference.
        if self.step <= (1 - self.config.decay) * self.config.steps:
            del settings["steps"]
        return settings

    def keep(self, file: Path) -> None:
        """Write all that :meth:`resume` needs."""
        file.parent.mkdir(parents=True, exist_ok=True)
        state = {name: getattr(self, name).state_dict() for name in PARTS}
        with replace_file(file) as temporary:
            torch.save({"step": self.step, "settings": self._settings(), **state}, temporary)

    def resume(self, file: Path) -> None:
        """Go on where :meth:`keep` left off, if it did."""
        if not file.exists():
            return
        try:
            state = torch.load(file, weights_only=True)
            self.step, settings = state["step"], {"footage": [], **state["settings"]}
            parts = [state[name] for name in PARTS]
        except Exception as error:  # torch raises whatever its readers meet
            raise CheckpointError(f"cannot be read ({error}); start afresh", file=file) from None
        if settings != self._settings():
            raise UsageError("holds a run of other settings: name another folder", file=file.parent)
        for name, part in zip(PARTS, parts, strict=True):
            getattr(self, name).load_state_dict(part)
