"""Adapters: one function for each engine, (folder, streams, threads) -> a Run for each stream.

folder: what prepare.py made. streams: runs at the same time, which share the weights. threads: those of one run. Each
engine's library is imported only where it runs.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
# Most tokens in one run of ours, as in app/engine/session.py; a test keeps them equal.
RUN_TOKENS = 120
# Most tokens and most texts in one run of llama.cpp, whose buffers are made beforehand.
LLAMA_TOKENS, LLAMA_TEXTS = 8192, 32
# Token ids of some texts -> their vectors, (n, dim) float32, not normalized.
Run = Callable[[Sequence[list[int]]], Floats]


def padded(rows: Sequence[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return ids and mask, (n, longest) each. Masked places have the id 0."""
    longest = max(map(len, rows))
    ids, mask = np.zeros((2, len(rows), longest), np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
        mask[number, : len(row)] = 1
    return ids, mask


def mean_of(hidden: Floats, rows: Sequence[list[int]]) -> Floats:
    """Return the mean of each text's rows: (n, longest, dim) -> (n, dim)."""
    return np.stack([item[: len(row)].mean(axis=0) for item, row in zip(hidden, rows, strict=True)])


def ours(folder: Path, streams: int, threads: int) -> list[Run]:
    """Our model file, texts of equal length in one run, as the server does."""
    session = _onnx(folder / "model_int8.onnx", threads)

    def run(rows: Sequence[list[int]]) -> Floats:
        vectors = []
        for length, group in groupby(rows, key=len):
            ids, most = np.array(list(group), np.int64), max(1, RUN_TOKENS // length)
            vectors += [session.run(None, {"input_ids": ids[n : n + most]})[0] for n in range(0, len(ids), most)]
        return np.concatenate(vectors)

    return [run] * streams


def onnx_runtime(folder: Path, streams: int, threads: int) -> list[Run]:
    """The usual export, in padded batches."""
    session = _onnx(folder / "model.onnx", threads)

    def run(rows: Sequence[list[int]]) -> Floats:
        ids, mask = padded(rows)
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        return mean_of(session.run(None, feeds)[0], rows)

    return [run] * streams


def _onnx(file: Path, threads: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def ctranslate2(folder: Path, streams: int, threads: int) -> list[Run]:
    import ctranslate2 as library  # type: ignore[import-not-found]  # prepare.py installs it

    encoder = library.Encoder(
        str(folder), device="cpu", compute_type="int8", inter_threads=streams, intra_threads=threads
    )
    return [lambda rows: mean_of(np.array(encoder.forward_batch(list(rows)).last_hidden_state), rows)] * streams


def openvino(folder: Path, streams: int, threads: int) -> list[Run]:
    """OpenVINO in the CPU's best precision: bfloat16 where it has that, else FP32; INT8 where the file says so."""
    import openvino as library  # type: ignore[import-not-found]  # prepare.py installs it

    core = library.Core()
    options: dict[str, Any] = {"INFERENCE_NUM_THREADS": streams * threads, "NUM_STREAMS": streams}
    has_bfloat16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    options["INFERENCE_PRECISION_HINT"] = "bf16" if has_bfloat16 else "f32"
    model = core.compile_model(str(folder / "model.xml"), "CPU", options)

    def stream() -> Run:
        request = model.create_infer_request()

        def run(rows: Sequence[list[int]]) -> Floats:
            ids, mask = padded(rows)
            return mean_of(next(iter(request.infer([ids, mask, np.zeros_like(ids)]).values())), rows)

        return run

    return [stream() for _ in range(streams)]


def llama_cpp(folder: Path, streams: int, threads: int) -> list[Run]:
    """llama.cpp's own mean pooling; a context for each stream. The texts of a batch are sequences of one run."""
    import llama_cpp as library  # type: ignore[import-not-found]  # prepare.py installs it

    parameters = library.llama_model_default_params()
    # With AMX its repacked weights end the process (0.3.36).
    parameters.use_extra_bufts = "amx_int8" not in Path("/proc/cpuinfo").read_text()
    model = library.llama_model_load_from_file(str(folder / "model.gguf").encode(), parameters)
    dim = library.llama_model_n_embd(model)

    def stream() -> Run:
        options = library.llama_context_default_params()
        options.n_ctx = options.n_batch = options.n_ubatch = LLAMA_TOKENS
        options.n_seq_max = LLAMA_TEXTS
        options.n_threads = options.n_threads_batch = threads
        options.embeddings, options.pooling_type = True, library.LLAMA_POOLING_TYPE_MEAN
        context = library.llama_init_from_model(model, options)
        batch = library.llama_batch_init(LLAMA_TOKENS, 0, 1)

        def run(rows: Sequence[list[int]]) -> Floats:
            places = [(id_, place, number) for number, row in enumerate(rows) for place, id_ in enumerate(row)]
            for index, (id_, place, number) in enumerate(places):
                batch.token[index], batch.pos[index], batch.logits[index] = id_, place, 1
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, number
            batch.n_tokens = len(places)
            if library.llama_encode(context, batch):
                raise RuntimeError("llama_encode has failed")
            found = [library.llama_get_embeddings_seq(context, number) for number in range(len(rows))]
            return np.stack([np.ctypeslib.as_array(vector, (dim,)).copy() for vector in found])

        return run

    return [stream() for _ in range(streams)]


def torch_fp32(folder: Path, streams: int, threads: int) -> list[Run]:
    return _torch(folder, streams, threads, "float32")


def torch_bf16(folder: Path, streams: int, threads: int) -> list[Run]:
    return _torch(folder, streams, threads, "bfloat16")


def _torch(folder: Path, streams: int, threads: int, dtype: str) -> list[Run]:
    import torch
    from transformers import AutoModel

    torch.set_num_threads(threads)
    model = AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    def run(rows: Sequence[list[int]]) -> Floats:
        ids, mask = map(torch.from_numpy, padded(rows))
        with torch.inference_mode():
            hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        return mean_of(hidden.float().numpy(), rows)

    return [run] * streams
