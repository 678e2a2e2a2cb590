"""Options of commands that read video files. No torch is imported before a function needs it."""

from __future__ import annotations

import dataclasses
import os
import stat
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TextIO,
    get_args,
    get_origin,
    get_type_hints,
)

import tyro

from relocal_pyg.errors import (
    CheckpointError,
    RelocalError,
    UsageError,
    ascii_line,
    check_number,
    shorten,
)
from relocal_pyg.io.read import parse_number, parse_time
from relocal_pyg.io.write import also_reads

if TYPE_CHECKING:
    from relocal_pyg.data.items import Protocol
    from relocal_pyg.models import Calibrated
    from relocal_pyg.models.base import Relocalizer
    from relocal_pyg.training.presets import Preset
    from relocal_pyg.video.backbones import Backbone


@dataclass(frozen=True)
class Output:
    """Marks a parameter of a command that names what is written; all other paths are read.

    Attributes:
        is_file: It is one file, locked from the beginning.
        folder: Kind of the folder that it is, held from the beginning; None where it is none.
        filled: It is a folder that files are put into, by one process at a time.
        may_stream: The file may be "-": the standard output then holds it and nothing else.
    """

    is_file: bool = False
    folder: str | None = None
    filled: bool = False
    may_stream: bool = False


#: A file that a command writes.
OUT_FILE = Output(is_file=True)

#: Options that are of video files.
OF_FILMS = "--rate, --workers, --backbone, --pool, --weights and --pca"

#: The words of the command line: they tell an option that was given as its default is.
TYPED: ContextVar[tuple[str, ...]] = ContextVar("typed", default=())

#: Where results go while what is said on the way goes to the standard error.
RESULTS: ContextVar[TextIO | None] = ContextVar("results", default=None)


def say(line: str) -> None:
    """Print a line; what names in it could do to a terminal is escaped."""
    print(ascii_line(line), flush=True)


class WrongArgument(RelocalError):
    """An argument cannot be understood; said in one line, and not in the parser's box.

    Attributes:
        word: The argument as it was typed.
    """

    def __init__(self, reason: str, word: str) -> None:
        super().__init__(reason)
        self.word = word


def number(metavar: str, *, time: bool = False, whole: bool = False, **bounds: float) -> Any:
    """How an option that is a number is read: checked where it enters.

    ``time`` takes ``h:mm:ss`` too, ``whole`` refuses fractions; bounds as of
    :func:`relocal_pyg.errors.check_number`.
    """

    def read(words: list[str]) -> float | None:
        word = words[0]
        if word == "None":
            return None
        try:
            value = parse_time(word, "") if time else parse_number(word)
            value = int(value) if whole and value == value // 1 else value
            return check_number(value, "", whole=whole, **bounds)
        except UsageError as error:
            raise WrongArgument(error.reason, word) from None

    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=read,
        is_instance=lambda value: isinstance(value, int | float) or value is None,
        str_from_instance=lambda value: [str(value)],
    )


#: Options that several commands share. Where a default may be None, "None" stands for it.
Seconds = Annotated[float | None, number("SECONDS", time=True, least=0, most=1e9)]
STEP_SECONDS = number("SECONDS", time=True, above=0, most=1e6)
StepSeconds = Annotated[float, STEP_SECONDS]
Rate = Annotated[float | None, number("HZ", above=0, most=1000)]
Count = Annotated[int, number("N", whole=True, least=1, most=1e9)]
Steps = Annotated[int | None, number("N", whole=True, least=1, most=1e9)]
Natural = Annotated[int, number("N", whole=True, least=0, most=2**63 - 1)]
Probability = Annotated[float | None, number("P", least=0, most=1)]

#: Models that are named, not found in a folder.
NAMED = ("pretrained", "contrast")
Model = Annotated[
    Path | None, tyro.conf.arg(aliases=["--matcher"], metavar="{RUN,pretrained,contrast}")
]


