"""Options of vectors, as a request and the bulk command may have them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from app.engine.dtypes import Dtype, shape
from app.engine.embeddings import Vector


@dataclass(frozen=True)
class VectorOptions:
    """Options of vectors. int8_range: the model folder's, for the dtypes that need one."""

    normalize: bool = False
    dimensions: int | None = None
    prompt_name: str | None = None
    prompt: str | None = None
    truncate: bool = True
    dtype: Dtype = "float32"
    int8_range: tuple[float, float] | None = None

    def shape(self, rows: Sequence[Vector]) -> NDArray[Any]:
        """Return raw vectors of (dim,) as one array: cut, scaled and quantized."""
        return shape(
            rows,
            dimensions=self.dimensions,
            normalize=self.normalize,
            dtype=self.dtype,
            int8_range=self.int8_range,
        )
