"""Embeddings: what the encoder returns, vectors with their token counts."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Ids = NDArray[np.int64]


@dataclass(frozen=True)
class Embeddings:
    """The result of `Encoder.encode` for n texts.

    rows: n vectors of (dim,) float32, read-only; equal texts share one. tokens: token count of each text before
    truncation, prompt and specials included. truncated: whether that is over max_length. tokenize_seconds and
    inference_seconds: for all texts; the latter with queue_seconds, the wait for the first turn.
    cache_hits: texts whose vector was in the cache.
    """

    rows: list[Vector]
    dimension: int
    tokens: list[int]
    truncated: list[bool]
    tokenize_seconds: float = 0.0
    inference_seconds: float = 0.0
    queue_seconds: float = 0.0
    cache_hits: int = 0

    @property
    def vectors(self) -> Vector:
        """All rows as one array, (n, dim) float32."""
        return np.array(self.rows, np.float32).reshape(len(self.rows), self.dimension)
