"""Whether training paid: validation scores beside those of the training-free matcher."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from relocal_pyg.data.items import Protocol
from relocal_pyg.data.pairs import PairList
from relocal_pyg.errors import CheckpointError
from relocal_pyg.io.read import read_json
from relocal_pyg.io.write import write_json
from relocal_pyg.models.matchers import ContrastMatcher
from relocal_pyg.training.validation import validate

_FILE = "choice.json"


@dataclass(frozen=True)
class Choice:
    """What validation says about a run.

    Attributes:
        trained: Validation score of the weights that were kept, see
            :func:`relocal_pyg.training.validation.validate`.
        matcher: That of the contrast matcher on the same pairs.
        step: Step of the weights that were kept; 0 where no training beat the start.
        pairs: Number of validation pairs.
    """

    trained: float
    matcher: float
    step: int
    pairs: int

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
            verdict = "no training beat its start, the training-free matcher,"
        else:
            verdict = "it is not behind the training-free contrast matcher"
        return f"{verdict} on {self.pairs} validation pairs: {scores}"

    def save(self, run: Path) -> None:
        """Write ``choice.json`` into a run folder.

        Raises:
            OutputError: The file cannot be written.
        """
        write_json(run / _FILE, asdict(self))


def compare_with_matcher(
    trained: float, step: int, protocol: Protocol, pairs: PairList, limit: int | None
) -> Choice:
    """Score the contrast matcher as a trained model was scored.

    Args:
        trained: Validation score of the trained model.
        step: Step of its weights.
        protocol: Where features and proposals are.
        pairs: Validation pairs.
        limit: How many of them were used.
    """
    matcher = validate(ContrastMatcher(), protocol, pairs, limit).score
    return Choice(trained, matcher, step, len(pairs.pairs[:limit]))


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
        return Choice(
            float(record["trained"]),
            float(record["matcher"]),
            int(record["step"]),
            int(record["pairs"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"is not a record of validation ({error!r})", file=file) from None
