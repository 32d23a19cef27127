"""make recipes: what each step of the quantization buys, in accuracy, speed and size; for docs/quantization.md.

Each recipe is built for each model folder and measured against the plain FP32 export: cosine and
nearest neighbours on texts that calibration has not seen, speed on short Japanese texts (one
thread, one text a run, all recipes in alternation), on this CPU and as on one without AVX-512.

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
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper

from app.engine import cpu
from app.engine.manifest import TOKENIZER
from build import graph, quantize
from build.export_onnx import FP32
from build.forms import FORMS, SMOOTHING, Form, kind_of
from build.graph import MICROSOFT, Floats, Linear, Network, QuantizedLinear, Table
from build.quantize import INT8, token_ids
from build.quantize_linear import Ids, InputStatistics, fold_smoothing, measure_inputs, open_session, quantize_linear
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
    network = graph.read(folder / FP32)
    recipes = list(built(network, folder, source, scratch))
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


def built(network: Network, folder: Path, source: str, scratch: Path) -> Iterator[Recipe]:
    """Write each recipe's file and say what it is; the first is what the others are compared with."""
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
    yield Recipe("one-text graph, FP32", folder / FP32)
    reduced = scratch / "reduced.onnx"
    quantize_dynamic(folder / FP32, reduced, weight_type=QuantType.QInt8, per_channel=True, reduce_range=True)
    yield Recipe("`quantize_dynamic` of that, per channel, reduced range", reduced)

    file = chosen_file(folder, scratch)
    table, chosen = chosen_layers(file, network)
    ids = token_ids(folder / TOKENIZER, network, [text for lines in calibration().values() for text in lines])
    seen = measure_inputs(network, ids)
    nearest = {name: rounded_to_nearest(linear) for name, linear in network.linears.items()}
    yield one("own graph, rounded to nearest in reduced range", "nearest", graph.write(network, table, nearest))
    gptq = {
        name: quantize_linear(linear, seen[name], Form(), 0, is_folded=True) for name, linear in network.linears.items()
    }
    yield one("+ GPTQ under the pair rule", "gptq", graph.write(network, table, gptq))
    folded, folded_seen = fold_smoothing(network, seen)
    for label, name, only in (
        ("+ smoothing", "smoothed", Form()),
        ("+ outlier channels in FP32", "outliers", Form(outliers=1)),
        ("+ rotation", "rotated", Form(outliers=1, rotated=True)),
        ("+ a scale for each token (`--effort fast`)", "fast", Form(outliers=1, rotated=True, per_token=True)),
    ):
        linears = {}
        for layer, linear in folded.linears.items():
            kind = kind_of(layer)
            form = limited(FORMS[kind][-1], only)
            free = kind == "attention_out"
            linears[layer] = quantize_linear(linear, folded_seen[layer], form, SMOOTHING[kind], free)
        yield one(label, name, graph.write(folded, table, linears))

    unsmoothed = {
        layer: with_outliers_alone(linear, seen[layer], FORMS[kind_of(layer)][-1].outliers)
        for layer, linear in network.linears.items()
    }
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
    static = with_static_scales(final, ids)
    yield one("… but static scales of activations", "static", static)
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


def limited(form: Form, only: Form) -> Form:
    """Return the form with only those features that `only` has, too."""
    return replace(
        form,
        outliers=form.outliers if only.outliers else 0,
        rotated=form.rotated and only.rotated,
        per_token=form.per_token and only.per_token,
    )


def with_outliers_alone(linear: Linear, inputs: InputStatistics, outliers: int) -> QuantizedLinear:
    """Quantize with GPTQ and outlier channels, without smoothing."""
    made = quantize_linear(linear, inputs, Form(outliers=outliers), 0, is_folded=True)
    if not outliers:
        return made
    smooth = np.ones(len(linear.weight), np.float32)
    smooth[made.outliers] = 0
    return replace(made, smooth=smooth)


