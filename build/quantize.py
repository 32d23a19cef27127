"""model_fp32.onnx -> model_int8.onnx: INT8 weights and activations.

The error of INT8 comes from the activations: a few channels are 10 to 50 times the others, and one scale for all of
them wastes most of its 256 steps. The scales are constants, from the calibration texts, so that a text's vector does
not depend on the texts beside it. Each linear layer gets the cheapest form with which the whole model's vectors stay
near those of FP32:

- smoothed (SmoothQuant, arXiv 2211.10438): channels divided by s, the weight's rows multiplied;
- outlier channels computed in FP32 (LLM.int8(), arXiv 2208.07339);
- a scale for each token, where tokens differ in size;
- rotated by a Hadamard matrix (QuaRot, arXiv 2404.00456), which spreads the spikes of GELU's output.

Weights are rounded by GPTQ (build/gptq.py). build/search.py measures every choice on the calibration texts of
build/texts/, which the verification does not use.

    python -m build.quantize [--out DIR] [--effort fast|default|best]
"""

import argparse
import sys
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from tokenizers import Tokenizer

from app.engine.manifest import TOKENIZER
from build import BuildError, cli, graph
from build.export_onnx import FP32
from build.network import Ids, Linear, Network, QuantizedLinear, read
from build.quantize_linear import fold_smoothing, measure_inputs, measure_peaks
from build.search import Evaluator, Search, choose_table
from build.texts import calibration, calibration_sha256

INT8 = "model_int8.onnx"
# Longest calibration text, tokens: the server's default MAX_LENGTH. With 128 the outliers of long texts are missed.
CALIBRATION_TOKENS = 256
# The search measures on every third calibration text.
SEARCH_EVERY = 3


def main() -> int:
    """Run `python -m build.quantize`; return the exit code."""
    parser = cli.parser("python -m build.quantize")
    cli.add_effort(parser)
    return cli.run(_main, parser.parse_args())


def _main(options: argparse.Namespace) -> None:
    with cli.no_progress_bar() as bar:
        run_step(options.out, options.effort, bar)


def run_step(out: Path, effort: str, bar: Any) -> None:
    """Quantize as a step of the build, with its line of progress."""
    with cli.step("quantize", bar) as report:
        recipe = quantize(out, effort)
        report(f"{cli.sizes(out, INT8)}: {recipe}")


def quantize(out: Path, effort: str = "default") -> str:
    """Write OUT/model_int8.onnx (+ .data) from OUT/model_fp32.onnx; return the recipe in words.

    effort: `fast` gives every layer its most exact form; `default` searches the cheapest forms that are exact enough;
    `best` searches on all calibration texts and also tries several smoothings.

    Raises:
        BuildError: OUT/model_fp32.onnx does not exist, or a file of build/texts/ cannot be read.
    """
    if not (out / FP32).is_file():
        raise BuildError(f"There is no {out / FP32}: run python -m build.export_onnx --out {out} first.")
    network = read(out / FP32)
    ids = token_ids(out / TOKENIZER, network, [text for lines in calibration().values() for text in lines])
    evaluator = Evaluator(network, ids if effort == "best" else ids[::SEARCH_EVERY])
    table, table_name = choose_table(evaluator)
    network = fold_smoothing(network, measure_peaks(network, ids))
    inputs = measure_inputs(network, ids)
    choice = Search(network, inputs, table.rows(evaluator.words), evaluator).run(effort)
    recipe = _recipe(choice.linears, table_name)
    metadata = {
        "recipe": recipe,
        "effort": effort,
        "calibration_sha256": calibration_sha256(),
        "tools": ", ".join(f"{name} {version(name)}" for name in ("onnx", "onnxruntime", "numpy", "tokenizers")),
    }
    model = graph.write(network, table, choice.linears, metadata)
    graph.save(model, out, INT8)
    return recipe


def effort_of(out: Path) -> str:
    """Return the effort that OUT/model_int8.onnx was made with.

    Raises:
        BuildError: the file does not exist.
    """
    if not (out / INT8).is_file():
        raise BuildError(f"There is no {out / INT8}: run python -m build.quantize --out {out} first.")
    model = onnx.load(out / INT8, load_external_data=False)
    return next((item.value for item in model.metadata_props if item.key == "effort"), "")


def token_ids(tokenizer_file: Path, network: Network, texts: list[str]) -> list[Ids]:
    """Return the token ids of texts, (seq,) each, as the server computes them: with the default prompt, truncated."""
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.enable_truncation(min(CALIBRATION_TOKENS, network.max_positions))
    return [np.array(tokenizer.encode(network.prompt + text).ids, np.int64) for text in texts]


def _recipe(linears: Mapping[str, Linear | QuantizedLinear], table_name: str) -> str:
    """Return the description of a quantization, one line."""
    int8 = [linear for linear in linears.values() if isinstance(linear, QuantizedLinear)]
    outliers = sum(len(linear.outliers) > 0 for linear in int8)
    rotated = sum(linear.rotation > 1 for linear in int8)
    per_token = sum(linear.per_token for linear in int8)
    return (
        f"GPTQ under the pair rule, smoothing; of {len(linears)} linear layers {outliers} have outlier channels in "
        f"FP32, {rotated} are rotated, {per_token} have a scale for each token, {len(linears) - len(int8)} are in "
        f"FP32; the words' table has {table_name}"
    )


if __name__ == "__main__":
    sys.exit(main())
