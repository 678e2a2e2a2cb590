"""Any device: a second one, made of tensors that say they are elsewhere, gives the same numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric.loader import DataLoader

from relocal_pyg.models import (
    AFTSRM,
    SST,
    Calibrated,
    ContrastMatcher,
    CosineMatcher,
    CrossGated,
    DiagonalMatcher,
    FinerWindows,
    FrameLevel,
    MultiGraphMatcher,
    MultiGraphRelocalizer,
    Relocalizer,
    VideoLevel,
)
from relocal_pyg.models.baselines.matr import MATR
from relocal_pyg.models.examples import ByExamples, Example
from relocal_pyg.models.occurrences import occurrences

F = 12  # of the planted protocol
THERE = torch.device("meta")  # tensors that say so hold numbers here
#: A GPU takes these from the CPU too: a copy, and whole numbers that index.
MIXED = {"aten::copy_", "aten::index", "aten::index_put", "aten::index_put_"}


class Elsewhere(Tensor):
    """A tensor on the second device; its numbers are in ``held``."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> Elsewhere:
        made = Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=THERE
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.held.tolist()


class Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


class Literals(TorchFunctionMode):
    """Numbers of Python become tensors below the reach of :class:`Operations`."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.new_tensor and isinstance(args[0], Elsewhere):
            return Elsewhere(args[0].held.new_tensor(*args[1:], **kwargs))
        if func in (torch.tensor, torch.as_tensor) and "device" in kwargs:
            made = func(*args, **{**kwargs, "device": None})
            return made if kwargs["device"] is None else made.to(kwargs["device"])
        if func is Tensor.__getitem__ and isinstance(args[0], Elsewhere):
            places = args[1] if isinstance(args[1], tuple) else (args[1],)
            places = (torch.tensor(each) if isinstance(each, list) else each for each in places)
            return func(args[0], tuple(places))
        return func(*args, **kwargs)


@contextlib.contextmanager
def second_device() -> Iterator[None]:
    """Inside, ``meta`` is a device that computes, and never meets the CPU."""
    with Literals(), Operations():
        yield


def here(each: Any) -> Any:
    return each.held if isinstance(each, Elsewhere) else each


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    pairs: list[tuple[Tensor, Tensor]] = []

    def bare(each: Any) -> Any:
        if isinstance(each, Tensor):
            pairs.append((each, here(each)))
            return pairs[-1][1]
        return type(each)(map(bare, each)) if isinstance(each, list | tuple) else each

    held = bare(args)
    options = {key: bare(value) for key, value in kwargs.items()}
    outside = [outer for outer, inner in pairs if outer is inner and outer.ndim > 0]
    there = any(outer is not inner for outer, inner in pairs)
    assert not any(each.device == THERE for each in outside), "a tensor without numbers"
    if there and outside and func._schema.name not in MIXED:
        raise AssertionError(f"{func} got tensors of two devices")
    if options.get("device") is not None:
        there, options["device"] = options["device"] == THERE, torch.device("cpu")
    out = func(*held, **options)
    if torch.Tag.inplace_view in func.tags:  # shapes of what says it is there change too
        with torch._C._DisableTorchDispatch():
            func(*args, **kwargs)

    def back(each: Any) -> Any:
        if isinstance(each, Tensor):  # what was changed in place is what it was
            known = [outer for outer, inner in pairs if inner is each]
            return known[0] if known else Elsewhere(each)
        return type(each)(map(back, each)) if isinstance(each, list | tuple) else each

    return back(out) if there else out


def moved(model: Relocalizer) -> Relocalizer:
    """A model whose weights are on the second device."""
    for module in model.modules() if isinstance(model, nn.Module) else ():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(Elsewhere(weight.detach().clone()))
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = Elsewhere(buffer.clone())
    return model


PAPER = {"hidden_channels": 6, "num_steps": 5, "head_channels": (6, 4), "dropout": 0.0}
TRAINED: dict[str, Callable[[], Any]] = {
    "ours, the paper's": lambda: MultiGraphRelocalizer(F, **PAPER),
    "ours, CNN": lambda: MultiGraphRelocalizer(F, **PAPER, graph_conv=False),
    "ours, masked": lambda: MultiGraphRelocalizer(
        F, **PAPER, mask_padding=True, normalization="sym"
    ),
    "ours, the matcher": lambda: MultiGraphMatcher(
        hidden_channels=6, num_steps=5, head_channels=4, blind=0.0
    ),
    "cross-gated": lambda: CrossGated(F, 6),
    "AFT+SRM": lambda: AFTSRM(F, 6, num_steps=6, widths=(4, 4, 4)),
    "SST": lambda: SST(F, 6),
    "SST + cosine": lambda: SST(F, 6, rerank=True),
    "video level": lambda: VideoLevel(F, 6),
    "MATR": lambda: MATR(F),
}
OTHERS: dict[str, Callable[[], Any]] = {
    "pretrained": MultiGraphMatcher.pretrained,
    "calibrated": lambda: Calibrated(CosineMatcher(), None),
    "contrast": ContrastMatcher,
    "cosine": CosineMatcher,
    "diagonal": DiagonalMatcher,
    "frame level": FrameLevel,
}
WINDOWS = torch.tensor([[0.0, 4.0], [3.0, 9.0], [6.0, 14.0]])


def test_the_second_device_is_one():
    x = torch.randn(3, 2)
    with second_device():
        there = x.to(THERE)
        assert there.device == THERE
        assert torch.equal((there @ there.T).cpu(), x @ x.T)
        assert torch.arange(3, device=THERE).tolist() == [0, 1, 2]
        there.mul_(2)[0] = 5
        assert there.cpu()[:, 0].tolist() == [5.0, *(2 * x[1:, 0]).tolist()]
        for wrong in (lambda: there + x, lambda: torch.cat([x, there]), lambda: there[0] @ x.T):
            with pytest.raises(AssertionError, match="two devices"):
                wrong()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in TRAINED | OTHERS if name != "ours, the matcher"])
def test_answers_are_those_of_the_cpu(name: str):
    """Weights elsewhere, inputs here: everything follows the weights, and the numbers stay."""
    torch.manual_seed(3)
    model = (TRAINED | OTHERS)[name]().eval() if name in TRAINED else OTHERS[name]()
    query, reference, video = torch.randn(4, F), torch.randn(14, F), torch.randn(16, F)
    inputs = query, reference, WINDOWS

    def answers() -> list[Any]:
        found = [model.rank(*inputs, query_video=video)]
        found += model.rankings(*inputs, query_video=video).values()
        found += model.rank_videos(query, [reference, video], [WINDOWS] * 2, query_video=video)
        kept = model.encode(reference, WINDOWS)
        tables = [model.explain(query, reference, (3.0, 9.0), video)] if joins else []
        if kept is not None:
            tables += [*kept, *model.score_encoded(query, *kept, WINDOWS)]
        where = {each.scores.device for each in found}
        values = [here(each) for one in found for each in (one.moments, one.scores)]
        assert where == {model.device or query.device}
        return values + [here(table) for table in tables]

    joins = name != "ours, CNN"
    wanted = answers()
    weights = getattr(model, "model", model)
    moved(weights)
    with second_device():
        found = answers()
        moments = model.localize(query, reference, proposals=WINDOWS, query_video=video)
    assert all(moment.end > moment.start for moment in moments)
    for one, other in zip(wanted, found, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pretrained", "contrast"])  # with weights, and without
def test_what_is_asked_may_be_there_too(name: str):
    """On the second device, or some of it: probabilities, further examples and all occurrences."""
    torch.manual_seed(6)
    model = OTHERS[name]()
    query, reference, video = torch.randn(4, F), torch.randn(14, F), torch.randn(16, F)

    def answers(query: Any, reference: Any, video: Any) -> list[Any]:
        others = [Example(query, video), Example(rows, None, good=False)]
        found = [
            Calibrated(asked).localize(query, reference, query_video=video)
            for asked in (model, FinerWindows(model), ByExamples(model, others))
        ]
        found += [occurrences(model, query, reference, query_video=video, least=0)[0]]
        said = attrgetter("start", "end", "score", "probability")
        # By place: which of two that are alike comes first is a matter of the last bits.
        return [value for some in found for each in sorted(map(said, some)) for value in each]

    rows = torch.randn(5, F)
    wanted = answers(query, reference, video)
    moved(getattr(model, "model", model))
    with second_device():
        there = [each.to(THERE) for each in (query, reference, video)]
        assert answers(*there) == pytest.approx(wanted, abs=1e-4)
        assert answers(query, reference, there[2]) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_training_losses_and_gradients_are_those_of_the_cpu(name: str, planted):
    protocol = planted([(2, 6), (4, 9), (5, 10)], length=12)
    torch.manual_seed(4)
    model = TRAINED[name]().train().double()
    dataset = model.training_set(protocol, num_samples=2, seed=0)
    batch = exact(next(iter(DataLoader(dataset, batch_size=2))))

    def gradients(batch: Any) -> list[Tensor]:
        torch.manual_seed(5)
        losses = model.training_losses(batch)
        losses["loss"].backward()
        used = [each.grad for each in model.parameters() if each.grad is not None]
        return [here(losses["loss"].detach()), *map(here, used)]

    wanted = gradients(batch)
    model.zero_grad()
    moved(model)
    with second_device():
        found = gradients(to(batch))
    for one, other in zip(wanted, found, strict=True):
        torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-3)


def exact(batch: Any) -> Any:
    if isinstance(batch, tuple | list):
        return type(batch)(map(exact, batch))
    return batch.apply(lambda each: each.double() if each.is_floating_point() else each)


def to(batch: Any) -> Any:
    """As the training loop moves batches."""
    if isinstance(batch, tuple | list):
        return type(batch)(map(to, batch))
    return batch.to(THERE)