def check_places(value: Any, *, is_option: bool) -> None:
    """Refuse what a command cannot read before anything heavy is loaded.

    Such as paths that do not exist, also inside tuples and groups of options, and pipes and
    devices, which could hang. The text of an option is no place.
    """
    if isinstance(value, str) and not is_option:
        paths = [Path(value if os.path.lexists(value) else split_place(value)[0])]
    else:
        paths = [] if isinstance(value, str) else list(paths_of(value))
    for path in paths:
        if str(path) in NAMED:
            continue
        try:
            mode = path.stat().st_mode
        except FileNotFoundError:
            raise UsageError("does not exist", file=path) from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise UsageError(f"cannot be read ({reason})", file=path) from None
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UsageError("is neither a file nor a folder", file=path)


def split_place(place: str) -> tuple[str, str]:
    """A file, and which of its videos where FILE::ID says so; a file of that name comes first."""
    if "\0" in place:  # JSON and tables may hold it
        raise UsageError("is no name of a file", file=place)
    parts = place.split("::")
    files = ["::".join(parts[:number]) for number in (len(parts), *range(1, len(parts)))]
    file = next(filter(os.path.exists, files), place.rpartition("::")[0] or place)
    return file, place[len(file) + 2 :]


def same_video(first: str, second: str) -> bool:
    """Whether two places are one file, and one video of it."""
    (file, video_id), (other, other_id) = split_place(first), split_place(second)
    return video_id == other_id and os.path.realpath(file) == os.path.realpath(other)


def is_features(place: str) -> bool:
    """Whether a place names features rather than a video file.

    Example:
        >>> is_features("x.npy"), is_features("features.h5::v_1"), is_features("x.mp4")
        (True, True, False)
    """
    return place.endswith(".npy") or split_place(place)[1] != ""


def paths_of(value: Any) -> Iterator[Path]:
    """Every path in what a command was given: paths, names of files, options with fields."""
    if isinstance(value, Path):
        yield value
    elif isinstance(value, str):
        yield from (Path(each) for each in {value, split_place(value)[0]} if os.path.exists(each))
    elif isinstance(value, tuple | list):
        for each in value:
            yield from paths_of(each)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from paths_of(getattr(value, field.name))


ProtocolName = Literal[
    "synthetic", "custom", "anet-vrl", "anet12-80-10-10", "thumos14-14-6", "simulated-anet-vrl"
]


@dataclass(frozen=True)
class DataOptions:
    """Which data, split how.

    Attributes:
        protocol: The data set and its split; "custom" is any HDF5 of features with annotations.
            "synthetic" where nothing is said of the data.
        root: Folder with the data set's own files (annotations, lists).
        features: HDF5 file of features; features.h5 inside --root where left out.
        annotations: Annotation file: CSV, ActivityNet JSON, or of ELAN, BORIS, VIA, Label Studio
            (see "relocal convert"); annotations.json inside --root where left out (anet12-80-10-10:
            activity_net.v1-2.json; anet-vrl needs none, its times are steps without one).
        proposals: Proposal list in the released format; sliding windows where left out.
        subsample: Use every SUBSAMPLE-th step of the file: 2 for the published C3D features of
            anet-vrl.
        key: Name of the feature array inside a video's group; features or c3d_features if left out.
        unseen_classes: custom: how many classes to keep out of training and test apart.
        holdout: custom: what training and test never share.
        background: custom: label that is never an action.
        seconds_per_step: custom: duration of a step; each video's duration divided by its steps
            where left out.
        split_seed: Seed of the split, where the protocol draws one.
        clip: custom: cut actions that leave their video at its borders instead of setting them
            aside.
        strict: Stop at the first bad record instead of setting it aside.
    """

    protocol: ProtocolName | None = None
    root: Path | None = None
    features: Path | None = None
    annotations: Path | None = None
    proposals: Path | None = None
    subsample: Count = 1
    key: str | None = None
    unseen_classes: Natural = 0
    holdout: Literal["subject", "video"] = "video"
    background: str = "background"
    seconds_per_step: Seconds = None
    split_seed: Natural = 0
    clip: bool = False
    strict: bool = False


#: What each protocol heeds beside --protocol; "custom" all.
_HEEDED = {
    None: ("split_seed",),
    "synthetic": ("split_seed",),
    "simulated-anet-vrl": ("root", "annotations"),
    "anet-vrl": ("root", "features", "annotations", "subsample", "key"),
    "anet12-80-10-10": (
        *("root", "features", "annotations", "proposals", "subsample", "key", "split_seed"),
    ),
    "thumos14-14-6": ("root", "features", "proposals", "subsample", "key", "split_seed"),
}


