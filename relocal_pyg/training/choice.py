"""What validation says about a run: whether training paid, and whether the matcher is better."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from relocal_pyg.errors import CheckpointError
from relocal_pyg.io.read import read_json
from relocal_pyg.io.write import write_json

_FILE = "choice.json"


@dataclass(frozen=True)
class Choice:
    """The weights that were kept, beside their start and the training-free matcher.

    Attributes:
        trained: Validation score of the weights that were kept, see
            :func:`relocal_pyg.training.loop.validate`.
        matcher: That of the contrast matcher on the same pairs.
        step: Step of the weights that were kept; 0 where no training beat the start.
        pairs: Number of validation pairs.
        videos: Number of their references' videos.
        gain: Score of what training found minus that of step 0, and the ends of its paired 95 %
            interval over videos, None where it is not known. Where step 0 was kept, of the best
            weights that were turned down. None where nothing was validated beside step 0.
    """

    trained: float
    matcher: float
    step: int
    pairs: int
    videos: int = 0
    gain: tuple[float, float | None, float | None] | None = None

    @property
    def use_matcher(self) -> bool:
        """Whether the matcher is the better one to search with."""
        return self.matcher > self.trained

    def __str__(self) -> str:
        """One line for a reader.

        Example:
            >>> print(Choice(trained=0.2, matcher=0.3, step=50, pairs=40))
            the training-free contrast matcher beats it on 40 validation pairs: 0.300 against 0.200
        """
        scores = f"{self.trained:.3f} against {self.matcher:.3f}"
        if self.use_matcher:
            scores = f"{self.matcher:.3f} against {self.trained:.3f}"
            verdict = "the training-free contrast matcher beats it"
        elif self.step == 0:
            verdict = "no training beat its start, which is not behind the training-free matcher,"
        else:
            verdict = "it is not behind the training-free contrast matcher"
        return f"{verdict} on {self.pairs} validation pairs: {scores}"

    def bought(self) -> str:
        """What the labels bought, in points of the validation score; empty where not known.

        Example:
            >>> print(Choice(0.5, 0.3, 50, 100, 12, (0.083, 0.021, 0.14)).bought())
            training gained +8.3 points (95 % +2.1 to +14.0) over its start, 100 pairs of 12 videos
        """
        if self.gain is None:
            return ""
        value, low, high = (None if end is None else f"{100 * end:+.1f}" for end in self.gain)
        ends = f" (95 % {low} to {high})" if low and high else ""
        asked = f"{self.pairs} pairs of {self.videos} videos"
        if self.step:
            return f"training gained {value} points{ends} over its start, {asked}"
        why = "no more than chance" if ends else "too few videos to tell from chance"
        return f"training changed {value} points{ends}, {why}: its start was kept, {asked}"

    def save(self, run: Path) -> None:
        """Write ``choice.json`` into a run folder.

        Raises:
            OutputError: The file cannot be written.
        """
        write_json(run / _FILE, asdict(self))


def read_choice(run: str | Path) -> Choice | None:
    """The choice of a run folder; None where nothing was recorded.

    Raises:
        CheckpointError: ``choice.json`` is damaged.
    """
    file = Path(run) / _FILE
    if not file.is_file():
        return None
    record = read_json(file, CheckpointError)
    try:
        gain = record.get("gain")
        if gain is not None:
            value, low, high = (None if end is None else float(end) for end in gain)
            gain = (float(value or 0.0), low, high)
        return Choice(
            float(record["trained"]),
            float(record["matcher"]),
            int(record["step"]),
            int(record["pairs"]),
            int(record.get("videos", 0)),
            gain,
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"is not a record of validation ({error!r})", file=file) from None
