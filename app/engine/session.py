"""Session: ONNX Runtime with the model file, one text per run.

Texts run one by one, without padding. So a vector depends on its text alone, bit for bit, and no time goes into
padding. Texts run in parallel; the operators of one text do not.
"""

import os

# Read by onnxruntime at import. Since 1.29 it sends usage data to its maker from a thread. That is not wanted, and the
# thread breaks the exit after a fork.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

from collections.abc import Sequence

import onnxruntime as ort

from app.engine.embeddings import Ids, Vector
from app.engine.model_folder import ModelFolder
from app.errors import BootError


class Session:
    """An open model file. Thread-safe.

    Raises:
        BootError: the file cannot be opened, or does not take one text and return a vector of the manifest's dimension.
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
        outputs = [(item.name, item.type, item.shape) for item in self._session.get_outputs()]
        dimension = model_folder.manifest.dimension
        if inputs != [("input_ids", "tensor(int64)", 1)] or outputs != [("embedding", "tensor(float)", [dimension])]:
            raise BootError(
                f"{path} takes {inputs} and gives {outputs}; needed is input_ids (seq,) int64 in, "
                f"embedding ({dimension},) float32 out – run `make model`."
            )

    def compute(self, rows: Sequence[Ids]) -> list[Vector]:
        """Return the vector of each row of token ids: (seq,) int64 -> (dim,) float32, read-only."""
        vectors: list[Vector] = [self._session.run(None, {"input_ids": ids})[0] for ids in rows]
        for vector in vectors:
            vector.setflags(write=False)  # requests share vectors through the cache
        return vectors