def load_protocol(options: DataOptions) -> Protocol:
    """Open the protocol that the options name; one that it does not heed is an error."""
    every = [field.name for field in dataclasses.fields(options)]
    heeded = _HEEDED.get(options.protocol, every)
    for field in dataclasses.fields(options)[1:]:
        if field.name not in heeded and getattr(options, field.name) != field.default:
            named = f"--{field.name.replace('_', '-')}"
            if options.protocol is None:
                raise UsageError(f"{named} needs --protocol: custom for data of your own")
            raise UsageError(f"the protocol {options.protocol} has no {named}: leave it out")
    if options.protocol in (None, "synthetic"):
        from relocal_pyg.datasets.synthetic import SyntheticConfig, synthetic

        usual = SyntheticConfig()
        world = dataclasses.replace(usual.world, seed=options.split_seed)
        return synthetic(dataclasses.replace(usual, world=world))
    also_reads(paths_of(options))  # a run may have named them
    if options.root is None and (options.protocol != "custom" or options.features is None):
        raise UsageError(f"--root is needed for the protocol {options.protocol}")
    root = options.root or Path()
    if options.protocol == "simulated-anet-vrl":
        from relocal_pyg.datasets.simulation import simulated_anet_vrl

        return simulated_anet_vrl(root, options.annotations)
    from relocal_pyg.data.features import FeatureStore
    from relocal_pyg.datasets import anet12, anet_vrl, thumos14

    path = options.features or root / "features.h5"
    features = FeatureStore(path, key=options.key, subsample=options.subsample)
    if options.protocol == "custom":
        from relocal_pyg.data.annotations import Quarantine
        from relocal_pyg.datasets.custom import custom

        same = ("proposals", "unseen_classes", "holdout", "background", "seconds_per_step", "clip")
        quarantine = Quarantine(strict=options.strict)
        protocol = custom(
            features,
            options.annotations or root / "annotations.json",
            seed=options.split_seed,
            quarantine=quarantine,
            **{name: getattr(options, name) for name in same},
        )
        if quarantine.records:
            print(quarantine.summary())
        return protocol
    if options.protocol == "anet-vrl":
        return anet_vrl(root, features, options.annotations)
    seed, proposals = options.split_seed, options.proposals
    if options.protocol == "anet12-80-10-10":
        annotations = options.annotations or root / "activity_net.v1-2.json"
        return anet12(annotations, features, seed=seed, proposals=proposals)
    return thumos14(root, features, seed=seed, proposals=proposals)


def describe(options: DataOptions) -> dict[str, Any]:
    """The options as plain values, for a run's record; paths are made absolute."""
    plain = {
        key: str(value.resolve()) if isinstance(value, Path) else value
        for key, value in dataclasses.asdict(options).items()
    }
    return {**plain, "protocol": options.protocol or "synthetic"}


def restore(record: dict[str, Any], file: Path) -> DataOptions:
    """The options that :func:`describe` recorded in a file.

    Raises:
        CheckpointError: One of them is none, or of another kind.
    """
    hints = get_type_hints(DataOptions)
    for name, value in record.items():
        hint = hints.get(name)
        kinds = get_args(hint) if type(None) in get_args(hint) else (hint,)
        if not any(value in get_args(kind) for kind in kinds if get_origin(kind) is Literal):
            kind = {str: (str, Path), int: (int, float)}.get(type(value), (type(value),))
            if not {*kind} & {*kinds}:
                raise CheckpointError(f"{name} {shorten(value)!r} is no data", file=file)
    places = {name for name in hints if Path in get_args(hints[name]) and record.get(name)}
    return DataOptions(**{**record, **{name: Path(record[name]) for name in places}})


PresetName = Literal["recommended", "paper"]
SystemName = Literal["recommended", "paper", "matr", "cross-gated", "aft-srm", "sst", "video-level"]
Precision = Literal["32", "bf16-mixed", "auto"]


