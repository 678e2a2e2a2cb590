"""Recipes: train, put in a table, publish, many models on one protocol; resumable."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.utilities.rank_zero import rank_zero_only

from relocal_pyg import models
from relocal_pyg.data.items import Protocol
from relocal_pyg.data.pairs import PairList, make_null_pairs
from relocal_pyg.errors import CheckpointError, UsageError, ascii_line
from relocal_pyg.evaluation.few_shot import EpisodeList, Instances, draw_episodes, few_shot_table
from relocal_pyg.evaluation.few_shot import to_markdown as few_shot_markdown
from relocal_pyg.evaluation.report import write_report
from relocal_pyg.evaluation.run import check_protocol, evaluate
from relocal_pyg.evaluation.statistics import Estimate
from relocal_pyg.evaluation.tables import Comparison, compare, to_json, to_latex, to_markdown
from relocal_pyg.io.read import read_json
from relocal_pyg.io.record import sha256_file, sha256_json
from relocal_pyg.io.seeding import seed_torch
from relocal_pyg.io.write import own_folder, replace_text, write_json
from relocal_pyg.models.base import Relocalizer, TrainableRelocalizer, evaluating
from relocal_pyg.models.baselines.frame_level import FrameLevel
from relocal_pyg.models.calibrated import Calibrated
from relocal_pyg.models.checkpoint import Choice, load_model, load_weights, read_choice
from relocal_pyg.models.matcher import MultiGraphMatcher
from relocal_pyg.models.matchers import (
    CentreHalf,
    Chance,
    ContrastMatcher,
    CosineMatcher,
    DiagonalMatcher,
    FinerWindows,
    RandomMoment,
    WholeReference,
)
from relocal_pyg.models.multi_graph import MultiGraphRelocalizer
from relocal_pyg.models.network_config import BaselineConfig, MatcherConfig, NetworkConfig
from relocal_pyg.training.loop import FitResult, fit
from relocal_pyg.training.presets import PAPER, PRESETS, Preset, TrainingConfig
from relocal_pyg.training.validation import calibrate, calibrate_run
from relocal_pyg.training.validation import draw_pairs as draw_pairs

#: Validation pairs for the probabilities of a model that comes without.
CALIBRATION_PAIRS = 100
#: A network no wider than this computes in one thread, see :func:`spare_threads`.
_NARROW = 128

#: What of a run's record says how it was made, but for the seed.
_MADE = ("settings", "training", "from_scratch", "start", "data_sha256")
#: Settings of our network that say how it is trained, and fit weights of any training.
_TRAINED_ON = ("blind", "list_length", "far_proposals", "target_temperature")


@dataclass(frozen=True)
class System:
    """One row of a table: a name, how to build the model, and how to train it.

    Attributes:
        start: The system, of the same weights, that is trained first and whose end is the start.
    """

    title: str
    build: Callable[[int], TrainableRelocalizer]
    training: TrainingConfig
    start: System | None = None


@dataclass(frozen=True)
class Trained:
    """A trained model, the seed it was trained with and how training went.

    Attributes:
        title: Name in tables.
        seed: Seed of the training.
        model: With the weights that were kept.
        history: A record per validation.
        choice: What validation said of these weights, where it was kept.
        data_sha256: Fingerprint of the protocol that it was trained on, where it was kept.
        videos: Those that it was trained or validated on, likewise.
        made: Hash of how it was made, but for the seed.
    """

    title: str
    seed: int
    model: Relocalizer
    history: tuple[dict[str, float], ...] = ()
    choice: Choice | None = None
    data_sha256: str | None = None
    videos: frozenset[str] = frozenset()
    made: str = ""

    @classmethod
    def load(cls, run: str | Path, title: str | None = None, device: str = "cpu") -> Trained:
        """Read the kept weights, the seed and the history of a run folder.

        It is called ``title``, or by the model and the preset.

        Raises:
            CheckpointError: A file is missing or damaged.
        """
        facts = read_json(Path(run) / "run.json", CheckpointError)
        history = read_json(Path(run) / "history.json", CheckpointError)
        try:
            seed, preset = int(facts["seed"]), facts.get("preset", Path(run).name)
            data, videos = facts.get("data_sha256"), frozenset(facts.get("videos", ()))
            rows = tuple({**row, "step": float(row["step"])} for row in history)
            made = sha256_json([facts.get(name) for name in _MADE])
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = f"run.json or history.json is no record of a run ({error!r})"
            raise CheckpointError(reason, file=run) from None
        model = load_model(run)
        model.to(device)
        name = title or f"{model.title} ({preset})"
        return cls(name, seed, model, rows, read_choice(run), data, videos, made)

    @property
    def name(self) -> str:
        """Title and seed."""
        return f"{self.title}, seed {self.seed}"


def load_runs(runs: Sequence[str | Path], device: str = "cpu") -> list[Trained]:
    """Read runs that are to be compared; those alike in all but the seed have one title.

    Others that would have one are called by their folders as well.

    Raises:
        CheckpointError: As :meth:`Trained.load`.
    """
    trained = [Trained.load(run, device=device) for run in runs]
    folders = [Path(run).resolve().name for run in runs]
    named = []
    for run, folder, each in zip(runs, folders, trained, strict=True):
        alike = [other for other in trained if other.title == each.title]
        one_a_seed = len({other.seed for other in alike}) == len(alike)
        if not one_a_seed or len({other.made for other in alike}) > 1:
            title = f"{each.title}, {folder if folders.count(folder) == 1 else run}"
            each = replace(each, title=title)
        named.append(each)
    return named


def _check_trained(
    trained: Sequence[Trained], protocol: Protocol, split: str, videos: Iterable[str]
) -> None:
    """Refuse two of one name, and other features, before the work; warn of what was learned from.

    A split of the very protocol that was trained on may ask about such videos, and says so itself.
    """
    names = [each.name for each in trained]
    for name, each in zip(names, trained, strict=True):
        if names.count(name) > 1:
            reason = "two trained models have this title and seed: name them apart"
            raise UsageError(reason, record=name)
        each.model.check_width(protocol.features.dim, f"{name}: protocol {protocol.name}")
    asked, own = set(videos), {item.video_id for item in protocol.splits.get(split, ())}
    for each in trained:
        seen = asked & each.videos
        if each.data_sha256 == protocol.fingerprint:
            seen -= own
        if seen:
            warnings.warn(
                f"{each.name}: learned from {len(seen)} of the {len(asked)} videos that are asked "
                "about, which were no test videos when it was trained: its figures are too good",
                stacklevel=3,
            )


def table_one(preset: Preset) -> list[System]:
    """The systems of the paper's Table 1 that have weights, ours by the given preset, and MATR.

    Our network by the paper's own recipe is a row of its own where the preset is another one. MATR
    has three rows: trained on labels, on clips of the training videos alone without labels, and on
    labels after that.
    """
    systems = [_system("Ours", preset), _system("Ours (CNN)", preset, graph_conv=False)]
    if preset.name != PAPER.name:
        systems.insert(1, _system("Ours, the paper's recipe", PAPER))
    systems += [
        _system("Cross-gated bilinear matching", PRESETS["cross-gated"]),
        _system("AFT+SRM (reconstruction)", PRESETS["aft-srm"]),
        _system("SST", PRESETS["sst"]),
        _system("SST + cosine", PRESETS["sst"], rerank=True),
        _system("Video-level LSTM", PRESETS["video-level"]),
        _system("MATR", PRESETS["matr"]),
    ]
    alone = _system("MATR, pretrained only", PRESETS["matr"], self_supervised=True)
    return [*systems, alone, replace(systems[-1], title="MATR, pretrained and tuned", start=alone)]


def _system(title: str, preset: Preset, **changes: Any) -> System:
    network = preset.network
    if isinstance(network, BaselineConfig):
        network = replace(network, settings={**network.settings, **changes})
    else:
        network = replace(network, **changes)
    return System(
        title, lambda width: build_network(network, width, from_scratch=True), preset.training
    )


def ablation(preset: Preset, layers: Sequence[int], graphs: Sequence[int]) -> list[System]:
    """The grid of the paper's Table 3: n layers by graphs k = 1..K, and the CNN of each cell."""
    return [
        _system(
            f"n={layer}, k={graph}{'' if graph_conv else ', CNN'}",
            preset,
            num_layers=layer,
            ks=tuple(range(1, graph + 1)),
            graph_conv=graph_conv,
        )
        for layer in dict.fromkeys(layers)
        for graph in dict.fromkeys(graphs)
        for graph_conv in (True, False)
    ]


