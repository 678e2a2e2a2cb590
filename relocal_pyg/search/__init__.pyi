from .index import Hit as Hit
from .index import SearchIndex as SearchIndex
from .shards import score_shard as score_shard
from .shards import score_shards as score_shards
from .storage import add_videos as add_videos
from .storage import build_index as build_index
