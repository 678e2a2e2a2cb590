"""Bytes of a sound file, spoilt at random."""

from __future__ import annotations

import numpy as np

#: Pieces that parsers are known to trip over.
TOKENS = [
    b"null", b"true", b"-1", b"NaN", b"1e999", b"[]", b"{}", b'""', b"0", b'"\\ud800"', b"\xff\xfe",
    b"\0", b"9" * 400, b"\n", b",", b'"', b"[" * 50, b"1e-400", b"\xef\xbb\xbf", b"../../x",
]  # fmt: skip


def mutate(data: bytes, rng: np.random.Generator, text: bool) -> bytes:
    """One to five changes: bits, bytes, tokens, cuts, copies of a stretch elsewhere."""
    result = bytearray(data)
    for _ in range(int(rng.integers(1, 6))):
        size = len(result)
        if size < 2:
            break
        at, other = sorted(rng.integers(0, size, 2).tolist())
        kind = int(rng.integers(7 if text else 6))
        if kind == 0:
            result[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            result[at] = int(rng.integers(256))
        elif kind == 2:
            width = int(rng.choice([1, 2, 4, 8]))
            result[at : at + width] = bytes([int(rng.choice([0, 255, 127, 1]))]) * width
        elif kind == 3:
            del result[at : min(other, at + 40)]
        elif kind == 4:
            piece = result[at : min(other, at + 60)]
            result[int(rng.integers(size)) : int(rng.integers(size))] = piece if text else b""
            if not text:
                result[at : at + len(piece)] = piece[::-1]
        elif kind == 5 and rng.random() < 0.3:
            del result[other:]
        else:
            token = TOKENS[int(rng.integers(len(TOKENS)))]
            result[at : at + (0 if text else len(token))] = token
    return bytes(result)
