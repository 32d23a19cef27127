"""Vectors for responses: shaped and encoded as the options say."""

import base64
from collections.abc import Sequence
from typing import Any

from app.engine.embeddings import Vector
from app.routes.options import Options


def encode_vectors(rows: Sequence[Vector], options: Options) -> Any:
    """Return n vectors for JSON: an array with a row for each, or n base64 strings of little-endian numbers."""
    vectors = options.shape(rows)
    if options.encoding_format == "float":
        return vectors
    little_endian = vectors.astype(vectors.dtype.newbyteorder("<"))
    return [base64.b64encode(row.tobytes()).decode() for row in little_endian]
