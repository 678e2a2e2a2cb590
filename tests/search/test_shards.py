from __future__ import annotations

import dataclasses
from multiprocessing import Pipe

import numpy as np
import pytest
import torch
from forked import CONTEXT

from relocal_pyg.data.features import write_features
from relocal_pyg.errors import FeatureError, RunError, UsageError
from relocal_pyg.models import ContrastMatcher, MultiGraphRelocalizer
from relocal_pyg.search.shards import (
    ShardTask,
    _give,
    _hear,
    make_tasks,
    score_shard,
    score_shards,
    score_shards_ray,
)

pq = pytest.importorskip("pyarrow.parquet")


@pytest.fixture
def task(tmp_path) -> ShardTask:
    draw = np.random.default_rng(0)
    videos = {f"v{i:02d}": draw.normal(size=(20 + i, 8)).astype("float32") for i in range(11)}
    write_features(tmp_path / "features.h5", videos.items())
    np.save(tmp_path / "query.npy", draw.normal(size=(5, 8)).astype("float32"))
    return ShardTask(
        tmp_path / "features.h5",
        "features",
        tuple(videos),
        tmp_path / "query.npy",
        None,
        tmp_path / "one.parquet",
        seconds_per_step=0.5,
    )


@pytest.fixture
def forked(monkeypatch) -> None:
    """Workers forked from one that has torch."""
    monkeypatch.setattr("relocal_pyg.search.shards.get_context", lambda _: CONTEXT)


@pytest.mark.slow
@pytest.mark.parametrize("trained", [False, True])
def test_any_number_of_shards_gives_the_same_bytes(task, tmp_path, trained):
    if trained:
        torch.manual_seed(0)
        model = MultiGraphRelocalizer(8, hidden_channels=8, num_steps=6, head_channels=(4, 4))
        model.save(tmp_path / "model")
        task = dataclasses.replace(task, model=tmp_path / "model")
    contents = set()
    for number in (1, 2, 8):
        out = tmp_path / f"{number}.parquet"
        contents.add(score_shards(dataclasses.replace(task, out=out), number).read_bytes())
    assert len(contents) == 1


@pytest.mark.slow
def test_processes_give_the_same_bytes(task, tmp_path):
    """Each imports everything itself, as where users start them."""
    one = score_shards(task, 1).read_bytes()
    many = dataclasses.replace(task, out=tmp_path / "many.parquet")
    assert score_shards(many, 3, workers=2).read_bytes() == one


@pytest.mark.slow
def test_rows_are_those_of_localize(task):
    table = pq.read_table(score_shards(task, 3)).to_pandas()
    query = np.load(task.query)
    from relocal_pyg.data.features import FeatureStore

    store = FeatureStore(task.features)
    for video_id, rows in table.groupby("video_id"):
        moments = ContrastMatcher().localize(query, store.read(video_id), seconds_per_step=0.5)
        assert rows["start"].tolist() == [moment.start for moment in moments]
        assert rows["score"].tolist() == [moment.score for moment in moments]
        assert rows["rank"].tolist() == list(range(1, len(moments) + 1))
    assert table["video_id"].nunique() == 11


@pytest.mark.slow
def test_a_killed_run_goes_on(task, monkeypatch):
    wanted = score_shards(dataclasses.replace(task, out=task.out.with_name("w")), 4).read_bytes()
    done = make_tasks(task, task.out.with_name(task.out.name + ".parts"), 4)
    score_shard(done[2])
    scored = []

    def counted(part: ShardTask):
        scored.append(part.out.name)
        return score_shard(part)

    monkeypatch.setattr("relocal_pyg.search.shards.score_shard", counted)
    assert score_shards(task, 4).read_bytes() == wanted
    assert scored == [done[i].out.name for i in (0, 1, 3)]


@pytest.mark.slow
def test_shards_of_another_question_are_not_taken(task, tmp_path):
    """Of another query, number of shards or features, under the same name."""
    score_shards(task, 3)
    whole = dataclasses.replace(task, out=tmp_path / "fresh.parquet")
    assert score_shards(task, 2).read_bytes() == score_shards(whole, 1).read_bytes()
    np.save(tmp_path / "query.npy", np.random.default_rng(1).normal(size=(7, 8)).astype("f4"))
    other = dataclasses.replace(task, out=tmp_path / "other.parquet")
    assert score_shards(task, 2).read_bytes() == score_shards(other, 2).read_bytes()
    assert score_shards(other, 1).read_bytes() != whole.out.read_bytes()
    with pytest.raises(UsageError, match="workers"):
        score_shards(task, 2, workers=0)


@pytest.mark.slow
def test_ray_gives_the_same_bytes(task, tmp_path):
    ray = pytest.importorskip("ray", reason="the [cluster] extra is not installed")
    from ray.data import DataContext

    wanted = score_shards(task, 1).read_bytes()
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        DataContext.get_current().enable_progress_bars = False
        out = tmp_path / "ray.parquet"
        assert score_shards_ray(dataclasses.replace(task, out=out), 3).read_bytes() == wanted
        assert len(list((tmp_path / "ray.parquet.parts").iterdir())) == 3
    finally:
        ray.shutdown()


@pytest.mark.slow
def test_an_error_in_a_worker_is_that_of_the_shard(forked, task):
    broken = dataclasses.replace(task, video_ids=(*task.video_ids, "nowhere"))
    with pytest.raises(FeatureError, match="nowhere"):
        score_shards(broken, 1, workers=2)  # one shard, one worker


@pytest.mark.slow
def test_a_worker_that_says_nothing_is_given_up(task):
    """No wait is without end: a worker that starts needs longer than this."""
    with pytest.raises(RunError, match="no shard was finished in 0.01 s"):
        score_shards(task, 4, workers=2, patience=0.01)


def test_a_worker_that_died_is_heard_of(tmp_path):
    ours, theirs = Pipe()
    theirs.close()
    assert _give(ours, [None])  # sending to the dead is no error; listening is
    with pytest.raises(RunError, match="a worker was killed"):
        _hear(ours, tmp_path)
