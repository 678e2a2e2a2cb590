"""Reading tensors that came from anywhere."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from relocal_pyg.errors import CheckpointError
from relocal_pyg.io.tensors import read_tensors


@pytest.mark.parametrize("kind", ["F8_E8M0", "F4", "nonsense"])
def test_a_kind_of_number_that_torch_has_not_is_refused(tmp_path: Path, kind: str):
    header = json.dumps({"a": {"dtype": kind, "shape": [2], "data_offsets": [0, 2]}}).encode()
    file = tmp_path / "a.safetensors"
    file.write_bytes(struct.pack("<Q", len(header)) + header + b"\0\0")
    with pytest.raises(CheckpointError, match="cannot be read") as caught:
        read_tensors(file)
    assert str(file) in str(caught.value)
