"""From video files to features and clips: decoding, backbones, extraction, PCA, cutting.

PyAV, scikit-learn and the EfficientNet weights come with the extra ``relocal_pyg[video]`` and are
imported only by what needs them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from relocal_pyg.video.backbones import Backbone, EfficientNetLite0, FunctionBackbone
    from relocal_pyg.video.c3d import C3D
    from relocal_pyg.video.cut import cut_clip
    from relocal_pyg.video.decode import VideoInfo, VideoWarning, frames, probe
    from relocal_pyg.video.extract import (
        FeatureCache,
        VideoFeatures,
        extract_video,
        progress_bar,
        sampling_rate,
    )
    from relocal_pyg.video.find import Found, VideoQuery, find_moments
    from relocal_pyg.video.folder import (
        Extraction,
        extract_folder,
        features_from_videos,
        find_videos,
        read_times,
        video_id,
    )
    from relocal_pyg.video.index import FoundVideos, IndexedVideos, find_in_index, index_features
    from relocal_pyg.video.page import write_found_page
    from relocal_pyg.video.pca import PCA, fit_pca

_WHERE = {
    "Backbone": "backbones",
    "C3D": "c3d",
    "EfficientNetLite0": "backbones",
    "Extraction": "folder",
    "FeatureCache": "extract",
    "Found": "find",
    "FoundVideos": "index",
    "FunctionBackbone": "backbones",
    "IndexedVideos": "index",
    "PCA": "pca",
    "VideoFeatures": "extract",
    "VideoInfo": "decode",
    "VideoQuery": "find",
    "VideoWarning": "decode",
    "cut_clip": "cut",
    "extract_folder": "folder",
    "extract_video": "extract",
    "features_from_videos": "folder",
    "find_in_index": "index",
    "find_moments": "find",
    "find_videos": "folder",
    "fit_pca": "pca",
    "frames": "decode",
    "index_features": "index",
    "probe": "decode",
    "progress_bar": "extract",
    "read_times": "folder",
    "sampling_rate": "extract",
    "video_id": "folder",
    "write_found_page": "page",
}

__all__ = [
    "C3D",
    "PCA",
    "Backbone",
    "EfficientNetLite0",
    "Extraction",
    "FeatureCache",
    "Found",
    "FoundVideos",
    "FunctionBackbone",
    "IndexedVideos",
    "VideoFeatures",
    "VideoInfo",
    "VideoQuery",
    "VideoWarning",
    "cut_clip",
    "extract_folder",
    "extract_video",
    "features_from_videos",
    "find_in_index",
    "find_moments",
    "find_videos",
    "fit_pca",
    "frames",
    "index_features",
    "probe",
    "progress_bar",
    "read_times",
    "sampling_rate",
    "video_id",
    "write_found_page",
]


def __getattr__(name: str) -> object:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_WHERE[name]}"), name)
