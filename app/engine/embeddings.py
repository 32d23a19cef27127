"""Embeddings: the encoder's result, vectors with token counts and times."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float32]
Ids = NDArray[np.int64]


class Embeddings(NamedTuple):
    """The result of `Encoder.encode` for n texts.

    rows: n vectors, (dim,) float32, read-only; equal texts share one. tokens: token count of each text before
    truncation, prompt and special tokens included. truncated: whether that is over max_length.
    tokenize_seconds, inference_seconds: times for all texts. queue_seconds: the part of inference_seconds before the
    first text was computed. cache_hits: number of texts whose vector was in the cache.
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
