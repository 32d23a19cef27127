"""make recipes: what each step of the quantization buys, in accuracy, speed and size; for docs/quantization.md.

Each recipe is built for each model folder and measured against the plain FP32 export: cosine and
nearest neighbours on texts that calibration has not seen, speed on short Japanese texts (one
thread, one text a run, all recipes in alternation), on this CPU and as on one without AVX-512.
A second table says how much faster the file gets with several texts of equal length in one run.

    python -m tools.bench.recipes [--profile] FOLDER[=SOURCE]…

FOLDER has model_fp32.onnx and tokenizer/. SOURCE is the model it was made from: a
sentence-transformers folder, a hub id or stand-in (the default).
"""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import NodeProto, helper, numpy_helper

from app.engine import cpu
from app.engine.manifest import TOKENIZER
from build import graph, quantize
from build.export_onnx import FP32
from build.forms import FORMS, SMOOTHING, Form, kind_of
from build.graph import MICROSOFT
from build.network import LINEARS, Floats, Ids, Linear, Network, QuantizedLinear, Table, read
from build.quantize import INT8, token_ids
from build.quantize_linear import InputStatistics, fold_smoothing, measure_inputs, quantize_linear
from build.similarity import Matrix, cosines, neighbour_overlap
from build.texts import calibration, held_out, pairs
from tests.support import ROOT
from tools.older_cpu import Unavailable, environment

# The same file is faster in one process than in another, why is not known. So there are several
# processes, each opening the models in another order.
PROCESSES = 3
ROUNDS = 5
SHORT_TEXTS = 24
SHORT = (8, 24)  # tokens
PROFILED_RUNS = 400
QUIET_LOAD = 1.5  # the load average to wait for before anything is timed
QUIET_SECONDS = 180
PACKS = (1, 2, 4, 8)  # texts of equal length in one run
PACKED_TOKENS = (10, 14, 20, 40)
PACKED_ROUNDS = 10  # runs of all texts in each round
REDUCED = 64  # the largest weight of quantize_dynamic's reduce_range
PLAIN = "plain"
INPUTS = ("input_ids", "attention_mask", "token_type_ids")

Linears = Mapping[str, Linear | QuantizedLinear]


class Recipe(NamedTuple):
    """A model file to measure. plain: it takes a padded batch with a mask, and pooling is left to NumPy."""

    label: str
    file: Path
    plain: bool = False


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tools.bench.recipes", description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="+", metavar="FOLDER[=SOURCE]")
    parser.add_argument("--profile", action="store_true", help="print where the time of the INT8 file goes")
    parser.add_argument("--tokens", type=int, default=14, help="of the profiled text (default: %(default)s)")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    if options.worker:
        work(Path(options.folders[0]))
        return
    for argument in options.folders:
        folder, _, source = argument.partition("=")
        with tempfile.TemporaryDirectory() as scratch:
            if options.profile:
                print_profile(Path(folder), options.tokens, Path(scratch))
            else:
                print_recipes(Path(folder), source or "stand-in", Path(scratch))


