"""Feature rows kept in a file: written as they are made, read a block at a time."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from relocal_pyg.errors import OutputError

#: Copies of one row written at once: a picture may stay on the screen for hours.
_COPIES = 1024


class RowFile:
    """Float32 rows ``[n, F]`` in an open file.

    A block is read, used and let go, so that memory does not grow with the number of rows. A mapped
    tensor alone would not do: pages once looked at count as the memory of the process.

    Args:
        file: Open for reading; kept open.
        offset: Byte at which the rows begin.
        shape: Number of rows and of channels.
    """

    def __init__(self, file: BinaryIO, offset: int, shape: tuple[int, int]) -> None:
        self._file = file
        self._offset = offset
        self._lock = threading.Lock()
        self.shape = shape

    def __len__(self) -> int:
        return self.shape[0]

    def split(self, size: int, /) -> Iterator[Tensor]:
        """Give the rows in blocks of ``size``, the last one shorter, as ``torch.Tensor.split``.

        Raises:
            OSError: The file ends early or cannot be read.
        """
        count, width = self.shape
        for first in range(0, count, size):
            wanted = min(size, count - first)
            with self._lock:
                self._file.seek(self._offset + 4 * first * width)
                block = np.fromfile(self._file, np.float32, wanted * width)
            if block.size < wanted * width:
                raise OSError("the file of feature rows ends early")
            yield torch.from_numpy(block.reshape(wanted, width))

    def tensor(self) -> Tensor:
        """Map all rows: what is looked at is read from the file; changes stay in memory."""
        mapped = np.memmap(self._file, np.float32, "c", self._offset, self.shape)
        return torch.from_numpy(mapped)


class RowWriter:
    """Appends rows to a temporary file, which goes away with the last that uses it.

    Args:
        dim: Channels of a row.

    Raises:
        OutputError: The temporary folder cannot be written.
    """

    def __init__(self, dim: int) -> None:
        self._dim = dim
        self._count = 0
        try:
            self._file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the rows)
        except OSError as error:
            raise self._cannot(error) from None

    def add(self, rows: Tensor, repeats: list[int]) -> None:
        """Append each row of ``[b, F]`` as many times as ``repeats`` says.

        Raises:
            OutputError: The disk is full.
        """
        try:
            for row, times in zip(rows.numpy(), repeats, strict=True):
                for first in range(0, times, _COPIES):
                    self._file.write(row.tobytes() * min(_COPIES, times - first))
        except OSError as error:
            raise self._cannot(error) from None
        self._count += sum(repeats)

    def finish(self) -> RowFile:
        """Give what was written.

        Raises:
            OutputError: The disk is full.
        """
        try:
            self._file.flush()
        except OSError as error:
            raise self._cannot(error) from None
        return RowFile(self._file, 0, (self._count, self._dim))

    @staticmethod
    def _cannot(error: OSError) -> OutputError:
        return OutputError(
            f"feature rows cannot be kept ({error.strerror}): set TMPDIR to a folder with space",
            file=tempfile.gettempdir(),
        )