def edge_weights(preset: Preset) -> list[System]:
    """The three edge weights of section 4.4, the sum over neighbours as the paper has it."""
    # Laplacian weights are normalised already.
    return [
        _system(f"{kind} weights", preset, weight=kind, normalization="none")
        for kind in ("binary", "exponential", "laplacian")
    ]


def normalizations(preset: Preset) -> list[System]:
    """The sum over neighbours as it is, its mean, and the symmetric one, with binary weights."""
    return [
        _system(f"{kind} normalisation", preset, weight="binary", normalization=kind)
        for kind in ("none", "mean", "sym")
    ]


def train(
    protocol: Protocol,
    preset: Preset,
    out: str | Path,
    *,
    seed: int = 0,
    resume: bool = False,
    accelerator: str = "cpu",
    devices: int = 1,
    calibration_pairs: int | None = None,
    from_scratch: bool = False,
    start: Path | None = None,
    identity: dict[str, object] | None = None,
) -> FitResult:
    """Train the network of a preset and calibrate it; :meth:`Trained.load` reads the run.

    Arguments as of :func:`relocal_pyg.training.fit`; there are as many validation pairs for the
    probabilities as the preset has where None, training starts from random weights where
    ``from_scratch``, and from the kept weights of the run of ``start`` where given.

    Returns:
        What training came to; ``calibration`` says what came of calibrating.

    Raises:
        RelocalError: As :func:`relocal_pyg.training.fit`.
    """
    spare_threads(preset)
    # What training starts from, and step 0 of it, is decided here and nowhere else.
    seed_torch(seed, "weights")
    model = build_network(preset.network, protocol.features.dim, from_scratch=from_scratch)
    facts = {"preset": preset.name, "from_scratch": from_scratch, **(identity or {})}
    if start is not None:
        best = start / "best" if (start / "best").is_dir() else start
        try:
            load_weights(model, best)
        except CheckpointError as error:
            wanted = "weights of the same network, from features as wide, wanted to start from"
            reason = f"{error.reason}: {wanted}"
            raise CheckpointError(reason, file=error.file, record=error.record) from None
        facts["start"] = sha256_file(best / "model.safetensors")
    result = fit(
        model,
        protocol,
        config=preset.training,
        seed=seed,
        out=out,
        resume=resume,
        accelerator=accelerator,
        devices=devices,
        identity=facts,
    )
    if getattr(rank_zero_only, "rank", 0) != 0:
        return result
    limit = calibration_pairs or preset.training.max_validation_pairs
    return replace(result, calibration=calibrate_run(model, protocol, Path(out), limit=limit))


