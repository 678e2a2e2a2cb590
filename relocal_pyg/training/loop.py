"""The training loop: every trainable model, one loop."""

from __future__ import annotations

import contextlib
import io
import json
import math
import signal
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch_geometric.loader import DataLoader
from tqdm import tqdm

from relocal_pyg.data.items import Protocol
from relocal_pyg.data.pairs import PairList
from relocal_pyg.errors import CheckpointError, RelocalError, RunError, UsageError
from relocal_pyg.evaluation.run import environment
from relocal_pyg.io.read import read_json
from relocal_pyg.io.record import verify_manifest
from relocal_pyg.io.seeding import seed_torch
from relocal_pyg.io.write import own_folder, replace_folder, sweep, write_json
from relocal_pyg.models.base import TrainableRelocalizer
from relocal_pyg.models.checkpoint import Choice, load_weights
from relocal_pyg.models.matchers import ContrastMatcher
from relocal_pyg.nn.products import FastProducts
from relocal_pyg.training.presets import TrainingConfig
from relocal_pyg.training.validation import (
    draw_pairs,
    paired_gain,
    passed,
    selection_score,
    validate,
)


class Interrupts:
    """Puts signals off while something that must not stop half-way is under way.

    An optimiser that was interrupted between two parameters, or before the step was counted, would
    leave a checkpoint from which a resumed run ends elsewhere. Used as a context manager around
    the loop, and :meth:`held` around what must be whole. Only signals that have a Python handler
    are put off, and only in the main thread; elsewhere nothing changes.
    """

    def __init__(self) -> None:
        self._before: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._held = False
        self._waiting: tuple[int, FrameType | None] | None = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handler = signal.getsignal(number)
                if callable(handler):
                    self._before[number] = handler
                    signal.signal(number, self._arrived)
        return self

    def __exit__(self, *details: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Run a block to its end; a signal that arrived meanwhile is handled then."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._waiting is not None:
            (number, frame), self._waiting = self._waiting, None
            self._before[number](number, frame)

    def _arrived(self, number: int, frame: FrameType | None) -> None:
        if self._held:
            self._waiting = number, frame
        else:
            self._before[number](number, frame)


def learning_rate_factor(step: int, config: TrainingConfig) -> float:
    """Share of the full learning rate at a step: linear warm-up, then constant or a cosine to 0.

    Example:
        >>> learning_rate_factor(0, TrainingConfig(warmup=4, steps=8)), \
learning_rate_factor(6, TrainingConfig(steps=12, decay=True))
        (0.25, 0.5)
    """
    if step < config.warmup:
        return (step + 1) / config.warmup
    if not config.decay:
        return 1.0
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def choose_precision(name: str, accelerator: str) -> tuple[str, str]:
    """The arithmetic of forward and backward, and why.

    bfloat16 pays where the processor multiplies it itself; elsewhere it is emulated and slower.

    Args:
        name: ``"32"``, ``"bf16-mixed"``, or ``"auto"`` to look at the processor.
        accelerator: Lightning Fabric's name of the device kind.

    Returns:
        ``"32"`` or ``"bf16-mixed"``, and the reason in words.
    """
    if name != "auto":
        return name, "asked for"
    if accelerator in ("cuda", "gpu") or (accelerator == "auto" and torch.cuda.is_available()):
        short = torch.cuda.is_bf16_supported(including_emulation=False)
        device = torch.cuda.get_device_name()
    else:
        able = torch.cpu.get_capabilities()
        short = bool(able.get("avx512_bf16") or able.get("amx_bf16"))
        device = str(able.get("cpu_name", "this processor"))
    if short:
        return "bf16-mixed", f"{device} multiplies bfloat16 itself"
    return "32", f"{device} does not multiply bfloat16 itself"


@dataclass
class Progress:
    """Counters and history of a run; plain values only, kept as JSON.

    Attributes:
        step: Optimiser steps done.
        best_step: Step of the best validation so far.
        best_score: Its validation score, see :func:`validate`.
        highest: The highest validation score so far, kept or not.
        stale: Validations since then.
        shares: What each validation pair passes (:func:`passed`) by the ``"start"``, and by the
            ``"trained"`` weights that were kept, or the best of those that were not.
        history: One record per validation and per logged step.
    """

    step: int = 0
    best_step: int = -1
    best_score: float = -1.0
    highest: float = -1.0
    stale: int = 0
    shares: dict[str, list[float]] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)


