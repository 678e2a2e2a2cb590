"""Proposal lists on disk, and proposals of an item."""

from __future__ import annotations

import pickle
import unicodedata
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from relocal_pyg.data import (
    Item,
    ProposalRecord,
    TagProposals,
    WindowProposals,
    read_proposal_list,
    write_proposal_list,
)
from relocal_pyg.data.proposals import default_proposals, sliding_windows
from relocal_pyg.errors import OutputError, ProposalError

LINES = (
    "# 1\nabc\n1\n1\n1\n7 0.1 0.4\n2\n7 0.5 1.0 0.1 0.25\n7 0.1 0.2 0.5 1.0\n"
    "# 2\nd\n300\n29.97\n0\n0\n"
)


def record(video_id: str, moments: list[tuple[float, float]]) -> ProposalRecord:
    count = len(moments)
    return ProposalRecord(
        video_id,
        np.zeros(count, np.int64),
        np.array(moments, np.float64).reshape(count, 2),
        np.zeros((count, 2)),
        np.zeros(0, np.int64),
        np.zeros((0, 2)),
    )


def test_the_layout(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(LINES)
    records = read_proposal_list(tmp_path / "list.txt")
    assert list(records) == ["abc", "d"]
    first, second = records.values()
    assert first.labels.tolist() == [7, 7]
    assert first.moments.tolist() == [[0.1, 0.25], [0.5, 1.0]]
    assert first.overlaps.tolist() == [[0.5, 1.0], [0.1, 0.2]]
    assert (first.truth_labels.tolist(), first.truths.tolist()) == ([7], [[0.1, 0.4]])
    assert (second.num_frames, second.fps, second.moments.shape) == (300, 29.97, (0, 2))
    (tmp_path / "crlf.txt").write_bytes(LINES.replace("\n", "\r\n").encode())
    assert list(read_proposal_list(tmp_path / "crlf.txt")) == ["abc", "d"]


@pytest.mark.parametrize(
    ("old", "new", "line", "reason"),
    [
        ("# 1", "1", 1, "'# number' wanted"),
        ("abc", "a/b", 2, "the video id holds"),
        ("\nd\n", "\nabc\n", 11, "occurs twice"),
        ("abc\n1\n", "abc\none\n", 3, "a number wanted"),
        ("abc\n1\n", "abc\n-1\n", 3, "a positive number"),
        ("abc\n1\n1\n", "abc\n1\nnan\n", 4, "a positive number"),
        ("1\n7 0.1 0.4", "x\n7 0.1 0.4", 5, "the number of lines"),
        ("1\n7 0.1 0.4", "9\n7 0.1 0.4", 7, "3 numbers wanted"),
        ("1\n7 0.1 0.4", "99\n7 0.1 0.4", 5, "the number of lines"),
        ("7 0.1 0.4", "7 0.1", 6, "3 numbers wanted"),
        ("7 0.1 0.4", "7 0.5 0.4", 6, "start <= end"),
        ("7 0.1 0.4", "7.5 0.1 0.4", 6, "whole number"),
        ("0.5 1.0 0.1 0.25", "0.5 1.0 0.1 nan", 8, "5 numbers wanted"),
        ("0.5 1.0 0.1 0.25", "0.5 1.0 -0.1 0.25", 8, "none of them negative"),
        ("29.97\n0\n0\n", "29.97\n0\n", 15, "ends in the middle"),
        (LINES, "", None, "no videos"),
    ],
)
def test_malformed_lists_name_the_line(
    tmp_path: Path, old: str, new: str, line: int | None, reason: str
) -> None:
    assert old in LINES
    (tmp_path / "list.txt").write_text(LINES.replace(old, new, 1))
    with pytest.raises(ProposalError, match=reason) as caught:
        read_proposal_list(tmp_path / "list.txt")
    assert caught.value.record == (f"line {line}" if line else None)
    assert caught.value.file == str(tmp_path / "list.txt")


def test_writing_is_exact(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    moments = np.sort(rng.random((50, 2)), axis=1)
    moments[0] = 0.25, 0.5
    wanted = ProposalRecord(
        "v",
        rng.integers(0, 9, 50),
        moments,
        rng.random((50, 2)),
        np.array([3]),
        np.array([[1e-7, 1.0]]),
        num_frames=301,
        fps=29.97,
    )
    write_proposal_list(tmp_path / "list.txt", [wanted, record("empty", [])])
    text = (tmp_path / "list.txt").read_text()
    assert "0.2500 0.5000\n" in text
    assert "e-" not in text
    found = read_proposal_list(tmp_path / "list.txt")
    assert list(found) == ["v", "empty"]
    for name in ("labels", "moments", "overlaps", "truth_labels", "truths"):
        assert np.array_equal(getattr(found["v"], name), getattr(wanted, name)), name
    assert (found["v"].num_frames, found["v"].fps) == (301, 29.97)


def test_records_that_cannot_be_written(tmp_path: Path) -> None:
    good = record("v", [(0, 1)])
    for bad in (
        record("", [(0, 1)]),
        record("a\nb", [(0, 1)]),
        # What the reader refuses: the list was written, and lost.
        record("v", [(0.1, np.nan)]),
        record("v", [(0.3, 0.2)]),
        record("v", [(-0.1, 0.2)]),
        replace(good, labels=np.array([0.5])),
        replace(good, fps=0),
        replace(good, num_frames=np.inf),
        ProposalRecord("v", good.labels, good.moments[:0], good.overlaps, good.labels, good.truths),
        ProposalRecord("v", good.labels, good.moments, good.overlaps, good.labels, good.truths),
    ):
        with pytest.raises(ProposalError):
            write_proposal_list(tmp_path / "list.txt", [bad])
    for several in ([], [good, good], [record("\xe9", []), record("e\u0301", [])]):
        with pytest.raises(ProposalError, match="twice|no videos"):
            write_proposal_list(tmp_path / "list.txt", several)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError):
        write_proposal_list(tmp_path, [good])


@pytest.mark.parametrize("name", ["my film", "re\u0301pas", "r\xe9pas"])
def test_names_of_films_as_people_give_them(tmp_path: Path, name: str) -> None:
    """A blank in a name ended `relocal propose`, and another Unicode form was not found."""
    (tmp_path / "list.txt").write_text(f"# 1\n{name}\n1\n1\n0\n1\n0 0 0 0.1 0.3\n")
    found = read_proposal_list(tmp_path / "list.txt")
    write_proposal_list(tmp_path / "again.txt", found.values())
    assert list(read_proposal_list(tmp_path / "again.txt")) == list(found)
    item = Item("v#0", unicodedata.normalize("NFC", name), "run", (0, 10), (3, 4), ((3, 4),))
    assert TagProposals(found, lambda video_id: 10)(item, 5).tolist() == [[1, 3]]


@pytest.mark.slow
def test_the_released_list_comes_back_byte_for_byte(shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "activitynet" / "activitynet1.2_tag_val_normalized_proposal_list.txt"
    records = read_proposal_list(file)
    assert len(records) == 2383
    assert sum(len(entry.moments) for entry in records.values()) == 120_148
    assert [name for name, entry in records.items() if len(entry.moments) == 0] != []
    write_proposal_list(tmp_path / "list.txt", records.values())
    assert (tmp_path / "list.txt").read_bytes() == file.read_bytes()


ITEM = Item("v#0", "v", "run", (20, 60), (30, 40), ((30, 40),))


def test_proposals_are_cut_to_the_context() -> None:
    moments = [(0.1, 0.3), (0.25, 0.75), (0.0, 0.2), (0.7, 0.9), (0.3, 0.3), (0.25, 0.75), (0, 1)]
    source = TagProposals({"v": record("v", moments)}, {"v": 100}.__getitem__)
    found = source(ITEM, 5)
    assert found.dtype == torch.float32
    assert found.tolist() == [[0, 10], [5, 40], [0, 40]]  # as listed: the best come first
    source = TagProposals({"v_v": record("v_v", moments)}, {"v": 100}.__getitem__)
    assert source(ITEM, 5).tolist() == found.tolist()
    whole = Item("v#1", "v", "run", (0, 100), (30, 40), ((30, 40),))
    assert [70.0, 90.0] in [[round(s), round(e)] for s, e in source(whole, 5).tolist()]


@pytest.mark.parametrize(
    "records", [{}, {"v": record("v", [])}, {"v": record("v", [(0, 0.1), (0.9, 1)])}]
)
def test_without_proposals_windows_are_made_and_said_once(
    records: dict[str, ProposalRecord],
) -> None:
    source = TagProposals(records, {"v": 100}.__getitem__)
    with pytest.warns(UserWarning, match="no proposals for v#0: sliding windows"):
        found = source(ITEM, 5)
    assert torch.equal(found, default_proposals(40, 5))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(source(ITEM, 0), default_proposals(40, 40))


def test_window_lengths_follow_training_moments() -> None:
    items = [Item(f"v#{n}", "v", "run", (0, 500), (0, n), ((0, n),)) for n in range(1, 102)]
    source = WindowProposals.fit(items)
    assert (source.lengths[0], source.lengths[-1]) == (3, 99)
    ratios = np.array(source.lengths[1:]) / np.array(source.lengths[:-1])
    assert ratios.max() < 1.5
    assert torch.equal(source(ITEM, 7), sliding_windows(40, source.lengths, 1 / 3))
    assert pickle.loads(pickle.dumps(source)) == source
    assert WindowProposals.fit(items[:1]).lengths == (1,)
    with pytest.raises(ProposalError):
        WindowProposals.fit([])
