"""One results table, and its forms as text, Markdown, JSON and LaTeX; HTML is in the report."""

from __future__ import annotations

import html
import json
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, NamedTuple

import torch

from relocal_pyg.errors import UsageError, ascii_line
from relocal_pyg.evaluation.metrics import SHOWN, above
from relocal_pyg.evaluation.results import (
    Evaluation,
    PresenceRow,
    estimate_scores,
    presence_rows,
    score_runs,
)
from relocal_pyg.evaluation.run import replay
from relocal_pyg.evaluation.statistics import Estimate, bootstrap_interval
from relocal_pyg.models.matchers import (
    CentreHalf,
    Chance,
    ContrastMatcher,
    RandomMoment,
    WholeReference,
)

#: Predictors that look at no content: rows of their own group.
TRIVIAL = (WholeReference.title, CentreHalf.title, RandomMoment.title, Chance.title)
#: Name of the row that no ranking of the proposals can beat before refinement.
ORACLE = "Proposal oracle"


@dataclass(frozen=True)
class Row:
    """One line of a results table.

    Attributes:
        title: Name of the model.
        kind: ``"model"``, ``"trivial"`` or ``"oracle"``.
        scores: Every score with its interval, named as :func:`estimate_scores` names them.
        num_pairs: Pairs behind each score.
        seeds: Training seeds averaged.
        seconds: Median time to rank one reference; None where nothing was timed.
        reconstructed: Whether the model was rebuilt without its source.
        behind: mAP@1 at 0.5 minus that of the leading model on the same pairs; None for the leader
            and for the oracle.
        gain: mAP@1 at 0.5 minus that of the training-free contrast matcher on the same pairs; None
            for itself, for the oracle, and where it was not asked.
    """

    title: str
    kind: Literal["model", "trivial", "oracle"]
    scores: dict[str, Estimate]
    num_pairs: int
    seeds: tuple[int, ...] = ()
    seconds: float | None = None
    reconstructed: bool = False
    behind: Estimate | None = None
    gain: Estimate | None = None


