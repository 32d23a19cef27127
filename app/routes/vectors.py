"""Vectors for responses: cut, scaled and encoded as the options say."""

import base64
from collections.abc import Sequence
from typing import Any

import numpy as np

from app.engine.dtypes import WITH_RANGE, quantize
from app.engine.embeddings import Vector
from app.routes.options import Options


def shape_vectors(rows: Sequence[Vector], options: Options) -> Vector:
    """Stack vectors of (dim,) to (n, dimensions) float32: cut, then scaled to length 1 if normalize is set."""
    vectors = np.array(rows, np.float32)
    if options.dimensions is None and not options.normalize:
        return vectors
    vectors = vectors[:, : options.dimensions]
    return _unit(vectors) if options.normalize else np.ascontiguousarray(vectors)


def encode_vectors(rows: Sequence[Vector], options: Options) -> Any:
    """Return n vectors for JSON: an array with a row for each, or n base64 strings of little-endian numbers."""
    vectors = shape_vectors(rows, options) if options.dtype == "float32" else _quantized(rows, options)
    if options.encoding_format == "float":
        return vectors
    little_endian = vectors.astype(vectors.dtype.newbyteorder("<"))
    return [base64.b64encode(row.tobytes()).decode() for row in little_endian]


def _quantized(rows: Sequence[Vector], options: Options) -> Any:
    """Return vectors as the option dtype: int8 and uint8 of length 1 and then cut, so that their range fits."""
    vectors = np.array(rows, np.float32)
    if options.dtype in WITH_RANGE:
        vectors = _unit(vectors)
    return quantize(vectors[:, : options.dimensions], options.dtype, options.int8_range)


def _unit(vectors: Vector) -> Vector:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.ascontiguousarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)
