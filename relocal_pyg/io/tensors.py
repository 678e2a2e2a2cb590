"""Tensors of a file: written and read with honest errors, compared with the model they are for."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file

from relocal_pyg.errors import CheckpointError

#: A file is refused that is longer than this and so many times longer than what the disk stores.
_SMALL, _MAX_RATIO = 1 << 20, 4
#: Bytes of the list of tensors: that of a thousand takes a tenth of it, one of a million minutes.
_MAX_HEADER = 1 << 20


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write tensors as safetensors.

    Raises:
        CheckpointError: One is not finite, which could not be read again.
        OSError: The disk is full, which the library reports by an error of its own.
    """
    for name, value in tensors.items():
        if not value.isfinite().all():
            raise CheckpointError("is not finite, so nothing is written", record=name)
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        raise OSError(str(error)) from error


def save_blocks(
    path: Path, tensors: dict[str, tuple[str, list[int], Iterable[bytes]]], metadata: dict[str, str]
) -> None:
    """Write safetensors a block at a time: the library's writer wants all in memory, twice.

    By name: the format's own name of the type, the shape, and the bytes in pieces.

    Raises:
        OSError: The disk is full.
    """
    header: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for name, (kind, shape, _) in tensors.items():
        end = start + math.prod(shape) * int(kind[1:]) // 8
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, _, pieces in tensors.values():
            file.writelines(pieces)


def read_tensors(file: Path, refusal: str = "cannot be read") -> dict[str, torch.Tensor]:
    """Read a safetensors file; where that fails, ``refusal`` is what the error says of it.

    The library's ``load_file`` turns a Ctrl-C that meets it half-way into a ValueError; reading the
    bytes first does not.

    Raises:
        CheckpointError: Not there, no such file, or one that says more than it stores.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError("is not a regular file", file=file)
        stored = status.st_blocks * 512
        if status.st_size > max(_SMALL, _MAX_RATIO * stored):
            raise CheckpointError(f"is {status.st_size} bytes long and stores {stored}", file=file)
        data = file.read_bytes()
        if _MAX_HEADER < int.from_bytes(data[:8], "little") < len(data):
            raise CheckpointError(f"has a header of over {_MAX_HEADER} bytes", file=file)
        return load(data)
    except (OSError, SafetensorError, KeyError, ValueError) as error:  # KeyError: a kind of number
        raise CheckpointError(f"{refusal} ({error})", file=file) from None


def check_tensors(
    given: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], file: Path
) -> None:
    """Compare names and shapes, naming the first tensor that does not fit.

    Raises:
        CheckpointError: A tensor is missing, extra, of another shape, or not finite.
    """
    for name, tensor in wanted.items():
        if name not in given:
            raise CheckpointError("is missing", file=file, record=name)
        if given[name].shape != tensor.shape:
            shapes = f"{list(given[name].shape)}, wanted {list(tensor.shape)}"
            raise CheckpointError(f"has shape {shapes}", file=file, record=name)
        if given[name].is_floating_point() and not torch.isfinite(given[name]).all():
            raise CheckpointError("is not finite", file=file, record=name)
    extra = sorted(set(given) - set(wanted))
    if extra:
        raise CheckpointError("is not part of this model", file=file, record=extra[0])