def train_all(
    systems: Sequence[System],
    protocol: Protocol,
    seeds: Sequence[int],
    folder: Path,
    *,
    steps: int | None = None,
    accelerator: str = "cpu",
) -> Iterator[Trained]:
    """Train each system with each seed, or load it where the same run was finished before.

    A run is named by a hash of its settings, its seed and the protocol's items and files; one that
    was interrupted goes on where it stopped. Training ends after ``steps`` at most, where given.
    """

    def finished(system: System, seed: int) -> Path:
        start = system.start and finished(system.start, seed)
        most = system.training.steps if steps is None else min(steps, system.training.steps)
        training = system.training.with_steps(most)
        seed_torch(seed, "weights")
        model = system.build(protocol.features.dim)
        facts = {
            "model": type(model).__name__,
            "config": model.config(),
            "training": asdict(training),
            "seed": seed,
            "data": data,
            **({"start": start.name} if start else {}),
        }
        run = folder / sha256_json(facts)[:16]
        if not (run / "finished.json").is_file():
            if start:
                load_weights(model, start / "best")
            print(ascii_line(f"{system.title}, seed {seed}: training in {run}"))
            ask = partial(fit, model, protocol, config=training, accelerator=accelerator)
            ask(seed=seed, out=run, resume=True)
            write_json(run / "finished.json", {"title": system.title, **facts})
        return run

    data = protocol.fingerprint
    for system in systems:
        for seed in dict.fromkeys(seeds):
            yield Trained.load(finished(system, seed), system.title, accelerator)


