"""model_fp32.onnx -> model_int8.onnx: INT8 weights, activations quantized at run time.

Per channel, and in a reduced range (7 bits): on CPUs without VNNI the kernels add pairs of
products in 16 bits, which full-range weights overflow; in the reduced range the integer
sums are the same on every CPU. (Float sums are not: the same texts with VNNI and with AVX2
alone gave the same bits up to some 20 tokens, and cosine 0.9990 for pages.)

    python -m build.quantize [--out DIR]
"""

import logging
import sys
from pathlib import Path

import onnxruntime as ort
from onnxruntime.quantization import QuantType, quantize_dynamic

from build import BuildError, files
from build.export_onnx import FP32

INT8 = "model_int8.onnx"


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
        optimize(plain, part / INT8)


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