@dataclass(frozen=True)
class Comparison:
    """Models, trivial predictors and the proposal oracle on one pair list.

    Attributes:
        rows: Models by falling mAP@1 at 0.5, then trivial predictors likewise, then the oracle.
        evaluations: What the rows are made of, by title; one entry a training seed.
        presence: How well models tell references that hold the action from others; empty where no
            model met others.
    """

    rows: tuple[Row, ...]
    evaluations: dict[str, tuple[Evaluation, ...]]
    presence: tuple[PresenceRow, ...] = ()

    @property
    def first(self) -> Evaluation:
        """One of the evaluations: all share protocol, split and pairs."""
        return next(iter(self.evaluations.values()))[0]

    @property
    def first_with_nulls(self) -> Evaluation:
        """The first evaluation that met references without the action, or :attr:`first`."""
        runs = (run for group in self.evaluations.values() for run in group if run.nulls)
        return next(runs, self.first)

    @property
    def oracle(self) -> Row:
        """The row of the proposal oracle."""
        return self.rows[-1]

    @property
    def leader(self) -> Row:
        """The first row."""
        return self.rows[0]

    def header(self) -> str:
        """One line: what was tested on what."""
        first, scores = self.first, self.oracle.scores
        seeds = sorted({seed for row in self.rows for seed in row.seeds})
        trained = ", ".join(map(str, seeds)) if seeds else "none"
        return (
            f"{first.protocol}, split {first.split}: N = {len(first)} pairs "
            f"from {len(set(first.clusters))} videos; pair list {first.pairs_sha256[:12]} "
            f"(seed {first.pairs_seed}, exclude {first.exclude}); seeds of the models {trained}; "
            f"{first.proposals_per_reference:.1f} proposals per reference, oracle mAP@1 "
            f"{100 * scores['mAP@1@0.5'].value:.1f} at .5, "
            f"{100 * scores['mAP@1@0.7'].value:.1f} at .7"
        )

    def footnotes(self) -> list[str]:
        """What a reader has to know to read the table."""
        lines = [
            "mAP@1: share of queries whose best answer has a tIoU above the threshold, in percent; "
            "avg_mAP@1: its mean over .5, .6, .7, .8, .9; mIoU: mean tIoU in percent.",
            "±: half the 95 % bootstrap interval, resampling the references' source videos; "
            "not shown where all pairs pass or none.",
            "all@5: share of a reference's true moments that its first five answers meet, averaged "
            "over pairs; R@5: share of pairs in which they meet one.",
            "gain: mAP@1 at .5 minus that of the training-free contrast matcher, pair by pair.",
            "before: mAP@1 at .5 of the same answers before boundary refinement, - where nothing "
            "is refined. s/query: median seconds to rank one reference, features already read.",
            f"{ORACLE}: always the best proposal; only refinement can go beyond it.",
            "Features, split and pairs differ from those of Zhou et al. (arXiv 2007.09877): "
            "not comparable with the tables printed there.",
        ]
        if any(len(row.seeds) > 1 for row in self.rows):
            lines.insert(
                2,
                "A model with several seeds is averaged over them; its interval resamples seeds "
                "and source videos, independently of each other.",
            )
        if any(row.reconstructed for row in self.rows):
            lines.append("†: rebuilt from its description, without the authors' code.")
        missing = sum(record.num_proposals == 0 for record in self.first.records)
        if missing:
            lines.append(f"{missing} of the pairs have no proposals and count as misses.")
        if self.first.about.get(f"{self.first.split}_from") == "all videos":
            lines.append(
                "Training videos are among the videos of this split: its classes occur in too few "
                "others. Their actions were seen in training as background."
            )
        unasked = self.first.settings.get("queries_without_reference", 0)
        if unasked:
            lines.append(f"{unasked} further queries have no reference and are not scored.")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """All of it but the answers themselves, for JSON."""
        first = self.first
        return {
            "protocol": first.protocol,
            "split": first.split,
            "pairs": len(first),
            "pairs_sha256": first.pairs_sha256,
            "pairs_seed": first.pairs_seed,
            "exclude": first.exclude,
            "source_videos": len(set(first.clusters)),
            "proposals_per_reference": first.proposals_per_reference,
            "AR@AN": {str(budget): value for budget, value in first.average_recall.items()},
            "rows": [asdict(row) for row in self.rows],
            "presence": [asdict(row) for row in self.presence],
            "footnotes": self.footnotes(),
            "environment": first.environment,
            "about": first.about,
        }


def compare(evaluations: Sequence[Evaluation], *, samples: int = 1000, seed: int = 0) -> Comparison:
    """Put models in one table, always with trivial predictors and the proposal oracle beside them.

    Evaluations of one title are runs of one model with different training seeds. Their mean is
    given; its interval resamples runs and source videos independently of each other. Differences
    to the leading model are paired: the same pairs, averaged over seeds, resampled by source video.

    Raises:
        UsageError: There is none, pair lists differ, or one title has a seed twice.
    """
    _check_same_pairs(evaluations)
    first = evaluations[0]
    runs: dict[str, list[Evaluation]] = {}
    for evaluation in evaluations:
        runs.setdefault(evaluation.title, []).append(evaluation)
    for title, group in runs.items():
        seeds = [run.seed for run in group]
        if len(set(seeds)) < len(seeds):
            raise UsageError(f"seeds {seeds}: give each run its own seed or title", record=title)
    timed = list(runs)
    for model in (WholeReference(), CentreHalf(), RandomMoment()):
        if model.title not in runs:
            runs[model.title] = [replay(model, first)]
    rows = [_row(group, title in timed, samples, seed) for title, group in runs.items()]
    rows.sort(key=_place)
    leader, matcher = runs[rows[0].title], runs.get(ContrastMatcher.title)
    rows = [
        replace(
            row,
            behind=_difference(runs[row.title], leader, samples, seed),
            gain=_difference(runs[row.title], matcher, samples, seed),
        )
        for row in rows
    ]
    limit = estimate_scores(first.oracle_tious[None], first.clusters, samples=samples, seed=seed)
    rows.append(Row(title=ORACLE, kind="oracle", scores=limit, num_pairs=len(first)))
    return Comparison(
        rows=tuple(rows),
        evaluations={title: tuple(group) for title, group in runs.items()},
        presence=presence_rows({title: runs[title] for title in timed}, samples=samples, seed=seed),
    )


