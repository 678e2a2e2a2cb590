"""Probabilities for the answers of an index."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from relocal_pyg.models.base import Relocalizer
from relocal_pyg.moments import Moment
from relocal_pyg.proposals.sliding import default_proposals
from relocal_pyg.search.index import Hit, SearchIndex

#: Windows of a hit's video that its probability is made of.
JUDGED_WINDOWS = 500


def judge_hits(
    hits: list[Hit],
    index: SearchIndex,
    model: Relocalizer,
    query: Tensor,
    query_video: Tensor | None = None,
) -> list[Hit]:
    """Hits with their probabilities; as they are where the model is not calibrated.

    The facts of a hit are those of its own video, over as many windows as a glance takes.

    Args:
        hits: Answers of the index, in any order, which is kept.
        index: The index.
        model: The model that it was opened with.
        query: ``[m, F]``.
        query_video: ``[v, F]`` or None.
    """
    if model.calibration is None:
        return hits
    places = {
        name: (shard, number) for shard in index.shards for number, name in enumerate(shard.ids)
    }
    judged: dict[Hit, Hit] = {}
    for video_id in dict.fromkeys(hit.video_id for hit in hits):
        shard, number = places[video_id]
        features = shard.rows("features", *shard.first_step[number : number + 2])
        windows = default_proposals(len(features), len(query), limit=JUDGED_WINDOWS)
        ranking = model.rank(query, features, windows, query_video=query_video)
        own = [hit for hit in hits if hit.video_id == video_id]
        moments = [Moment(hit.start, hit.end, hit.score) for hit in own]
        step = float(shard.seconds_per_step[number])
        found = model.judge(ranking, moments, query, features, query_video, step)
        for hit, moment in zip(own, found, strict=True):
            judged[hit] = replace(hit, probability=moment.probability, presence=moment.presence)
    return [judged[hit] for hit in hits]
