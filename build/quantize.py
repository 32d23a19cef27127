"""model_fp32.onnx -> model_int8.onnx: INT8 weights, activations quantized at run time.

Per channel, and in a reduced range (7 bits): on CPUs without VNNI the kernels add pairs of
products in 16 bits, which full-range weights overflow; in the reduced range the integer
sums are the same on every CPU. (Float sums are not: the same texts with VNNI and with AVX2
alone gave the same bits up to some 20 tokens, and cosine 0.9990 for pages.)

Most of the file is the table of word embeddings, of which a text looks up a few rows. Its one
step is as coarse as the vectors allow: fewer different values pack better in an image.

    python -m build.quantize [--out DIR]
"""

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from tokenizers import Tokenizer

from build import BuildError, files
from build.export_onnx import FP32, TABLE, TOKENIZER
from build.texts import texts

INT8 = "model_int8.onnx"
# The table's steps to try, as multiples of the finest one, which uses all 256 values; and what
# the table alone may cost, as the mean cosine to FP32. The rest of INT8 costs 20 times as much.
# On the stand-in: 1 packs into 63 MB and costs 0.00003, 2.5 into 53 MB and 0.00016. Steps by row
# or by column, and means taken out, gave the same accuracy at the same size.
TABLE_STEPS = (3.0, 2.5, 2.0, 1.5)
TABLE_MIN_COSINE = 0.9998
CALIBRATION_TOKENS = 128


def quantize(out: Path) -> None:
    """Write OUT/model_int8.onnx (+ .data) from OUT/model_fp32.onnx.

    Raises:
        BuildError: there is no OUT/model_fp32.onnx.
    """
    if not (out / FP32).is_file():
        raise BuildError(f"There is no {out / FP32}: run python -m build.export_onnx --out {out} first.")
    logging.getLogger().setLevel(logging.ERROR)  # quantize_dynamic advises a preprocessing that changes nothing here
    with files.replacing(out, INT8, f"{INT8}.data") as part:
        plain = part / "plain.onnx"
        quantize_dynamic(
            out / FP32,
            plain,
            per_channel=True,
            reduce_range=True,
            weight_type=QuantType.QInt8,
            use_external_data_format=True,
        )
        coarsen_table(out, plain)
        optimize(plain, part / INT8)


def coarsen_table(out: Path, int8: Path) -> None:
    """Give the table of the INT8 file the coarsest of TABLE_STEPS that keeps TABLE_MIN_COSINE, if there is one."""
    fp32 = onnx.load(out / FP32)
    table = numpy_helper.to_array(next(item for item in fp32.graph.initializer if item.name == TABLE))
    model = onnx.load(int8)
    tensors = {item.name: item for item in model.graph.initializer}
    finest = float(numpy_helper.to_array(tensors[f"{TABLE}_scale"]))
    ids = _calibration_ids(out / TOKENIZER)
    reference = _embed(out / FP32, ids)
    for step in (finest * multiple for multiple in TABLE_STEPS):
        rounded = np.round(table / step)
        vectors = _embed(out / FP32, ids, table=(rounded * step).astype(np.float32))
        if _mean_cosine(vectors, reference) >= TABLE_MIN_COSINE:
            lowest = rounded.min()
            for name, value in (
                ("quantized", (rounded - lowest).astype(np.uint8)),
                ("scale", np.array(step, np.float32)),
                ("zero_point", np.array(-lowest, np.uint8)),
            ):
                tensors[f"{TABLE}_{name}"].CopyFrom(numpy_helper.from_array(value, f"{TABLE}_{name}"))
            onnx.save_model(model, int8, save_as_external_data=True, location=f"{int8.name}.data")
            return


def _calibration_ids(tokenizer_file: Path) -> list[NDArray[np.int64]]:
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.enable_truncation(CALIBRATION_TOKENS)
    some = [text for lines in texts().values() for text in lines][::3]
    return [np.array(tokenizer.encode(text).ids, np.int64) for text in some]


def _embed(model: Path, ids: list[NDArray[np.int64]], table: Any = None) -> NDArray[np.float32]:
    """The vectors of a model file, (n, dim), with another table in the place of its own if one is given."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if table is not None:
        value = ort.OrtValue.ortvalue_from_numpy(table)
        options.add_initializer(TABLE, value)
    session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return np.array([session.run(None, {"input_ids": item})[0] for item in ids], np.float32)


def _mean_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """(n, dim), (n, dim) -> the mean cosine of the rows."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(np.mean(np.sum(a * b, axis=1) / lengths))


def optimize(source: Path, target: Path) -> None:
    """Fuse the graph now rather than at every start; large tensors go beside it, memory-mapped.

    EXTENDED, not ALL: the layout changes of ALL are tied to the CPU at hand.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 3
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", f"{target.name}.data")
    options.add_session_config_entry("session.optimized_model_external_initializers_min_size_in_bytes", "1024")
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


if __name__ == "__main__":
    from build.__main__ import main_quantize

    sys.exit(main_quantize())
