"""Settings of the two networks, and of systems of others. No torch is imported here."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from relocal_pyg.errors import UsageError, check_number, check_switch, shorten

#: Largest number among settings, and most entries of a list or layers of a stack: what a checkpoint
#: asks for stays small, and what can be trained can be read again.
LARGEST, MOST = 100_000, 64
_COUNT: dict[str, Any] = {"least": 1, "whole": True}
_SHARE, _WEIGHT = {"least": 0.0, "most": 1.0}, {"least": 0.0}
#: What :func:`relocal_pyg.errors.check_number` asks of a setting, whichever system it is of.
_RANGES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("in_channels", "hidden_channels", "head_channels", "feed_forward"), _COUNT),
    **dict.fromkeys(("num_members", "num_factors", "num_anchors"), _COUNT),
    "num_layers": {**_COUNT, "most": MOST},
    **dict.fromkeys(("num_steps", "min_steps", "max_steps", "stride", "num_points"), _COUNT),
    **dict.fromkeys(("num_moments", "num_reranked", "list_length", "heads", "slots"), _COUNT),
    **dict.fromkeys(("ks", "widths"), _COUNT),
    "far_proposals": {"least": 0, "whole": True},
    **dict.fromkeys(("dropout", "input_dropout", "encoder_dropout", "matching_dropout"), _SHARE),
    **dict.fromkeys(("blind", "nms_threshold"), _SHARE),
    **dict.fromkeys(("before", "after", "background", "context", "gamma"), _WEIGHT),
    **dict.fromkeys(("margin", "contrast"), {}),
    "target_temperature": {"above": 0},
    "paces": {"least": 0.1, "most": 10.0},
}
#: Settings that are true or false.
_SWITCHES = (
    "graph_conv",
    "mask_padding",
    "query_positions",
    "self_supervised",
    "reversal",
    "rerank",
)


def check_settings(settings: dict[str, Any], several: Iterable[str] = ()) -> dict[str, Any]:
    """Settings of a system by name: in range, as Python's own numbers, ``several`` as tuples.

    Raises:
        UsageError: One is out of range.
    """
    found, lists = dict(settings), set(several)
    for name in found.keys() & _SWITCHES:
        check_switch(found[name], name)
    for name in lists & found.keys():
        try:
            found[name] = tuple(found[name])
        except TypeError:
            given = shorten(found[name])
            raise UsageError(f"{name} is {given}, a list of numbers wanted") from None
        if not 1 <= len(found[name]) <= MOST:
            raise UsageError(f"{name} are {len(found[name])}: 1 to {MOST} wanted")
    for name, wanted in _RANGES.items():
        if found.get(name) is None:
            continue
        values = found[name] if name in lists else (found[name],)
        checked = [check_number(value, name, **{"most": LARGEST, **wanted}) for value in values]
        plain = [value if isinstance(value, int | float) else float(value) for value in checked]
        found[name] = tuple(plain) if name in lists else plain[0]
    return found


@dataclass(frozen=True)
class _Checked:
    """Settings in range: those of :func:`check_settings`."""

    def __post_init__(self) -> None:
        several = [each.name for each in fields(self) if isinstance(each.default, tuple)]
        for name, value in check_settings(vars(self), several).items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True)
class NetworkConfig(_Checked):
    """Shape of :class:`relocal_pyg.models.MultiGraphRelocalizer`, and its training; the paper's."""

    num_steps: int = 40
    """T: steps that a query and a proposal are brought to (section 4.2)."""
    ks: tuple[int, ...] = (1, 2, 3)
    """One graph per k: band of half-width k inside a video, comb of stride k across (4.3)."""
    num_layers: int = 2
    """L: cascaded multi-graph layers (section 4.5, best in Table 3)."""
    hidden_channels: int = 500
    """Width d of LSTM and layers."""
    graph_conv: bool = True
    """False replaces every graph convolution by a 1x1 convolution: "Ours (CNN)"."""
    weight: Literal["binary", "exponential", "laplacian"] = "binary"
    """Edge weights (section 4.4); the paper uses binary ones."""
    normalization: Literal["none", "mean", "sym"] = "none"
    """Of the sum over neighbours; the paper has none."""
    mask_padding: bool = False
    """Keep zero-padded steps out of edges and of the pool; the paper does not."""
    dropout: float = 0.4
    """Dropout on the LSTM outputs; the paper uses dropout and gives no rate."""
    head_channels: tuple[int, int] = (256, 64)
    """Widths inside the two heads; the paper does not give them."""
    negatives: Literal["class", "video"] = "class"
    """Triplet negatives: another class (the paper), or a poor proposal of the same reference."""
    margin: float = 0.5
    """gamma of the triplet loss."""


@dataclass(frozen=True)
class MatcherConfig(_Checked):
    """Shape of :class:`relocal_pyg.models.matcher.MultiGraphMatcher` and what it is trained on."""

    num_members: int = 2
    """Networks of the shape below, whose scores are averaged."""
    num_steps: int = 16
    """T: steps that a query and a window are brought to."""
    ks: tuple[int, ...] = (1, 2, 3)
    """One graph per k, as in the paper (section 4.3)."""
    num_layers: int = 2
    """Cascaded multi-graph layers (section 4.5)."""
    hidden_channels: int = 48
    """Width d of LSTM and layers."""
    graph_conv: bool = True
    """False replaces every graph convolution by a 1x1 convolution."""
    weight: Literal["binary", "exponential", "laplacian"] = "binary"
    """Edge weights (section 4.4)."""
    normalization: Literal["none", "mean", "sym"] = "mean"
    """Of the sum over neighbours."""
    paces: tuple[float, ...] = (1.0,)
    """The query is compared as it is and, in ranking, stretched by the others too; scores are
    averaged. Less is made of the query's own length; the time grows with their number."""
    context: float = 0.25
    """Share of a window's length that is shown on either side of it."""
    blind: float = 0.1
    """Share of training pairs whose head is told nothing of their kind: one never seen is still
    ranked."""
    head_channels: int = 64
    """Width inside the head."""
    contrast: float = 0.0
    """Logits for each unit of the contrast of rows and of smoothed rows as they are: what decides
    between windows that stand out so far that their standard scores are cut."""
    list_length: int = 36
    """Windows of one reference in a training list."""
    far_proposals: int = 12
    """Windows of another video that join a list, so that scores compare across videos."""
    target_temperature: float = 0.05
    """Divides the tIoUs that a list is trained towards."""


@dataclass(frozen=True)
class BaselineConfig:
    """A system of others, by the name of its class in :mod:`relocal_pyg.models`."""

    model: str
    """The class."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Its constructor's arguments, the width of the features aside."""
