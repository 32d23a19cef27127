"""Session: ONNX Runtime with the model file, texts of equal length in one run.

There is no padding, and the graph computes each text in an order of its own (see build/graph.py). So a vector depends
on its text alone, bit for bit, and several short texts share the reading of the weights. Runs are parallel; the
operators of one run are not.
"""

import os

# Read by onnxruntime at import. Since 1.29 it sends usage data to its maker from a thread. That is not wanted, and the
# thread breaks the exit after a fork.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from app.engine.embeddings import Ids, Vector
from app.engine.model_folder import ModelFolder
from app.errors import BootError

# Release of ONNX Runtime that computes the vectors.
ONNX_RUNTIME_VERSION: str = ort.__version__
# Most tokens in one run of several texts. More gain little: the weights are read once for 6 to 12 short texts then. Who
# waits for the end of a run waits no longer than for one text of that length.
RUN_TOKENS = 120


class Session:
    """An open model file. Thread-safe.

    It takes texts of equal length, input_ids (texts, seq), or one text, input_ids (seq,), as the files of 0.1.0 do.

    Raises:
        BootError: the file cannot be opened, or has other inputs, or other outputs than vectors of the manifest's
            dimension.
    """

    def __init__(self, model_folder: ModelFolder) -> None:
        path = model_folder.model_file
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise BootError(f"{path} cannot be opened by onnxruntime: {' '.join(str(error).split())}") from None
        inputs = [(item.name, item.type, len(item.shape)) for item in self._session.get_inputs()]
        outputs = [(item.name, item.type, len(item.shape), item.shape[-1]) for item in self._session.get_outputs()]
        dimension = model_folder.manifest.dimension
        known = [
            ([("input_ids", "tensor(int64)", rank)], [("embedding", "tensor(float)", rank, dimension)])
            for rank in (1, 2)
        ]
        if (inputs, outputs) not in known:
            raise BootError(
                f"{path} takes {inputs} and gives {outputs}; needed is input_ids (seq,) or (texts, seq) int64 in, "
                f"embedding ({dimension},) or (texts, {dimension}) float32 out – run `make model`."
            )
        self._takes_several = inputs[0][2] == 2

    def texts_per_run(self, tokens: int) -> int:
        """Return how many texts of so many tokens may be computed in one run."""
        # a product with one row has a kernel of its own, whose bits differ
        return max(1, RUN_TOKENS // tokens) if self._takes_several and tokens > 1 else 1

    def compute(self, rows: Sequence[Ids]) -> list[Vector]:
        """Return the vector of each row of token ids: (seq,) int64 -> (dim,) float32, read-only.

        rows: one row, or up to `texts_per_run` of equal length.
        """
        if self._takes_several:
            output = self._session.run(None, {"input_ids": np.stack(rows)})[0]
            # copies: one vector in the cache would keep the others in memory
            vectors: list[Vector] = [vector.copy() for vector in output]
        else:
            vectors = [self._session.run(None, {"input_ids": ids})[0] for ids in rows]
        for vector in vectors:
            vector.setflags(write=False)  # requests share vectors through the cache
        return vectors