def _check_same_pairs(evaluations: Sequence[Evaluation]) -> None:
    if not evaluations:
        raise UsageError("nothing to compare: give at least one evaluation")
    for evaluation in evaluations[1:]:
        for name in ("protocol", "split", "pairs_sha256"):
            here, there = getattr(evaluation, name), getattr(evaluations[0], name)
            if here != there:
                raise UsageError(
                    f"{name} {here} is not {there} of {evaluations[0].title}: evaluate both on "
                    "the same pairs",
                    record=evaluation.title,
                )
        if len(evaluation) != len(evaluations[0]):
            raise UsageError("the number of pairs differs", record=evaluation.title)
    if len({each.nulls_sha256 for each in evaluations if each.nulls}) > 1:
        raise UsageError("the lists of references without the action differ: use one")


def _row(group: list[Evaluation], timed: bool, samples: int, seed: int) -> Row:
    first = group[0]
    times = [record.seconds for run in group for record in run.records]
    return Row(
        title=first.title,
        kind="trivial" if first.title in TRIVIAL else "model",
        scores=score_runs(group, samples=samples, seed=seed),
        num_pairs=len(first),
        seeds=tuple(sorted(run.seed for run in group if run.seed is not None)),
        seconds=statistics.median(times) if timed else None,
        reconstructed=first.reconstructed,
    )


def _difference(
    group: list[Evaluation], others: list[Evaluation] | None, samples: int, seed: int
) -> Estimate | None:
    """mAP@1 at .5 of one model minus that of another, pair by pair, averaged over their runs."""
    if others is None or others is group:
        return None
    ours, theirs = (
        above(torch.stack([run.tious for run in runs]), (0.5,)).double().mean(dim=(0, 2))
        for runs in (group, others)
    )
    clusters = group[0].clusters
    ends = bootstrap_interval(ours - theirs, clusters, samples=samples, seed=seed)
    return Estimate.known((ours - theirs).mean(), *ends)


def _place(row: Row) -> tuple[bool, float, float, str]:
    """Models before trivial predictors, each group by falling score."""
    scores = row.scores
    return (
        row.kind == "trivial",
        -scores["mAP@1@0.5"].value,
        -scores["avg_mAP@1"].value,
        row.title,
    )


#: What stands where there is no figure.
ABSENT = "-"


class Column(NamedTuple):
    """One column: a heading that it may share, its own, that in full, and its cell of a row."""

    group: str
    heading: str
    full: str
    show: Callable[[Row], str]


def percent(score: Estimate | None, *, interval: bool = False, signed: bool = False) -> str:
    """A share as percent with one decimal, and half its interval where asked for.

    Example:
        >>> percent(Estimate(0.4928, 0.46, 0.53), interval=True)
        '49.3 ±3.5'
        >>> percent(None)
        '-'
    """
    if score is None:
        return ABSENT
    # Where every pair passes, or none, resampling shows no spread, which is not certainty.
    half = score.half_width if interval else None
    value = f"{100 * score.value:{'+' if signed else ''}.1f}"
    return value + (f" ±{100 * half:.1f}" if half else "")


def _score(name: str, interval: bool = False) -> Callable[[Row], str]:
    return lambda row: percent(row.scores.get(name), interval=interval)