def draw_nulls(protocol: Protocol, pairs: PairList, limit: int | None = None) -> PairList:
    """References without the action for the queries of a pair list, or for some of them."""
    asked = {pair.query.item_id for pair in pairs.pairs}
    if pairs.split not in protocol.splits:  # a fixed list of others
        return replace(pairs, pairs=(), without_reference=())
    nulls = make_null_pairs(protocol, pairs.split)
    chosen = tuple(pair for pair in nulls.pairs if pair.query.item_id in asked)
    return replace(nulls, pairs=chosen).sample(limit)


def free_models(protocol: Protocol) -> dict[str, Relocalizer]:
    """What needs no training, by title.

    The contrast matcher is calibrated on validation pairs where there are enough.
    """
    matcher: Relocalizer = ContrastMatcher()
    with suppress(UsageError):  # too few validation pairs: scores alone are shown
        matcher = Calibrated(matcher, calibrate(matcher, protocol, limit=CALIBRATION_PAIRS))
    pretrained = MultiGraphMatcher.pretrained()
    free: list[Relocalizer] = [Chance(), FrameLevel(), CosineMatcher(), DiagonalMatcher(), matcher]
    free.append(FinerWindows(ContrastMatcher()))
    return {
        **{each.title: each for each in free},
        # Without labels, and judged by what chance gives on each reference, also without labels.
        f"{pretrained.title} (pretrained)": Calibrated(pretrained),
    }


def draw_questions(
    protocol: Protocol,
    split: str,
    shots: Sequence[int] = (1, 5),
    instances: Sequence[Instances] = ("single",),
    count: int = 1000,
) -> list[EpisodeList]:
    """Draw ``count`` episodes for each number of examples and kind of references."""
    return [
        draw_episodes(protocol, split, shots=number, count=count, instances=kind)
        for kind in dict.fromkeys(instances)
        for number in dict.fromkeys(shots)
    ]


def few_shot(
    protocol: Protocol, lists: Sequence[EpisodeList], trained: Sequence[Trained], folder: Path
) -> str:
    """Let every system answer the episodes of a split, write lists and table; it as markdown."""
    split = lists[0].split
    _check_trained(trained, protocol, split, (i.video_id for i in protocol.splits.get(split, ())))
    trivial = (WholeReference(), CentreHalf(), RandomMoment())
    asked: dict[str, Relocalizer] = {
        **{each.title: each for each in trivial},
        **free_models(protocol),
        **{each.name: each.model for each in trained},
    }
    with own_folder(folder, "evaluation") as folder:
        for episodes in lists:
            episodes.save(folder / f"episodes-{episodes.instances}-{episodes.shots}.json")
        rows = few_shot_table(asked, protocol, lists)
        plain = [
            {k: asdict(v) if isinstance(v, Estimate) else v for k, v in row.items()} for row in rows
        ]
        write_json(folder / "few_shot.json", plain)
        text = few_shot_markdown(rows)
        replace_text(folder / "few_shot.md", text)
    return text


def compare_trained(
    protocol: Protocol, pairs: PairList, trained: Sequence[Trained], max_nulls: int | None = None
) -> Comparison:
    """Put trained models, and those that need no training, in one table on a pair list.

    The contrast matcher is calibrated on validation pairs; trained models come calibrated, or are
    ranked by their scores alone: those pairs cost a big network more than the test does. There are
    at most ``max_nulls`` references without the action; one a pair where None.
    """
    check_protocol("the pair list", pairs.protocol, protocol)  # before anything is calibrated
    videos = (pair.reference.video_id for pair in pairs.pairs)
    _check_trained(trained, protocol, pairs.split, videos)
    nulls = draw_nulls(protocol, pairs, max_nulls)
    ask = partial(evaluate, protocol=protocol, pairs=pairs, nulls=nulls)
    rows = [ask(model, title=title) for title, model in free_models(protocol).items()]
    return compare(rows + [ask(each.model, title=each.title, seed=each.seed) for each in trained])