def print_recipes(folder: Path, source: str, scratch: Path) -> None:
    network = read(folder / FP32)
    file = chosen_file(folder, scratch)
    recipes = list(built(network, folder, file, source, scratch))
    groups = held_out()
    everything = [text for lines in groups.values() for text in lines]
    unseen = everything + [english for english, _ in pairs()] + [japanese for _, japanese in pairs()]
    ids = token_ids(folder / TOKENIZER, network, unseen)
    japanese = token_ids(folder / TOKENIZER, network, groups["ja"] + calibration()["ja"])
    short = [item for item in japanese if SHORT[0] <= len(item) <= SHORT[1]][:SHORT_TEXTS]
    n = len(everything)
    everywhere: list[Mapping[str, str] | None] = [None]
    try:
        everywhere.append(environment())
    except Unavailable as error:
        print(error, file=sys.stderr)
    speeds = [timed(recipes, network.pooling, short, scratch, environ) for environ in everywhere]
    packs = [packed_speeds(file, len(network.words), scratch, environ) for environ in everywhere]
    found = [
        embedded(recipes, network.pooling, ids if environ is None else ids[:n], scratch, environ)
        for environ in everywhere
    ]

    distinct = sorted({text: row for row, text in enumerate(unseen)}.values())
    reference = found[0][0]
    sizes = packed_sizes([recipe.file for recipe in recipes])
    print(f"\n{folder}, {source}; {machine()}; {n} texts, neighbours of {len(distinct)}; ", end="")
    print(f"timed: {len(short)} texts of {np.mean([len(item) for item in short]):.0f} tokens\n")
    print("| recipe | cosine: mean | p1 | least | neighbours | speed | on AVX2 | same on AVX2 | MB | packed |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    for index, recipe in enumerate(recipes):
        vectors = found[0][index]
        near = cosines(vectors[:n], reference[:n])
        overlap = neighbour_overlap(vectors[distinct], reference[distinct])
        cells = [recipe.label, *(f"{x:.5f}" for x in (near.mean(), np.percentile(near, 1), near.min()))]
        cells += [f"{overlap:.3f}", f"{speeds[0][index]:.2f}"]
        older = len(everywhere) > 1
        cells += [f"{speeds[1][index]:.2f}", same(vectors[:n], found[1][index])] if older else ["–", "–"]
        raw, packed = sizes[index]
        print("| " + " | ".join([*cells, f"{raw / 1e6:.1f}", f"{packed / 1e6:.1f}"]) + " |")
    print_packs(packs)


def print_packs(speeds: list[Floats]) -> None:
    """Print the speeds of packed_speeds(), on this CPU and, if they are known, on the older one."""
    print("\ntexts of equal length in one run: texts/s of the file relative to one text a run\n")
    titles = [f"{size} texts" for size in PACKS[1:]]
    older = [f"on AVX2: {title}" for title in titles] if len(speeds) > 1 else []
    print("| tokens | " + " | ".join(titles + older) + " |")
    print("| --- |" + " --- |" * len(titles + older))
    for tokens, row in zip(PACKED_TOKENS, np.hstack([item[:, 1:] for item in speeds]), strict=True):
        print(f"| {tokens} | " + " | ".join(f"{speed:.2f}" for speed in row) + " |")
    sys.stdout.flush()


def same(here: Matrix, older: Matrix) -> str:
    """Return the share of vectors with the same bits on both CPUs and, if below all, the least cosine of the two."""
    share = float(np.mean([np.array_equal(a, b) for a, b in zip(here, older, strict=True)]))
    return "all" if share == 1 else f"{share:.0%}, {cosines(here, older).min():.5f}"


def machine() -> str:
    features = ", ".join(name for name, value in cpu.features().items() if value is True)
    name = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), "")
    return f"{cpu.available_cpus()} CPUs, {name} ({features}), onnxruntime {ort.__version__}"


# The recipes