#: The columns, the model's name first.
COLUMNS = (
    Column("", "Model", "Model", lambda row: row.title + (" †" if row.reconstructed else "")),
    *(
        Column(
            "mAP@1 (%)",
            f"{t:g}".removeprefix("0"),
            f"mAP@1 at {t:g}",
            _score(f"mAP@1@{t:g}", interval=t in (0.5, 0.7)),
        )
        for t in SHOWN
    ),
    Column("", "avg_mAP@1", "avg_mAP@1", _score("avg_mAP@1")),
    Column("", "mIoU", "mIoU", _score("mIoU")),
    Column("", "R@5 .5", "R@5 at 0.5", _score("R@5@0.5")),
    Column("", "all@5 .5", "Share of all true moments met by 5 answers", _score("all@5@0.5")),
    Column("", "before .5", "mAP@1 at 0.5 before refinement", _score("before/mAP@1@0.5")),
    Column(
        "",
        "gain .5",
        "mAP@1 at 0.5 minus that of the contrast matcher",
        lambda row: percent(row.gain, interval=True, signed=True),
    ),
    Column("", "N", "Pairs", lambda row: str(row.num_pairs)),
    Column(
        "",
        "s/query",
        "Seconds per query",
        lambda row: ABSENT if row.seconds is None else f"{row.seconds:.2g}",
    ),
)


def presence_cells(comparison: Comparison) -> tuple[str, list[list[str]]]:
    """The second table, as a caption and rows of cells, headings first.

    It is there where :attr:`Comparison.presence` is not empty.
    """
    first = comparison.first_with_nulls
    stretches = sum(" free of " in null.reference_id for null in first.nulls)
    caption = (
        f"Does the reference hold it at all? {len(first)} references that do and "
        f"{len(first.nulls)} that do not, of which {stretches} are the longest stretch without the "
        "class of a reference that shows it (shorter: compare with the row of lengths). AUROC: "
        "chance that one that does ranks above one that does not. ECE: calibration error, over "
        "bins of equal count, of the probabilities that the reference holds the action and that "
        "the best answer is right (tIoU above .5), for queries asked about both kinds of "
        "reference; in brackets that of exact probabilities at this N."
    )
    cells = [["Model", "by", "AUROC (%)", "ECE held (%)", "ECE right (%)", "N"]]
    for row in comparison.presence:
        errors = [
            ABSENT if error is None else f"{100 * error[0]:.1f} ({100 * error[1]:.1f})"
            for error in (row.presence_error, row.moment_error)
        ]
        counts = f"{row.num_pairs}+{row.num_nulls}"
        cells.append([row.title, row.by, percent(row.auroc, interval=True), *errors, counts])
    return caption, cells


@dataclass(frozen=True)
class Grid:
    """A table as texts, which every form lays out in its own way.

    Attributes:
        caption: What it shows.
        cells: Rows of cells, headings first.
        words: Columns of words, at the left; the others are numbers.
        breaks: Rows that a rule stands above; the headings are row 0.
        group: Heading above some columns, and the first and the last of them.
        notes: What stands below.
    """

    caption: str
    cells: list[list[str]]
    words: int = 1
    breaks: tuple[int, ...] = (1,)
    group: tuple[str, int, int] | None = None
    notes: list[str] = field(default_factory=list)


def grids(comparison: Comparison, *, full: bool = False) -> list[Grid]:
    """The table of results, and that of presence where models were asked; ``full``: in words."""
    kinds = [row.kind for row in comparison.rows]
    results = Grid(
        comparison.header(),
        [
            [column.full if full else column.heading for column in COLUMNS],
            *([column.show(row) for column in COLUMNS] for row in comparison.rows),
        ],
        breaks=tuple(i + 1 for i, kind in enumerate(kinds) if kind not in kinds[i - 1 : i]),
        group=None if full else (COLUMNS[1].group, 1, len(SHOWN)),
        notes=comparison.footnotes(),
    )
    if not comparison.presence:
        return [results]
    return [results, Grid(*presence_cells(comparison), words=2)]