def publish(
    comparison: Comparison,
    pairs: PairList,
    folder: str | Path,
    protocol: Protocol,
    trained: Sequence[Trained] = (),
) -> Path:
    """Write a table in every form, its pair lists and every answer into a folder; the page.

    Answers that an earlier table left there are removed where this one has none of that name.
    Histories and graphs of trained models are pictured.

    Raises:
        OutputError: A file cannot be written, the folder holds something else, or another process
            writes it.
        UsageError: The table is of another pair list.
    """
    if pairs.sha256 != comparison.first.pairs_sha256:
        raise UsageError("the table is of another pair list: give the one that was asked")
    with own_folder(folder, "evaluation") as folder:
        pairs.save(folder / "pairs.json")
        asked = len(comparison.first_with_nulls.nulls)
        draw_nulls(protocol, pairs, asked).save(folder / "nulls.json")
        forms = {"results.md": to_markdown, "results.json": to_json, "results.tex": to_latex}
        for name, form in forms.items():
            replace_text(folder / name, form(comparison))
        taken: set[str] = set()
        stale = set((folder / "answers").glob("*/evaluation.json"))
        for title, evaluations in comparison.evaluations.items():
            for evaluation in evaluations:
                seed = "" if evaluation.seed is None else f"-seed{evaluation.seed}"
                # Titles that differ in signs alone have one slug.
                names = (f"{slug(title)}{seed}" + f"-{n}" * (n > 1) for n in count(1))
                name = next(each for each in names if each not in taken)
                taken.add(name)
                place = folder / "answers" / name
                evaluation.save(place)
                stale.discard(place / "evaluation.json")
        for file in stale:  # of models that this table has no row for, maybe on other pairs
            for name in ("evaluation.json", "metrics.json", "pairs.csv"):
                (file.parent / name).unlink(missing_ok=True)
            with suppress(OSError):  # somebody put something else there
                file.parent.rmdir()
        drawn = [graphs for each in trained if (graphs := getattr(each.model, "graphs", ()))]
        write_report(
            folder / "report.html",
            comparison,
            protocol,
            settings={
                each.name: f"{each.choice}; {each.choice.bought()}"
                for each in trained
                if each.choice is not None
            },
            histories={each.name: each.history for each in trained if each.history},
            graphs=drawn[0] if drawn else (),
            pairs=pairs,
        )
    return folder / "report.html"


def slug(title: str) -> str:
    """A title as a file name, of a length that every file system takes.

    Example:
        >>> slug("SST + cosine"), slug("***")
        ('sst-cosine', 'model')
    """
    words = "".join(c if c.isalnum() else " " for c in title.lower()).split()
    return "-".join(words).encode()[:100].decode(errors="ignore") or "model"


def spare_threads(preset: Preset) -> None:
    """Compute in one thread where the network is small and the user did not say otherwise.

    Small products gain nothing from a second thread, and on cores that others use too the threads
    wait for each other: the demonstration was then measured six times slower.
    """
    network = preset.network
    narrow = isinstance(network, BaselineConfig) or network.hidden_channels <= _NARROW
    if narrow and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def build_network(
    config: NetworkConfig | MatcherConfig | BaselineConfig,
    channels: int,
    *,
    from_scratch: bool = False,
) -> TrainableRelocalizer:
    """The network of a preset, with the weights that training starts from.

    Ours starts from the weights that come with the package, where they fit its settings; the
    paper's network has none.

    Raises:
        UsageError: The settings do not fit the network.
    """
    model: TrainableRelocalizer
    try:
        if isinstance(config, BaselineConfig):
            model = getattr(models, config.model)(channels, **config.settings)
        elif isinstance(config, NetworkConfig):
            model = MultiGraphRelocalizer.from_config(channels, config)
        else:
            model = MultiGraphMatcher.from_config(config)
            model.set_refinement("none")  # untrained, it is the contrast matcher
        # What is wrong with some settings shows in an answer alone.
        query, reference = torch.ones(4, channels), torch.ones(16, channels)
        with evaluating(model):
            answers = model.rank(query, reference, torch.tensor([[0.0, 4.0]]))
        if not torch.isfinite(answers.scores).all():
            raise ValueError("answers are not finite")
    except UsageError:
        raise
    except Exception as error:  # whatever the parts of a network make of them
        name = getattr(config, "model", "network")
        raise UsageError(f"{name}: the settings do not fit it ({error})") from None
    if isinstance(config, MatcherConfig) and not from_scratch:
        pretrained = MultiGraphMatcher.pretrained()
        told = {name: getattr(config, name) for name in _TRAINED_ON}
        if replace(pretrained.settings, **told) == config:
            model.load_state_dict(pretrained.state_dict())
    return model
