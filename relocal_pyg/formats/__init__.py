"""Moments out to players, editors and annotation tools; annotations in from those tools."""

from relocal_pyg.formats.clips import Clip, Source, to_clips
from relocal_pyg.formats.export import FORMATS, export_clips, format_of, render

__all__ = ["FORMATS", "Clip", "Source", "export_clips", "format_of", "render", "to_clips"]