def to_text(comparison: Comparison) -> str:
    """For a terminal: aligned columns, nothing but printable characters."""
    parts = []
    for grid in grids(comparison):
        cells = [[ascii_line(cell) for cell in line] for line in grid.cells]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        lines = [
            "  ".join(
                cell.rjust(width) if i else cell.ljust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in cells
        ]
        rule = "-" * max(map(len, lines))
        parts += ["", ascii_line(grid.caption), ""]
        if grid.group:
            parts.append(" " * (widths[0] + 2) + grid.group[0])
        for number, line in enumerate(lines):
            parts += [rule, line] if number in grid.breaks else [line]
        parts += ["", *map(ascii_line, grid.notes)] if grid.notes else []
    return "\n".join(parts[1:]) + "\n"


def to_markdown(comparison: Comparison) -> str:
    """For a README: a pipe table; markup in names is made inert."""
    parts = []
    for grid in grids(comparison, full=True):
        parts += ["", _markdown(grid.caption), "", *pipe_table(grid.cells, grid.words)]
        parts += ["", *(f"* {_markdown(line)}" for line in grid.notes)] if grid.notes else []
    return "\n".join(parts[1:]) + "\n"


def pipe_table(cells: Sequence[Sequence[str]], words: int) -> list[str]:
    """Lines of a Markdown table, headings first, whose first columns are so many of words."""
    heads, *lines = [f"| {' | '.join(map(_markdown, line))} |" for line in cells]
    rule = [":---"] * words + ["---:"] * (len(cells[0]) - words)
    return [heads, f"| {' | '.join(rule)} |", *lines]


def to_json(comparison: Comparison) -> str:
    """For programs: every score with its interval, as shares and not as percent."""
    return json.dumps(comparison.to_dict(), indent=1, allow_nan=False) + "\n"


def to_latex(comparison: Comparison) -> str:
    r"""For a paper: each ``table`` needs the ``booktabs`` package.

    Example:
        >>> _latex("100 % of <a_b> ±1")
        '100 \\% of \\textless{}a\\_b\\textgreater{} $\\pm$1'
    """
    parts = []
    for grid in grids(comparison):
        places = "l" * grid.words + "r" * (len(grid.cells[0]) - grid.words)
        parts += ["", r"\begin{table}", r"\centering", rf"\caption{{{_latex(grid.caption)}}}"]
        parts += [rf"\begin{{tabular}}{{{places}}}", r"\toprule"]
        if grid.group:
            name, first, last = grid.group
            parts.append(rf"& \multicolumn{{{last - first + 1}}}{{c}}{{{_latex(name)}}} \\")
            parts.append(rf"\cmidrule(lr){{{first + 1}-{last + 1}}}")
        for number, line in enumerate(grid.cells):
            parts += [r"\midrule"] if number in grid.breaks else []
            parts.append(" & ".join(map(_latex, line)) + r" \\")
        parts += [r"\bottomrule", r"\end{tabular}"]
        if grid.notes:
            parts += ["", r"\begin{flushleft}\footnotesize"]
            parts += [*(_latex(line) + r"\\" for line in grid.notes), r"\end{flushleft}"]
        parts.append(r"\end{table}")
    return "\n".join(parts[1:]) + "\n"


def _markdown(text: str) -> str:
    """Escape what starts markup; an underscore inside a word starts none."""
    line = html.escape(ascii_line(text), quote=False)
    return re.sub(r"[\\`*\[\]|~#]|(?<!\w)_|_(?!\w)", r"\\\g<0>", line)


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "±": r"$\pm$",
    "†": r"\dag{}",
}


def _latex(text: str) -> str:
    return "".join(_LATEX.get(char, char) for char in ascii_line(text))