def built(network: Network, folder: Path, file: Path, source: str, scratch: Path) -> Iterator[Recipe]:
    """Write each recipe's file and say what it is; the first is what the others are compared with.

    file: what the search chose.
    """
    from onnxruntime.quantization import QuantType, quantize_dynamic

    def one(label: str, name: str, model: onnx.ModelProto) -> Recipe:
        print(label, file=sys.stderr)
        return Recipe(label, saved(model, scratch / f"{name}.onnx"))

    plain = scratch / f"{PLAIN}.onnx"
    export_plain(source, plain)
    yield Recipe("plain FP32 export", plain, plain=True)
    usual = scratch / "usual.onnx"
    quantize_dynamic(plain, usual, weight_type=QuantType.QInt8)
    yield Recipe("`quantize_dynamic` of that (usual)", usual, plain=True)
    yield Recipe("own graph, FP32", folder / FP32)
    reduced = scratch / "reduced.onnx"
    quantize_dynamic(folder / FP32, reduced, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    yield Recipe("`quantize_dynamic` of that, per channel, reduced range", reduced)

    table, chosen = chosen_layers(file, network)
    ids = token_ids(folder / TOKENIZER, network, [text for lines in calibration().values() for text in lines])
    seen = measure_inputs(network, ids)
    gptq = quantized(network, seen, Form())
    nearest = {name: rounded_to_nearest(linear, gptq[name]) for name, linear in network.linears.items()}
    yield one("own graph, rounded to nearest in reduced range", "nearest", graph.write(network, table, nearest))
    yield one("+ GPTQ under the pair rule", "gptq", graph.write(network, table, gptq))
    folded = fold_smoothing(network, {name: item.peaks for name, item in seen.items()})
    folded_seen = measure_inputs(folded, ids)
    for label, name, only in (
        ("+ smoothing", "smoothed", Form(smoothed=True)),
        ("+ outlier channels in FP32", "outliers", Form(smoothed=True, outliers=1)),
        ("+ rotation", "rotated", Form(smoothed=True, outliers=1, rotated=True)),
        (
            "+ a scale for each token (`--effort fast`)",
            "fast",
            Form(smoothed=True, outliers=1, rotated=True, per_token=True),
        ),
    ):
        yield one(label, name, graph.write(folded, table, quantized(folded, folded_seen, only)))
    unsmoothed = quantized(network, seen, Form(outliers=1))
    yield one("to compare: outlier channels, no smoothing", "unsmoothed", graph.write(network, table, unsmoothed))

    final = onnx.load(file)
    yield Recipe("**the file: what the search chose**", file)
    exact_out = {
        name: network.linears[name] if kind_of(name) == "feed_forward_out" else linear
        for name, linear in chosen.items()
    }
    yield one("… but `feed_forward_out` in FP32", "exact_out", graph.write(network, table, exact_out))
    layers = [f"layers.{index}" for index in range(network.layers)]
    yield one("… but Softmax", "softmax", with_softmax(final, layers))
    yield one("… but MultiHeadAttention", "attention", with_attention(final, layers, network.heads))
    yield one("… but SkipLayerNormalization", "skip", with_skip_norm(final, layers))
    yield one("… but a scale for each run (`DynamicQuantizeMatMul`)", "dynamic", with_scales_of_runs(final))
    blocks = with_weights_in_blocks(graph.write(network, table, network.linears), network)
    yield one("… but MatMulNBits, 8 bits, blocks of 32", "blocks", blocks)
    for bits, block in ((8, 128), (4, 32)):
        if network.hidden % block == 0:
            changed = with_table_in_blocks(final, network.words, bits, block)
            yield one(f"… but the table by GatherBlockQuantized, {bits} bits, {block}s", f"table{bits}", changed)


def export_plain(source: str, file: Path) -> None:
    """Export BERT in the usual way: with a batch axis, a mask and token types, without pooling."""
    import torch
    from transformers import AutoModel

    from build.source import fetch

    class Plain(torch.nn.Module):
        def __init__(self, bert: Any) -> None:
            super().__init__()
            self.bert = bert

        def forward(self, input_ids: torch.Tensor, mask: torch.Tensor, types: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.bert(input_ids, attention_mask=mask, token_type_ids=types).last_hidden_state
            return y

    example = torch.ones((1, 8), dtype=torch.int64)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Plain(AutoModel.from_pretrained(fetch(source).folder).eval()).eval(),
            (example, example, example * 0),
            str(file),
            input_names=list(INPUTS),
            output_names=["hidden"],
            dynamic_axes={name: {0: "batch", 1: "seq"} for name in (*INPUTS, "hidden")},
            opset_version=graph.OPSET,
            dynamo=False,
        )


def quantized(network: Network, seen: Mapping[str, InputStatistics], only: Form) -> dict[str, QuantizedLinear]:
    """Quantize each layer in its most exact form, but with only those features that `only` has, too."""
    linears = {}
    for name, linear in network.linears.items():
        kind = kind_of(name)
        linears[name] = quantize_linear(linear, seen[name], limited(kind, only), SMOOTHING[kind])
    return linears


def limited(kind: str, only: Form) -> Form:
    """Return the most exact form of a kind of layer with only those features that `only` has, too."""
    exact = FORMS[kind][-1]
    per_token = exact.per_token and only.per_token
    return Form(
        outliers=exact.outliers if only.outliers else 0,
        smoothed=exact.smoothed and only.smoothed,
        rotated=exact.rotated and only.rotated,
        per_token=per_token,
        headroom=0 if per_token else FORMS[kind][0].headroom,
    )


def rounded_to_nearest(linear: Linear, made: QuantizedLinear) -> QuantizedLinear:
    """Return a quantized layer with its weights rounded in half of the range, as quantize_dynamic does."""
    scale = np.maximum(np.abs(linear.weight).max(0), 1e-12) / REDUCED
    return replace(made, weight=np.round(linear.weight / scale).astype(np.int8), scale=scale)


def chosen_file(folder: Path, scratch: Path) -> Path:
    """Return FOLDER/model_int8.onnx, or one that the default search makes in another folder."""
    if (folder / INT8).is_file():
        return folder / INT8
    out = scratch / "default"
    out.mkdir()
    for name in (FP32, f"{FP32}.data"):
        shutil.copy(folder / name, out)  # onnx refuses links
    shutil.copytree(folder / Path(TOKENIZER).parent, (out / TOKENIZER).parent)
    print(quantize.quantize(out), file=sys.stderr)
    return out / INT8


def chosen_layers(file: Path, network: Network) -> tuple[Table, dict[str, Linear | QuantizedLinear]]:
    """Return the arguments of graph.write(), read back from the file that it wrote."""
    model = onnx.load(file)
    seen = hashlib.sha256("\n".join(text for lines in calibration().values() for text in lines).encode()).hexdigest()
    if {item.key: item.value for item in model.metadata_props}.get("calibration_sha256") != seen:
        print(f"{file} was calibrated on other texts than those of build/texts/ now", file=sys.stderr)
    tensors: dict[str, NDArray[Any]] = {item.name: numpy_helper.to_array(item) for item in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    linears: dict[str, Linear | QuantizedLinear] = {}
    for name in network.linears:
        weight, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
        if weight.dtype != np.int8:
            linears[name] = Linear(weight, bias)
            continue
        rotation = nodes.get(f"{name}.rotated")
        outliers = tensors.get(f"{name}.outliers", np.zeros(0, np.int64))
        linears[name] = QuantizedLinear(
            weight=weight,
            scale=tensors[f"{name}.scale"],
            bias=bias,
            smooth=tensors.get(f"{name}.smooth"),
            outliers=outliers,
            outlier_weight=tensors.get(f"{name}.outlier_weight", network.linears[name].weight[outliers]),
            rotation=len(tensors[rotation.input[1]]) if rotation else 1,
            per_token=f"{name}.per_token" in nodes,
            step=float(tensors[f"{name}.step"]),
            zero=int(tensors[f"{name}.zero"]),
        )
    table = Table(tensors["words"], tensors["words.step"])
    if list(graph.write(network, table, linears).graph.node) != list(model.graph.node):
        sys.exit(f"{file} was made by another build/graph.py: run python -m build.quantize --out {file.parent} first.")
    return table, linears


def changed(
    model: onnx.ModelProto,
    new: Mapping[str, Sequence[NodeProto]],
    gone: Collection[str] = (),
    tensors: Mapping[str, NDArray[Any]] | None = None,
) -> onnx.ModelProto:
    """Return a copy with nodes, by name, replaced or removed; unused tensors are removed, too."""
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.name in new:
            nodes.extend(new[node.name])
        elif node.name not in gone:
            nodes.append(node)
    used = {name for node in nodes for name in node.input}
    kept = [item for item in model.graph.initializer if item.name in used]
    added = [numpy_helper.from_array(np.ascontiguousarray(array), name) for name, array in (tensors or {}).items()]
    return helper.make_model(
        helper.make_graph(nodes, model.graph.name, model.graph.input, model.graph.output, [*kept, *added]),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )


def with_softmax(model: onnx.ModelProto, layers: list[str]) -> onnx.ModelProto:
    return changed(
        model,
        {f"{x}.weights": [helper.make_node("Softmax", [f"{x}.scores"], [f"{x}.weights"], axis=-1)] for x in layers},
        {f"{x}.{part}" for x in layers for part in ("highest", "shifted", "powers", "total")},
    )


def with_attention(model: onnx.ModelProto, layers: list[str], heads: int) -> onnx.ModelProto:
    given = {node.name: node.input[0] for node in model.graph.node if node.input}
    # (texts, seq, 3 x hidden) instead of (texts, seq, 3, heads, head_dim)
    new = {"qkv_shape": [helper.make_node("Concat", ["any", "length", "qkv_width"], ["qkv_shape"], axis=0)]}
    for x in layers:
        q, k, v = (f"{x}.{part}" for part in "qkv")
        new[f"{x}.flat"] = [
            helper.make_node("Reshape", [given[f"{x}.split"], "qkv_shape"], [f"{x}.qkv_3d"]),
            helper.make_node("Split", [f"{x}.qkv_3d"], [q, k, v], axis=2),
            helper.make_node(
                "MultiHeadAttention", [q, k, v], [f"{x}.context"], domain=MICROSOFT, num_heads=heads, scale=1.0
            ),
            helper.make_node("Reshape", [f"{x}.context", "rows_shape"], [f"{x}.flat"]),
        ]
    parts = ("split", "heads", "q", "scores", "highest", "shifted", "powers", "total", "weights", "context", "joined")
    width = next(len(numpy_helper.to_array(i)) for i in model.graph.initializer if i.name == f"{layers[0]}.qkv.bias")
    return changed(model, new, {f"{x}.{part}" for x in layers for part in parts}, {"qkv_width": np.array([width])})


def with_skip_norm(model: onnx.ModelProto, layers: list[str]) -> onnx.ModelProto:
    given = {node.name: list(node.input) for node in model.graph.node}
    epsilon = {node.name: a.f for node in model.graph.node for a in node.attribute if a.name == "epsilon"}
    new = {}
    for layer in layers:
        for add, norm in (("attended", "attention_norm"), ("fed", "feed_forward_norm")):
            name = f"{layer}.{norm}"
            inputs = [*given[f"{layer}.{add}"], *given[name][1:]]
            new[name] = [
                helper.make_node("SkipLayerNormalization", inputs, [name], domain=MICROSOFT, epsilon=epsilon[name])
            ]
    return changed(model, new, {f"{layer}.{add}" for layer in layers for add in ("attended", "fed")})


def with_scales_of_runs(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with scales of activations from each run's own range, save where each token has a scale."""
    inputs = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    new, gone = {}, set()
    for node in model.graph.node:
        if node.op_type != "MatMulIntegerToFloat" or node.name.endswith(".scaled"):
            continue
        codes, weight, _, scale, _, _, bias = node.input
        product = [inputs[codes], weight, scale, "", bias]
        new[node.name] = [helper.make_node("DynamicQuantizeMatMul", product, list(node.output), domain=MICROSOFT)]
        gone.add(codes)
    return changed(model, new, gone)


def with_weights_in_blocks(model: onnx.ModelProto, network: Network) -> onnx.ModelProto:
    """Return a copy with INT8 weights and a scale for each block of 32 inputs, from the graph in FP32."""
    new: dict[str, list[NodeProto]] = {}
    tensors: dict[str, NDArray[Any]] = {}
    for name, linear in network.linears.items():
        node = next(node for node in model.graph.node if node.name == f"{name}.y")
        codes, scale = in_blocks(linear.weight.T, 8, 32)
        weight, scales, (k, n) = f"{name}.codes", f"{name}.scales", linear.weight.shape
        tensors[weight], tensors[scales] = codes.reshape(n, k // 32, 32), scale
        inputs = [node.input[0], weight, scales, "", "", f"{name}.bias"]
        sizes: dict[str, Any] = {"K": k, "N": n, "bits": 8, "block_size": 32, "accuracy_level": 4}
        new[node.name] = [helper.make_node("MatMulNBits", inputs, list(node.output), domain=MICROSOFT, **sizes)]
    return changed(model, new, tensors=tensors)


def with_table_in_blocks(model: onnx.ModelProto, words: Floats, bits: int, block: int) -> onnx.ModelProto:
    codes, scale = in_blocks(words, bits, block)
    if bits == 4:
        codes = (codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8)
    attributes: dict[str, Any] = {"bits": bits, "block_size": block, "gather_axis": 0, "quantize_axis": 1}
    inputs = ["table", "input_ids", "table.scales"]
    gather = helper.make_node("GatherBlockQuantized", inputs, ["word_rows"], domain=MICROSOFT, **attributes)
    tensors: dict[str, NDArray[Any]] = {"table": codes, "table.scales": scale}
    return changed(model, {"word_rows": [gather]}, ("word_codes", "word_floats", "word_steps"), tensors)


def in_blocks(rows: Floats, bits: int, block: int) -> tuple[NDArray[np.uint8], Floats]:
    """Return codes (n, size) around 2^(bits-1), and a scale for each block of a row, (n, size / block)."""
    middle = 2 ** (bits - 1)
    parts = rows.reshape(len(rows), -1, block)
    scale: Floats = np.maximum(np.abs(parts).max(2), 1e-12) / (middle - 1)
    codes = np.round(parts / scale[:, :, None]) + middle
    return codes.astype(np.uint8).reshape(rows.shape), scale


def saved(model: onnx.ModelProto, file: Path) -> Path:
    """Save a model as build.quantize does, with large tensors in a file beside the graph; return its path."""
    onnx.save_model(model, file, save_as_external_data=True, location=f"{file.name}.data", size_threshold=1024)
    return file


def packed_sizes(model_files: list[Path]) -> list[tuple[int, int]]:
    """Return (bytes, bytes packed by zlib) of each model; each tensor is packed by itself."""
    known: dict[bytes, int] = {}

    def size(content: bytes) -> int:
        digest = hashlib.sha256(content).digest()
        if digest not in known:
            known[digest] = len(zlib.compress(content, 6))
        return known[digest]

    sizes = []
    for file in model_files:
        model = onnx.load(file)
        contents = [tensor.raw_data for tensor in model.graph.initializer]
        for tensor in model.graph.initializer:
            tensor.ClearField("raw_data")
        contents.append(model.SerializeToString())
        with ThreadPoolExecutor(cpu.available_cpus()) as pool:
            sizes.append((sum(map(len, contents)), sum(pool.map(size, contents))))
    return sizes


# Measuring, in processes of their own


def timed(
    recipes: list[Recipe], pooling: str, ids: list[Ids], scratch: Path, environ: Mapping[str, str] | None
) -> list[float]:
    """Return each recipe's speed relative to the first, median of all rounds of all processes."""
    wait_until_quiet()
    rounds: list[list[float]] = []
    for seed in range(PROCESSES):
        folder = started(Job("speed", seed, files_of(recipes), pooling), ids, scratch, environ)
        rounds += json.loads((folder / "rounds.json").read_text(encoding="utf-8"))
    return [statistics.median(ratios) for ratios in zip(*rounds, strict=True)]


def packed_speeds(file: Path, words: int, scratch: Path, environ: Mapping[str, str] | None) -> Floats:
    """Return texts/s with several texts a run relative to one, (PACKED_TOKENS, PACKS), median of all rounds."""
    wait_until_quiet()
    random = np.random.default_rng(0)
    ids = [random.integers(words, size=(max(PACKS), tokens)) for tokens in PACKED_TOKENS]
    rounds: list[list[list[float]]] = []
    for seed in range(PROCESSES):
        folder = started(Job("packs", seed, [(str(file.resolve()), False)], ""), ids, scratch, environ)
        rounds += json.loads((folder / "rounds.json").read_text(encoding="utf-8"))
    speeds: Floats = np.median(np.array(rounds, np.float32), axis=0)
    return speeds


def embedded(
    recipes: list[Recipe], pooling: str, ids: list[Ids], scratch: Path, environ: Mapping[str, str] | None
) -> Matrix:
    """(recipes, texts, hidden)"""
    vectors: Matrix = np.load(
        started(Job("vectors", 0, files_of(recipes), pooling), ids, scratch, environ) / "vectors.npy"
    )
    return vectors


def files_of(recipes: list[Recipe]) -> list[tuple[str, bool]]:
    return [(str(recipe.file.resolve()), recipe.plain) for recipe in recipes]


class Job(NamedTuple):
    """Run as a worker process: measure `speed` or `packs`, compute `vectors`, write a `profile`. files: file, plain."""

    task: str
    seed: int
    files: list[tuple[str, bool]]
    pooling: str


def started(job: Job, ids: list[Ids], scratch: Path, environ: Mapping[str, str] | None) -> Path:
    """Run a job in a worker process and return the folder of its results. environ: that of tools.older_cpu."""
    folder = Path(tempfile.mkdtemp(dir=scratch))
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    np.savez(folder / "ids.npz", *ids)
    command = [sys.executable, "-m", "tools.bench.recipes", "--worker", str(folder)]
    subprocess.run(command, cwd=ROOT, env=dict(os.environ if environ is None else environ), check=True)
    return folder


def wait_until_quiet() -> None:
    """Wait until the machine is quiet: other work would be measured, too."""
    give_up = time.monotonic() + QUIET_SECONDS
    while os.getloadavg()[0] >= QUIET_LOAD and time.monotonic() < give_up:
        time.sleep(2)
    print(f"load average {os.getloadavg()[0]:.2f}", file=sys.stderr)


def work(folder: Path) -> None:
    job = Job(*json.loads((folder / "job.json").read_text(encoding="utf-8")))
    with np.load(folder / "ids.npz") as content:
        ids = [content[name] for name in content]
    if job.task == "profile":
        profile(folder, Path(job.files[0][0]), ids[0])
        return
    if job.task == "packs":
        rounds = pack_rounds(Path(job.files[0][0]), ids, job.seed)
        (folder / "rounds.json").write_text(json.dumps(rounds), encoding="utf-8")
        return
    order = np.random.default_rng(job.seed).permutation(len(job.files)).tolist()
    runs = {index: opened(Path(job.files[index][0]), job.files[index][1], job.pooling) for index in order}
    if job.task == "speed":
        (folder / "rounds.json").write_text(json.dumps(relative_speeds(runs, ids)), encoding="utf-8")
        return
    with ThreadPoolExecutor(cpu.available_cpus()) as pool:
        np.save(folder / "vectors.npy", np.array([list(pool.map(runs[index], ids)) for index in sorted(runs)]))


def opened(file: Path, plain: bool, pooling: str) -> Callable[[Ids], Floats]:
    """Open a model with one thread, as the server does; return ids -> vector."""
    session = session_of(file)
    several = len(session.get_inputs()[0].shape) == 2

    def one(ids: Ids) -> Floats:
        vector: Floats = session.run(None, {"input_ids": ids[None] if several else ids})[0]
        return vector[0] if several else vector

    def batch(ids: Ids) -> Floats:
        mask = np.ones((1, len(ids)), np.int64)
        hidden: Floats = session.run(None, dict(zip(INPUTS, (ids[None], mask, mask * 0), strict=True)))[0]
        if pooling == "cls":
            first: Floats = hidden[0, 0]
            return first
        wide = mask[:, :, None].astype(np.float32)
        pooled: Floats = ((hidden * wide).sum(1) / wide.sum(1))[0]
        return pooled

    return batch if plain else one


def session_of(file: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(file), session_options(), providers=["CPUExecutionProvider"])


def session_options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def pack_rounds(file: Path, ids: list[Ids], seed: int) -> list[list[list[float]]]:
    """Return (rounds, ids, PACKS): the speed of packs relative to single texts. ids: (texts, tokens) each."""
    session = session_of(file)

    def run(size: int, texts: Ids) -> None:
        for start in range(0, len(texts), size):
            session.run(None, {"input_ids": texts[start : start + size]})

    order = np.random.default_rng(seed).permutation(len(PACKS)).tolist()
    runs = {index: partial(run, PACKS[index]) for index in order}
    by_tokens = [relative_speeds(runs, [texts] * PACKED_ROUNDS) for texts in ids]
    return [list(rows) for rows in zip(*by_tokens, strict=True)]


def relative_speeds(runs: Mapping[int, Callable[[Ids], object]], ids: list[Ids]) -> list[list[float]]:
    """Return each speed relative to number 0, round by round, every other round in reverse order."""
    rounds = []
    for number in range(ROUNDS + 1):
        seconds = {}
        for index in list(runs)[:: -1 if number % 2 else 1]:
            runs[index](ids[0])  # its weights come into the cache
            start = time.perf_counter()
            for item in ids:
                runs[index](item)
            seconds[index] = time.perf_counter() - start
        rounds.append([seconds[0] / seconds[index] for index in sorted(seconds)])
    return rounds[1:]  # the first warms up


# The profile


def print_profile(folder: Path, tokens: int, scratch: Path) -> None:
    """Print the operators that take the time of one short text, by ONNX Runtime's profiler."""
    network = read(folder / FP32)
    file = chosen_file(folder, scratch)
    columns = [profiled(file, tokens, scratch, None)]
    try:
        columns.append(profiled(file, tokens, scratch, environment()))
    except Unavailable as error:
        print(error, file=sys.stderr)
    print(f"\n{folder}, {network.layers} layers, {tokens} tokens; {machine()}\n")
    print("| node | nodes | µs each | share |" + " on AVX2: µs each | share |" * (len(columns) - 1))
    print("| --- | --- |" + " --- | --- |" * len(columns))
    totals = [sum(microseconds for _, microseconds in column.values()) for column in columns]
    for label in sorted(columns[0], key=lambda name: -columns[0][name][1]):
        cells = [label, f"{columns[0][label][0]}"]
        for column, total in zip(columns, totals, strict=True):
            count, microseconds = column.get(label, (0, 0.0))
            cells += [f"{microseconds / max(count, 1):.1f}", f"{microseconds / total:.1%}"]
        print("| " + " | ".join(cells) + " |")
    counts = sum(count for count, _ in columns[0].values())
    print(f"| all | {counts} | " + " | ".join(f"{total:.0f} | 100%" for total in totals) + " |", flush=True)


def profiled(file: Path, tokens: int, scratch: Path, environ: Mapping[str, str] | None) -> dict[str, tuple[int, float]]:
    """Label -> (nodes, all their microseconds in a run), means of the faster half of the runs."""
    wait_until_quiet()
    ids = [np.arange(tokens) * 37 % 1000 + 100]
    folder = started(Job("profile", 0, [(str(file.resolve()), False)], ""), ids, scratch, environ)
    times: dict[str, list[float]] = defaultdict(list)
    operators = {}
    for event in json.loads(next(folder.glob("profile*.json")).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times[event["name"]].append(event["dur"])
            operators[event["name"]] = label_of(event["args"]["op_name"], event["name"])
    found: dict[str, tuple[int, float]] = {}
    for name, durations in times.items():
        count, microseconds = found.get(operators[name], (0, 0.0))
        found[operators[name]] = count + 1, microseconds + statistics.fmean(sorted(durations)[: len(durations) // 2])
    return found


def label_of(operator: str, name: str) -> str:
    """Return the purpose of a node, and for matrix products its place in the layer."""
    kind = next((kind for kind in LINEARS if f".{kind}." in name), "")
    if operator == "QuantizeLinear" and not kind:
        kind = "attention_out"  # ONNX Runtime moves it before the Transpose and names it after the context
    if operator in ("QuantizeLinear", "MatMulIntegerToFloat", "Gemm", "MatMul", "FusedMatMul", "Mul"):
        return f"{operator}: {kind}" if kind else f"{operator}: attention" if "layers." in name else operator
    return operator


def profile(folder: Path, file: Path, ids: Ids) -> None:
    """Write ONNX Runtime's profile of many runs into the folder."""
    options = session_options()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    for _ in range(PROFILED_RUNS):
        session.run(None, {"input_ids": ids[None]})
    session.end_profiling()


if __name__ == "__main__":
    main()