def choose_preset(
    name: str, steps: int | None, precision: Precision | None = None, changes: tuple[str, ...] = ()
) -> Preset:
    """A preset with the settings that the command line overrides."""
    from relocal_pyg.training.presets import PRESETS

    preset = PRESETS[name].changed(changes)
    training = preset.training.with_steps(steps)
    if precision is not None:
        training = dataclasses.replace(training, precision=precision)
    return dataclasses.replace(preset, training=training)


DeviceName = Literal["auto", "cpu", "cuda", "mps"]


def pick_device(name: DeviceName) -> str:
    """Where networks run; "auto" is cuda where there is one, else cpu (mps lacks operations)."""
    import torch

    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return "cuda" if there["cuda"] else "cpu"
    if not there.get(name, True):
        raise UsageError(f"there is no {name} device here: leave --device out")
    return name


@dataclass(frozen=True)
class BackboneOptions:
    """Which network turns frames into features.

    Attributes:
        backbone: Network: efficientnet-lite0-max, whose weights come with the extra "video"
            (without "-max" it gives means over the picture, as runs and indexes of before want
            them); c3d; timm:NAME, hf:REPO and openclip:ARCH/TAG of the hub, @REVISION behind it, or
            a folder in their place; py:package.module:object; or what an installed package brings.
        pool: timm:, hf:: what is made of the maps or tokens of a picture; what the model makes of
            them itself where left out.
        weights: c3d: file of its published weights (.pickle, .pt, .pth or .safetensors).
        pca: Project the features by a PCA that relocal_pyg.video.fit_pca fitted and saved.
    """

    backbone: str = "efficientnet-lite0-max"
    pool: Literal["max", "mean"] | None = None
    weights: Path | None = None
    pca: Path | None = None

    @classmethod
    def of(cls, record: dict[str, Any]) -> BackboneOptions:
        """The options that :meth:`plain` gave; the usual ones where it gave nothing."""
        if not record:
            return cls()
        name, pool = str(record["backbone"]), record.get("pool")
        if name.startswith("py:"):
            raise UsageError(f"the backbone was {name!r}: name it with --backbone to run its code")
        if pool not in ("max", "mean", None):
            raise UsageError(f"the pooling {pool!r} is not known to this version")
        paths = (None if record[k] is None else Path(record[k]) for k in ("weights", "pca"))
        return cls(name, pool, *paths)

    def plain(self) -> dict[str, str | None]:
        """The options as plain values, for a record; paths are made absolute."""
        kind, colon, place = self.backbone.partition(":")
        if colon and Path(place).is_dir():
            place = str(Path(place).resolve())
        places = (self.weights, self.pca)
        weights, pca = (None if path is None else str(path.resolve()) for path in places)
        name = kind + colon + place
        return {"backbone": name, "pool": self.pool, "weights": weights, "pca": pca}


def load_backbone(options: BackboneOptions, device: DeviceName = "auto") -> Backbone:
    """Build the network that the options name, on a device."""
    from relocal_pyg.video.pca import PCA

    network: Backbone
    place = pick_device(device)
    also_reads(paths_of([options, options.backbone.partition(":")[2]]))  # a run may have named them
    if options.backbone == "c3d":
        from relocal_pyg.video.c3d import C3D

        if options.weights is None:
            raise UsageError("c3d needs --weights: its published weights are not in this package")
        network = c3d = C3D()
        c3d.load_weights(options.weights)
        c3d.to(place)
    elif options.weights is not None:
        raise UsageError(f"{options.backbone} brings its own weights: leave --weights out")
    elif options.backbone in ("efficientnet-lite0-max", "efficientnet-lite0") and not options.pool:
        from relocal_pyg.video.backbones import EfficientNetLite0

        pool: Literal["max", "mean"] = "max" if options.backbone.endswith("-max") else "mean"
        network = EfficientNetLite0(device=place, pool=pool)
    else:
        from relocal_pyg.video.named import load_named

        network = load_named(options.backbone, options.pool, place)
    return network if options.pca is None else PCA.load(options.pca).after(network)


