from __future__ import annotations

import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
import torch

from relocal_pyg.data.items import Protocol
from relocal_pyg.datasets.synthetic import SyntheticConfig, synthetic
from relocal_pyg.io.tensors import read_tensors
from relocal_pyg.models import MultiGraphRelocalizer
from relocal_pyg.models.base import TrainableRelocalizer
from relocal_pyg.training import TrainingConfig, fit, loop
from relocal_pyg.training.loop import Interrupts


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_the_block(number):
    def handler(*details: object) -> None:
        raise KeyboardInterrupt

    done: list[str] = []

    def block() -> None:
        with Interrupts() as interrupts:
            with interrupts.held():
                os.kill(os.getpid(), number)
                done.append("whole")
            done.append("never")

    def loop() -> None:
        with Interrupts():
            os.kill(os.getpid(), number)
            done.append("never")

    before = {each: signal.signal(each, handler) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        for stopped in (block, loop):
            with pytest.raises(KeyboardInterrupt):
                stopped()
            assert done == ["whole"]
            assert signal.getsignal(number) is handler
    finally:
        for each, old in before.items():
            signal.signal(each, old)


def test_an_error_inside_the_block_wins_over_a_signal():
    def block() -> None:
        with Interrupts() as interrupts, interrupts.held():
            os.kill(os.getpid(), signal.SIGINT)
            raise ValueError

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(ValueError):
            block()
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_are_left_alone():
    before, seen = signal.getsignal(signal.SIGINT), []

    def work() -> None:
        with Interrupts() as interrupts, interrupts.held():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def interrupt_at(monkeypatch, owner: object, name: str, call: int) -> None:
    """Ctrl-C in the middle of a call of a function: after its work, before its caller goes on."""
    real, calls = getattr(owner, name), []

    def spoilt(*arguments: object, **options: object) -> object:
        calls.append(1)
        result = real(*arguments, **options)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    monkeypatch.setattr(owner, name, spoilt)


@pytest.fixture(scope="module")
def protocol(short_videos) -> Protocol:
    sizes = {"train_classes": 3, "val_classes": 2, "test_classes": 1}
    videos = {"train_videos": 3, "val_videos": 2, "test_videos": 2}
    return synthetic(SyntheticConfig(**sizes, **videos, **short_videos))


def run(protocol: Protocol, folder: Path) -> bytes:
    """Train from where a run in the folder is; the weights at its end and the best."""
    torch.manual_seed(0)
    model = MultiGraphRelocalizer(protocol.features.dim, hidden_channels=4, num_steps=4)
    config = TrainingConfig(
        batch_size=2, steps=6, learning_rate=1e-2, validate_every=2, max_validation_pairs=2
    )
    fit(model, protocol, config=config, out=folder, resume=True, show_progress=False)
    return b"".join((folder / each / "model.safetensors").read_bytes() for each in ("last", "best"))


@pytest.fixture(scope="module")
def wanted(protocol: Protocol, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return run(protocol, tmp_path_factory.mktemp("whole"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [
        (torch.optim.Adam, "step", 3),
        (loop, "validate", 1),
        (loop, "validate", 2),
        (TrainableRelocalizer, "save", 1),
        (loop, "save_state", 1),
    ],
)
def test_a_run_interrupted_inside_a_step_or_a_validation_ends_the_same(
    protocol, wanted, tmp_path, monkeypatch, owner, name, call
):
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupt_at(monkeypatch, owner, name, call)
        with pytest.raises(KeyboardInterrupt):
            run(protocol, tmp_path)
        monkeypatch.undo()
        assert run(protocol, tmp_path) == wanted
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_a_signal_that_comes_while_workers_start_is_not_lost(protocol, tmp_path):
    armed = [True]

    def after_fork() -> None:  # what is raised in here is dropped by Python
        if armed:
            armed.clear()
            os.kill(os.getpid(), signal.SIGINT)

    config = TrainingConfig(batch_size=2, steps=4, max_validation_pairs=2, num_workers=1)
    model = MultiGraphRelocalizer(protocol.features.dim, hidden_channels=4, num_steps=4)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    os.register_at_fork(after_in_parent=after_fork)
    try:
        with pytest.raises(KeyboardInterrupt):
            fit(model, protocol, config=config, out=tmp_path, show_progress=False)
    finally:
        armed.clear()
        signal.signal(signal.SIGINT, before)


@pytest.mark.slow
def test_an_interrupted_load_is_an_interrupt(tmp_path):
    def handler(*details: object) -> None:
        raise KeyboardInterrupt

    MultiGraphRelocalizer(8, hidden_channels=4, num_steps=4).save(tmp_path / "saved")
    file = tmp_path / "saved" / "model.safetensors"
    started = time.perf_counter()
    read_tensors(file)
    length, rng, outcomes = time.perf_counter() - started, random.Random(0), set()
    before = signal.signal(signal.SIGALRM, handler)
    try:
        for _ in range(300):
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-5, length))
                read_tensors(file)
                signal.setitimer(signal.ITIMER_REAL, 0)
                outcomes.add("loaded")
            except KeyboardInterrupt:
                outcomes.add("interrupted")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert "interrupted" in outcomes