def save_state(
    folder: Path,
    model: TrainableRelocalizer,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    identity: dict[str, Any],
) -> None:
    """Write weights, optimiser and counters as one checkpoint folder, all or nothing.

    ``identity`` is what must be equal for the run to be resumed (settings, seed, protocol).

    Raises:
        OutputError: The folder cannot be written; the old one is intact.
    """
    with replace_folder(folder, "checkpoint") as temporary:
        model.write(temporary)
        packed = io.BytesIO()  # torch reports a full disk as a RuntimeError, a file does not
        torch.save({"optimizer": optimizer.state_dict()}, packed)
        (temporary / "state.pt").write_bytes(packed.getbuffer())
        record = {"progress": vars(progress), "identity": identity}
        (temporary / "progress.json").write_text(json.dumps(record), encoding="utf-8")


def load_state(
    folder: Path,
    model: TrainableRelocalizer,
    optimizer: torch.optim.Optimizer,
    identity: dict[str, Any],
) -> Progress:
    """Restore what :func:`save_state` wrote.

    Raises:
        CheckpointError: Damaged, or written by a run with other settings (the first one is named).
    """
    verify_manifest(folder, "checkpoint")
    file = folder / "progress.json"
    record = read_json(file, CheckpointError)
    try:
        saved = dict(record["identity"])
        saved.setdefault("data_sha256", identity.get("data_sha256"))  # version 0.2 did not say
        progress = Progress(**record["progress"])
        kinds = {name: type(value) for name, value in vars(Progress()).items()}
        sound = all(isinstance(value, kinds[name]) for name, value in vars(progress).items())
        if not sound or not all(isinstance(row["step"], int | float) for row in progress.history):
            raise ValueError("a counter is of another type")
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"is no record of a run ({error})", file=file) from None
    for key, value in json.loads(json.dumps(identity)).items():
        before = saved.get(key)
        if before == value:
            continue
        if isinstance(before, dict) and isinstance(value, dict):  # settings: the one that differs
            key = next(n for n in before | value if before.get(n) != value.get(n))
            before, value = before.get(key), value.get(key)
        raise CheckpointError(
            f"was written with {key} = {before!r}, this run has {value!r}: "
            "use another output folder",
            file=folder,
            record="progress.json",
        )
    load_weights(model, folder)
    try:
        state = torch.load(folder / "state.pt", map_location="cpu", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
    except Exception as error:  # torch raises whatever its readers meet
        reason = f"cannot be read ({error}); start afresh"
        raise CheckpointError(reason, file=folder / "state.pt") from None
    return progress


@dataclass(frozen=True)
class FitResult:
    """What training came to.

    Attributes:
        history: A record per validation: step, losses, scores.
        folder: The run folder, or None where nothing was written.
        choice: The weights that were kept, their start and the training-free matcher; kept in
            ``choice.json``.
        calibration: What came of calibrating, in one line; :func:`fit` does not.
    """

    history: list[dict[str, float]]
    folder: Path | None
    choice: Choice
    calibration: str = ""

    @property
    def best_step(self) -> int:
        """Step whose weights were kept; 0 means that no training beat the start."""
        return self.choice.step

    @property
    def best_score(self) -> float:
        """Its validation score."""
        return self.choice.trained


def fit(
    model: TrainableRelocalizer,
    protocol: Protocol,
    *,
    config: TrainingConfig,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    accelerator: str = "cpu",
    devices: int = 1,
    show_progress: bool = True,
    identity: dict[str, Any] | None = None,
) -> FitResult:
    """Train a model, keep the weights that validate best, and leave them in the model.

    Step 0 is a candidate like any other. Where a model answers sensibly before it is trained
    (``starts_informed``: pretrained weights, or a prior), other weights are kept only where they
    beat step 0 by more than chance: the lower end of the paired 95 % interval of the gain over
    validation videos is above zero.

    The run folder holds ``run.json``, ``val_pairs.json``, ``history.json``, ``choice.json``, a
    TensorBoard log where tensorboard is installed, and two checkpoints: ``last`` to resume from and
    ``best`` to use. An interrupt (Ctrl-C) waits for the end of a step and writes ``last`` before it
    is passed on. A resumed run ends with the same weights as one that was never interrupted.

    Args:
        model: Any trainable model.
        protocol: Its ``"train"`` split is trained on and its ``"val"`` split selects the weights.
        config: Optimisation settings.
        seed: Names the stream of samples and of dropout masks.
        out: Run folder; nothing is written where None.
        resume: Go on from ``out/last`` where it exists.
        accelerator: Lightning Fabric's name of the device kind: ``"cpu"``, ``"cuda"``, ``"auto"``.
        devices: How many devices; more than one trains data-parallel, a share of each batch on
            each, and gives the weights of one device to rounding, but for dropout (each device
            draws its own) and batch normalisation, which sees its device's share.
        show_progress: Show a progress bar.
        identity: Further facts that must agree for a run to be resumed.

    Raises:
        CheckpointError: ``out/last`` is damaged or of other settings, or there without ``resume``.
        UsageError: There are no training items or validation pairs, or the batch does not divide
            over the devices.
        FeatureError: The features are of another width than the model's.
        RunError: The loss or its gradient stopped being finite; ``last`` holds weights from before.
    """
    folder = None if out is None else Path(out)
    model.check_width(protocol.features.dim, f"protocol {protocol.name}")
    if not protocol.splits.get("train"):
        raise UsageError("no training items: the split 'train' is empty or missing")
    facts = {
        "model": type(model).__name__,
        "settings": model.config(),
        "training": asdict(config),
        "seed": seed,
        "protocol": protocol.name,
        "data_sha256": protocol.fingerprint,
        **(identity or {}),
    }
    pairs = draw_pairs(protocol, "val", config.max_validation_pairs)
    if not pairs.pairs:
        raise UsageError("no validation pairs: the split needs a class with two videos or more")
    facts["val_pairs"] = pairs.sha256
    precision, reason = choose_precision(config.precision, accelerator)
    facts["precision"] = precision
    fabric = Fabric(
        accelerator=accelerator,
        devices=devices,
        strategy="ddp_find_unused_parameters_true" if devices > 1 else "auto",
        precision="bf16-mixed" if precision == "bf16-mixed" else "32-true",
    )
    fabric.launch()
    if config.precision == "auto" and fabric.is_global_zero:
        print(f"precision: {precision} ({reason})")
    optimizer = torch.optim.Adam(
        model.parameter_groups(config.learning_rate, config.offset_learning_rate),
        weight_decay=config.weight_decay,
    )
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    progress = Progress()
    with contextlib.nullcontext() if folder is None else own_folder(folder, "run"):
        if folder is not None:
            if fabric.is_global_zero:
                _open_run(folder, resume, facts, pairs, protocol)
            fabric.barrier()
            if (folder / "last").is_dir():
                progress = load_state(folder / "last", model, optimizer, facts)
        loop = _Loop(
            model, protocol, config, seed, folder, fabric, optimizer, progress, pairs, facts
        )
        loop.run(show_progress)
        choice = _choose(progress, protocol, pairs)
    if folder is not None and fabric.is_global_zero:
        choice.save(folder)
    return FitResult(progress.history, folder, choice)


def _choose(progress: Progress, protocol: Protocol, pairs: PairList) -> Choice:
    matcher = validate(ContrastMatcher(), protocol, pairs.pairs)
    gain = None
    if "trained" in progress.shares:
        trained, start = progress.shares["trained"], progress.shares["start"]
        found = paired_gain(trained, start, pairs.pairs)
        gain = (found.value, found.low, found.high)
    return Choice(
        progress.best_score,
        max(map(selection_score, matcher.values())),
        progress.best_step,
        len(pairs),
        len({pair.reference.video_id for pair in pairs.pairs}),
        gain,
    )


@dataclass
class _Loop:
    """State of one call of :func:`fit`."""

    model: TrainableRelocalizer
    protocol: Protocol
    config: TrainingConfig
    seed: int
    folder: Path | None
    fabric: Fabric
    optimizer: Any
    progress: Progress
    pairs: PairList
    facts: dict[str, Any]

    def __post_init__(self) -> None:
        self.module, self.optimizer = self.fabric.setup(self.model, self.optimizer)
        self.module.mark_forward_method("training_losses")
        self.model.ranks = self.fabric.world_size
        self.best: dict[str, torch.Tensor] | None = None
        self.losses: dict[str, list[float]] = defaultdict(list)
        self.verbose = False
        self.interrupts = Interrupts()

    def run(self, show_progress: bool) -> None:
        """Train until the last step or until validation stops improving."""
        config, progress = self.config, self.progress
        self.verbose = show_progress and self.fabric.is_global_zero
        log = _open_log(self.folder, progress.step) if self.fabric.is_global_zero else None
        bar = tqdm(
            total=config.steps,
            initial=progress.step,
            # Bars are for terminals; a log file gets one line a validation instead.
            disable=None if self.verbose else True,
            desc=self.model.title,
            unit="step",
        )
        try:
            with self.interrupts:
                if self._validation_due():  # before the first step, or left out by an interrupt
                    self._validate(log)
                for batch in self._batches():
                    if config.patience and progress.stale >= config.patience:
                        break
                    with self.interrupts.held():
                        self._step(batch)
                    bar.update()
                    bar.set_postfix(loss=f"{self.losses['loss'][-1]:.3g}", val=progress.best_score)
                    if self._validation_due():
                        self._validate(log)
                        self._save()
        except KeyboardInterrupt:
            self._save()
            raise
        except RelocalError as error:
            raise _own(error) from None
        finally:
            self.model.ranks = 1
            bar.close()
            if log is not None:
                log.close()
        self._save()
        if self.best is not None:
            self.model.load_state_dict(self.best)
        elif self.folder is not None:
            self.fabric.barrier()
            load_weights(self.model, self.folder / "best")
        self.model.eval()

    def _validation_due(self) -> bool:
        step, history = self.progress.step, self.progress.history
        due = step % self.config.validate_every == 0 or step == self.config.steps
        return due and not (history and history[-1]["step"] == step)

    def _batches(self) -> Iterator[Any]:
        config, fabric = self.config, self.fabric
        dataset = self.model.training_set(
            self.protocol, num_samples=config.steps * config.batch_size, seed=self.seed
        )
        share = config.batch_size // fabric.world_size
        if share * fabric.world_size != config.batch_size:
            raise UsageError(
                f"batch size {config.batch_size} does not divide over {fabric.world_size} devices"
            )
        first = fabric.global_rank * share
        numbers = [
            range(step * config.batch_size + first, step * config.batch_size + first + share)
            for step in range(self.progress.step, config.steps)
        ]
        loader = DataLoader(dataset, batch_sampler=numbers, num_workers=config.num_workers)
        with self.interrupts.held():  # Python drops what a signal raises while workers are forked
            batches = iter(loader)
        yield from map(fabric.to_device, batches)

    @torch.enable_grad()  # whoever calls may be without
    def _step(self, batch: Any) -> None:
        config, step = self.config, self.progress.step
        seed_torch(self.seed, "step", step, self.fabric.global_rank)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * learning_rate_factor(step, config)
        self.module.train()
        self.optimizer.zero_grad(set_to_none=True)
        with FastProducts():
            losses = self.module.training_losses(batch)
        finite = torch.isfinite(losses["loss"].detach()).float()
        # Every process stops, or none: one that went on alone would wait for the others for ever.
        if self.fabric.all_reduce(finite, reduce_op="mean") != 1:
            self._give_up("loss")
        self.fabric.backward(losses["loss"])
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        if not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
            self._give_up("gradient")
        if config.clip_norm:
            self.fabric.clip_gradients(self.module, self.optimizer, max_norm=config.clip_norm)
        self.optimizer.step()
        self.progress.step += 1
        for name, value in losses.items():
            self.losses[name].append(float(value.detach()))

    def _give_up(self, what: str) -> NoReturn:
        # The forward pass may have reached the running statistics; the last checkpoint is sound.
        if all(bool(torch.isfinite(value).all()) for value in self.model.state_dict().values()):
            self._save()
        raise RunError(
            f"the {what} is not finite at step {self.progress.step}: lower the learning rate, or "
            "look for extreme values in the features with 'relocal check'"
        )

    def _validate(self, log: Any) -> None:
        found = validate(self.model, self.protocol, self.pairs.pairs, self.fabric)
        with self.interrupts.held():
            self._record(found, log)

    def _record(self, found: dict[str, Tensor], log: Any) -> None:
        progress = self.progress
        scores = {way: selection_score(overlaps) for way, overlaps in found.items()}
        way = self._way(found, scores)
        score = scores[way]
        record = {"step": float(progress.step)}
        record |= {name: sum(values) / len(values) for name, values in self.losses.items()}
        record["val_score"] = score
        record |= {f"val_refined_by_{name}": value for name, value in scores.items()}
        self.losses.clear()
        progress.history.append(record)
        if self.verbose:
            loss = f"loss {record['loss']:.4g}, " if "loss" in record else ""
            ways = ", ".join(f"{name} {value:.3f}" for name, value in scores.items())
            said = f"validation {score:.3f} (refined by {ways})"
            tqdm.write(f"step {progress.step}: {loss}{said}")
        if log is not None:
            for name, value in record.items():
                log.add_scalar(name, value, progress.step)
        shares = passed(found[way]).tolist()
        progress.stale += 1
        if score > progress.highest:
            progress.highest, progress.stale = score, 0
        so_far = progress.shares.get("trained", [-1.0])
        better = score > progress.best_score
        if progress.step and self.model.starts_informed:  # by more than chance
            better = better and self._is_ahead(shares, progress.shares["start"])
        if progress.step == 0:
            progress.shares["start"] = shares
        elif better or (progress.best_step == 0 and sum(shares) > sum(so_far)):
            progress.shares["trained"] = shares
        if better:
            progress.best_score, progress.best_step = score, progress.step
            self.model.set_refinement(way)
            if self.folder is None:
                state = self.model.state_dict()
                self.best = {key: value.clone() for key, value in state.items()}
            elif self.fabric.is_global_zero:
                self.model.save(self.folder / "best")

    def _way(self, found: dict[str, Tensor], scores: dict[str, float]) -> str:
        """The best way to refine; an informed start leaves its own only for more than chance."""
        best = max(scores, key=lambda name: scores[name])  # of equal ones what refines least
        own = self.model.refinement
        if self.progress.step or not self.model.starts_informed or own == "none":
            return best
        ours, usual = (passed(found[way]).tolist() for way in (best, own))
        return best if self._is_ahead(ours, usual) else own

    def _is_ahead(self, ours: list[float], others: list[float]) -> bool:
        return (paired_gain(ours, others, self.pairs.pairs).low or 0.0) > 0

    def _save(self) -> None:
        if self.folder is None or not self.fabric.is_global_zero:
            return
        save_state(self.folder / "last", self.model, self.optimizer, self.progress, self.facts)
        write_json(self.folder / "history.json", self.progress.history)


def _open_run(
    folder: Path, resume: bool, facts: dict[str, Any], pairs: PairList, protocol: Protocol
) -> None:
    sweep(folder / "last")  # puts back what a killed writer had moved aside
    if (folder / "last").is_dir():
        if not resume:
            raise CheckpointError(
                "this folder already holds a run: pass --resume to go on, or another folder",
                file=folder,
            )
        return
    if (folder / "choice.json").is_file():  # written at the end
        reason = "holds a finished run, whose 'last' is gone: give another folder"
        raise CheckpointError(reason, file=folder)
    pairs.save(folder / "val_pairs.json")
    about = json.loads(json.dumps(protocol.about))
    seen = (item.video_id for split in ("train", "val") for item in protocol.splits[split])
    record = {"about": about, "environment": environment(), "videos": sorted(set(seen))}
    write_json(folder / "run.json", {**facts, **record})


def _own(error: RelocalError) -> RelocalError:
    """An error of ours as it was raised; a ``DataLoader`` worker wraps it in its traceback."""
    kind = type(error)
    before, mark, message = error.reason.rpartition(f"{kind.__module__}.{kind.__qualname__}: ")
    return kind(message) if mark and before.startswith("Caught ") else error


def _open_log(folder: Path | None, step: int) -> Any:
    if folder is None:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # tensorboard is an extra; history.json holds the same numbers
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=step)