def describe_extraction(
    options: BackboneOptions, backbone: Backbone, rate_hz: float
) -> dict[str, Any]:
    """What a run records of how its videos were turned into features, as plain values."""
    return {"backbone": backbone.name, "rate_hz": rate_hz, "network": options.plain()}


#: What is said of the weights that come with this package, and where no model was asked for.
SHIPPED, UNNAMED = "pretrained (simulated worlds, no labels", "; no --model given"


def choose_matcher(
    model: Path | None, device: DeviceName = "auto", usual: str = "contrast"
) -> tuple[Calibrated, str]:
    """The model to search with, ``usual`` where None, and words that say which one and why.

    A run whose validation spoke for the training-free matcher is answered by the matcher. What
    comes without a calibration is judged by what chance gives on the reference.
    """
    from relocal_pyg.models import Calibrated

    given = "" if model else UNNAMED
    matcher, why = _chosen(Path(usual) if model is None else model, device, given)
    return matcher if isinstance(matcher, Calibrated) else Calibrated(matcher), why


def _chosen(model: Path, device: DeviceName, given: str) -> tuple[Relocalizer, str]:
    from relocal_pyg.models import Calibrated, ContrastMatcher, load_model

    if str(model) == "contrast":
        return ContrastMatcher(), f"{ContrastMatcher.title} (no training needed{given})"
    if str(model) in NAMED:
        shipped = load_model(model).to(pick_device(device))
        return shipped, f"{shipped.title}, {SHIPPED}{given})"
    from relocal_pyg.models.calibrated import FILE, read_confidence
    from relocal_pyg.models.checkpoint import read_choice

    loaded, choice = load_model(model), read_choice(model)
    loaded.to(pick_device(device))
    if choice is None:
        return loaded, f"{loaded.title}, from {model}"
    if choice.use_matcher:
        # A checkpoint named by itself (RUN/best) is used whatever validation said.
        matcher: Relocalizer = ContrastMatcher()
        confidence = read_confidence(model / FILE).get("matcher")
        if confidence is not None:
            matcher = Calibrated(matcher, confidence)
        return matcher, f"{ContrastMatcher.title}, not {model}: {choice}"
    return loaded, f"{loaded.title}, from {model}: {choice}"


def load_network(
    options: BackboneOptions,
    rate_hz: float | None,
    run: Path | None,
    model: Relocalizer | None,
    device: DeviceName = "auto",
) -> tuple[Backbone, float | None]:
    """The network for the videos of a search, and the frames per second.

    A model that "relocal train --videos" trained has to see features made as those it learned from:
    where the options say nothing, its run does. ``run`` is None for a model that is in no folder,
    and ``model`` for one that takes any width. The rate is the user's, else the run's, else None.
    """
    record = None if run is None or str(run) in NAMED else _recorded_extraction(run)
    if record is None:
        backbone = load_backbone(options, device)
    else:
        said = options != BackboneOptions()
        name, rate, recorded = record
        backbone = load_backbone(options if said else recorded, device)
        if backbone.name != name:
            raise UsageError(
                f"was trained on features of {name}, this is {backbone.name}"
                + (": leave --backbone, --pool, --weights and --pca out" if said else ""),
                file=run,
            )
        rate_hz = rate if rate_hz is None else rate_hz
    if model is not None:
        model.check_width(backbone.dim, backbone.name, run)
    return backbone, rate_hz


def _recorded_extraction(run: Path) -> tuple[str, float, BackboneOptions] | None:
    """Name, rate and options that :func:`describe_extraction` recorded; None without a record."""
    from relocal_pyg.io.read import read_json

    files = [folder / "run.json" for folder in (run, run.parent)]
    file = next((file for file in files if file.is_file()), None)
    if file is None:
        return None
    record = read_json(file, CheckpointError)
    try:
        made = record.get("features")
        if made is None:
            return None
        name, rate_hz = str(made["backbone"]), float(made["rate_hz"])
        if not (made["network"] and rate_hz > 0):
            raise ValueError
        return name, rate_hz, BackboneOptions.of(made["network"])
    except RelocalError as error:
        raise CheckpointError(error.reason, file=file) from None
    except (AttributeError, KeyError, TypeError, ValueError):
        raise CheckpointError("does not say how its features were made", file=file) from None