def rounded_to_nearest(linear: Linear) -> QuantizedLinear:
    """Quantize with one scale for each output in half of the range, as quantize_dynamic does."""
    scale = np.maximum(np.abs(linear.weight).max(0), 1e-12) / REDUCED
    codes = np.round(linear.weight / scale).astype(np.int8)
    none = np.zeros(0, np.int64)
    return QuantizedLinear(codes, scale, linear.bias, None, none, linear.weight[none])


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
    new = {}
    for x in layers:
        q, k, v = (f"{x}.{part}" for part in "qkv")
        new[f"{x}.flat"] = [
            helper.make_node("Reshape", [given[f"{x}.split"], "qkv_3d"], [f"{x}.qkv_3d"]),
            helper.make_node("Split", [f"{x}.qkv_3d"], [q, k, v], axis=2),
            helper.make_node(
                "MultiHeadAttention", [q, k, v], [f"{x}.context"], domain=MICROSOFT, num_heads=heads, scale=1.0
            ),
            helper.make_node("Reshape", [f"{x}.context", "context_shape"], [f"{x}.flat"]),
        ]
    parts = ("split", "heads", "q", "scores", "highest", "shifted", "powers", "total", "weights", "context", "joined")
    width = next(len(numpy_helper.to_array(i)) for i in model.graph.initializer if i.name == f"{layers[0]}.qkv.bias")
    return changed(model, new, {f"{x}.{part}" for x in layers for part in parts}, {"qkv_3d": np.array([1, -1, width])})


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


def with_static_scales(model: onnx.ModelProto, ids: list[Ids]) -> onnx.ModelProto:
    """Return a copy with static scales of activations: the range of their values on the calibration texts."""
    products = [node for node in model.graph.node if node.op_type == "DynamicQuantizeMatMul"]
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    inputs = sorted({node.input[0] for node in products})
    watched.graph.output.extend(helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in inputs)
    session = open_session(watched)
    low, high = dict.fromkeys(inputs, 0.0), dict.fromkeys(inputs, 0.0)
    for item in ids:
        for name, x in zip(inputs, session.run(inputs, {"input_ids": item}), strict=True):
            low[name], high[name] = min(low[name], float(x.min())), max(high[name], float(x.max()))
    new, tensors = {}, {}
    for node in products:
        x, weight, scale, _, bias = [*node.input, "", ""][:5]
        x_scale, x_zero, x_codes = f"{node.name}.x_scale", f"{node.name}.x_zero", f"{node.name}.x_codes"
        step = max((high[x] - low[x]) / 255, 1e-12)
        tensors[x_scale] = np.array(step, np.float32)
        tensors[x_zero] = np.array(round(-low[x] / step), np.uint8)
        product = [x_codes, weight, x_scale, scale, x_zero, "", bias]
        new[node.name] = [
            helper.make_node("QuantizeLinear", [x, x_scale, x_zero], [x_codes]),
            helper.make_node("MatMulIntegerToFloat", product, list(node.output), domain=MICROSOFT),
        ]
    return changed(model, new, tensors=tensors)


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
    """Run as a worker process: measure the `speed`, compute the `vectors`, write a `profile`. files: file, plain."""

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
    order = np.random.default_rng(job.seed).permutation(len(job.files)).tolist()
    runs = {index: opened(Path(job.files[index][0]), job.files[index][1], job.pooling) for index in order}
    if job.task == "speed":
        (folder / "rounds.json").write_text(json.dumps(relative_speeds(runs, ids)), encoding="utf-8")
        return
    with ThreadPoolExecutor(cpu.available_cpus()) as pool:
        np.save(folder / "vectors.npy", np.array([list(pool.map(runs[index], ids)) for index in sorted(runs)]))


def opened(file: Path, plain: bool, pooling: str) -> Callable[[Ids], Floats]:
    """Open a model with one thread, as the server does; return ids -> vector."""
    session = ort.InferenceSession(str(file), session_options(), providers=["CPUExecutionProvider"])

    def one(ids: Ids) -> Floats:
        vector: Floats = session.run(None, {"input_ids": ids})[0]
        return vector

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


def session_options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return options


def relative_speeds(runs: Mapping[int, Callable[[Ids], Floats]], ids: list[Ids]) -> list[list[float]]:
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
    network = graph.read(folder / FP32)
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
    kind = next((kind for kind in graph.LINEARS if f".{kind}." in name), "")
    if operator in ("DynamicQuantizeMatMul", "Gemm", "MatMul", "FusedMatMul", "Mul"):
        return f"{operator}: {kind}" if kind else f"{operator}: attention" if "layers." in name else operator
    return operator


def profile(folder: Path, file: Path, ids: Ids) -> None:
    """Write ONNX Runtime's profile of many runs into the folder."""
    options = session_options()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    for _ in range(PROFILED_RUNS):
        session.run(None, {"input_ids": ids})
    session.end_profiling()


if __name__ == "__main__":
    main()
