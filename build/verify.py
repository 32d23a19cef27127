"""Verification: proves that the served model equals the original, and completes the model folder if it does.

It runs the shipped Encoder, with INT8 and with FP32, against SentenceTransformer.encode on texts that the quantization
has not seen (see build/texts/). It writes report.json, its plots and speed.json and, if the gate is passed,
manifest.json. Except for speed.json, the same build gives the same bytes twice on one machine.

    python -m build.verify [--model MODEL] [--revision REV] [--out DIR]
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from app.engine import BootError, cpu
from app.engine.encoder import MAX_LENGTH, Encoder
from app.engine.manifest import CHARACTERS, CL100K, MANIFEST, PIECES, TOKENIZER, Golden, Manifest
from app.engine.model_folder import REPORT, SPEED, ModelFolder, sha256
from build import BuildError, cli, evaluate, export_onnx, files, lengths, plots, small_vectors
from build.build_key import build_key
from build.evaluate import Report
from build.export_onnx import FP32, ModelFacts
from build.quantize import INT8, effort_of
from build.similarity import cosines
from build.source import Source, fetch
from build.texts import calibration, calibration_sha256, held_out, pairs, unlike

GOLDEN_TEXT = "動的計画法は、問題を小さな部分問題に分けて解く。Dynamic programming, 2026."
# Least cosine of another CPU's golden vector. On x86-64 with AVX2 the bits are the same (see build/graph.py). On other
# CPUs the order of float sums may differ, which changes the rounding of some activations.
GOLDEN_MIN_COSINE = {FP32: 0.99999, INT8: 0.999}
# The gate, a little below the figures of the two models that it was made with (docs/quantization.md): on other machines
# a few weights may be rounded differently. The overlap also depends on how close a model's vectors lie, and finding
# translations on whether the model knows the languages.
FP32_MIN_COSINE = 0.99999
FP32_LENGTH_DIFFERENCE = 0.001  # relative; a cosine does not see a wrong scale
INT8_COSINE = {"mean": 0.9995, "p1": 0.9985, "min": 0.997}
INT8_UNLIKE_COSINE = {"mean": 0.999, "min": 0.995}
INT8_PAIRWISE_DIFFERENCE = 0.005
INT8_RETRIEVAL_LOSS = 0.005  # of the accuracy of finding translations
INT8_NEIGHBOURS = 0.9
# For vectors of the dtype int8 against the same of float32. Those of bits have no limit: what they lose depends on the
# model, not on its build.
SMALL_VECTORS_LOSS = 0.01


def main() -> int:
    """Run `python -m build.verify` on the results of the other steps; return the exit code."""
    parser = cli.parser("python -m build.verify")
    cli.add_model(parser)
    parser.add_argument("--name", help="the name to show for the model")
    return cli.run(_main, parser.parse_args())


def _main(options: argparse.Namespace) -> None:
    key = build_key(options.model, options.revision, effort_of(options.out))
    with cli.no_progress_bar() as bar:
        source = fetch(options.model, options.revision, options.fallback)
        source = replace(source, model=options.name or source.model)
        run_step(source, options.out, key, bar)
    cli.warn(source.warning)


def run_step(source: Source, out: Path, key: str, bar: Any) -> None:
    """Verify as a step of the build, with its line of progress."""
    with cli.step("verify", bar) as print_result:
        model = export_onnx.load(source.folder)
        facts = export_onnx.inspect(model)[1]
        report, speed = verify(model, facts, source, out, key, progress=bar.update)
        int8, retrieval = report["int8"], report["retrieval"]
        print_result(
            f"cosine to sentence-transformers: mean {int8['mean']:.4f}, least {int8['min']:.4f}; "
            f"difference of similarities {int8['pairwise_difference']:.4f}; "
            f"translations found: {retrieval['int8']:.3f}, by the original {retrieval['reference']:.3f}; "
            f"{speed['int8_over_fp32']} x the speed of FP32"
        )


def verify(
    model: Any,
    facts: ModelFacts,
    source: Source,
    out: Path,
    build_key: str,
    progress: Callable[[], object] = lambda: None,
) -> tuple[Report, Report]:
    """Write OUT/report.json, its plots, OUT/speed.json and, if the gate is passed, OUT/manifest.json.

    Args:
        model: the SentenceTransformer that was exported, the reference.
        progress: called when a part is done.

    Returns: the contents of report.json and of speed.json.

    Raises:
        BuildError: the model falls short of the gate (report.json has the figures), or a file of build/texts/ cannot be
            read.
    """
    texts, group_of = _flat(held_out())
    strange, strange_group_of = _flat(unlike())
    translations = pairs()
    unseen = texts + [english for english, _ in translations] + [japanese for _, japanese in translations]
    n = len(texts)
    max_length = min(MAX_LENGTH, facts.max_positions)
    model.max_seq_length = max_length
    reference = evaluate.reference_vectors(model, unseen)
    strange_reference = evaluate.reference_vectors(model, strange)
    progress()

    draft = _draft(facts, source, out, build_key)
    encoders = {name: _open(draft, out / name, max_length) for name in (FP32, INT8)}
    golden = {name: encoder.encode([GOLDEN_TEXT], prompt="").vectors[0].tolist() for name, encoder in encoders.items()}
    fp32 = encoders[FP32].encode(texts).vectors
    strange_output = {name: encoder.encode(strange) for name, encoder in encoders.items()}
    progress()
    output = encoders[INT8].encode(unseen)
    progress()
    int8, truncated = output.vectors, output.truncated[:n]
    int8_range = small_vectors.int8_range(encoders[INT8].encode(_flat(calibration())[0]).vectors)
    length_of = [evaluate.length_group(*item) for item in zip(output.tokens[:n], truncated, strict=True)]
    alone = np.concatenate([encoders[INT8].encode([text]).vectors for text in reversed(texts + strange)])[::-1]
    together = np.concatenate([int8[:n], strange_output[INT8].vectors])
    own = facts.max_seq_length
    own_limit = lengths.measure(
        model,
        lambda: {name: _open(draft, out / file, own) for name, file in (("fp32", FP32), ("int8", INT8))},
        together,
        texts + strange,
        output.tokens[:n] + strange_output[INT8].tokens,
        [own, max_length],
    )
    report: Report = {
        "model": source.model,
        "revision": source.revision,
        "warning": source.warning,
        "texts": n,
        "max_length": max_length,
        "truncated": sum(truncated),
        "fp32": {
            **evaluate.accuracy(fp32, reference[:n], group_of, length_of),
            "length_difference": evaluate.length_difference(fp32, reference[:n]),
        },
        "int8": evaluate.accuracy(int8[:n], reference[:n], group_of, length_of),
        "unlike": {
            "texts": len(strange),
            "fp32": evaluate.cosine_figures(cosines(strange_output[FP32].vectors, strange_reference)),
            "int8": evaluate.figures_by_group(
                cosines(strange_output[INT8].vectors, strange_reference), strange_group_of
            ),
        },
        "own_limit": own_limit,
        "pairs": {"texts": len(unseen) - n, **evaluate.cosine_figures(cosines(int8[n:], reference[n:]))},
        "retrieval": evaluate.retrieval(int8[n:], reference[n:]),
        "neighbours": evaluate.neighbours(int8, reference, unseen),
        "small_vectors": small_vectors.measure(int8, unseen, len(translations), int8_range),
        "invariance": {"alone_equals_together": bool(np.array_equal(alone, together))},
        "tokens_equal": evaluate.tokens_equal(model, encoders[INT8], texts + strange)
        and evaluate.token_ids_equal(out, draft.tokenizer, unseen + strange),
        "bytes": {name: files.size(out, name) for name in (FP32, INT8)},
    }
    speed = evaluate.speed(encoders, texts)
    progress()
    for name, content in ((REPORT, report), (SPEED, speed)):
        files.write_text(out, name, json.dumps(content, ensure_ascii=False, indent=1) + "\n")
    limits = {f"{name} allowed": 1 - least for name, least in INT8_COSINE.items()}
    plots.write(out, source.model, reference[:n], int8[:n], group_of, output.tokens[:n], limits)
    reasons = failed_checks(report)
    if reasons:
        if effort_of(out) == "fast":
            reasons.append("Another effort than fast keeps layers in FP32 where it is needed.")
        raise BuildError(f"The model falls short, see {out / REPORT}: {' '.join(reasons)}")
    manifest = replace(
        draft,
        golden=Golden(GOLDEN_TEXT, golden, GOLDEN_MIN_COSINE),
        quality=_summary(report),
        int8_range=int8_range,
    )
    files.write_text(out, MANIFEST, manifest.to_json())
    return report, speed


def _flat(groups: dict[str, list[str]]) -> tuple[list[str], list[str]]:
    """Return all texts of groups, and the group of each."""
    rows = [(text, group) for group, texts in groups.items() for text in texts]
    return [text for text, _ in rows], [group for _, group in rows]


def failed_checks(report: Report) -> list[str]:
    """Check the report against the gate; return a sentence for each figure that falls short."""
    fp32, int8, retrieval = report["fp32"], report["int8"], report["retrieval"]
    difference, overlap = int8["pairwise_difference"], report["neighbours"]["overlap"]
    small = report["small_vectors"]["int8"]
    checks = [
        *(
            (least >= FP32_MIN_COSINE, f"FP32's least cosine is {least}, below {FP32_MIN_COSINE}.")
            for least in (fp32["min"], report["unlike"]["fp32"]["min"])
        ),
        (
            fp32["length_difference"] < FP32_LENGTH_DIFFERENCE,
            f"FP32's vectors differ in length by {fp32['length_difference']}, not below {FP32_LENGTH_DIFFERENCE}.",
        ),
        *(
            (figures[name] >= least, f"INT8's {name} cosine{where} is {figures[name]}, below {least}.")
            for figures, limits, where in (
                (int8, INT8_COSINE, ""),
                (report["unlike"]["int8"], INT8_UNLIKE_COSINE, " on texts unlike the calibration's"),
            )
            for name, least in limits.items()
        ),
        *(
            (own["min"] >= least, f"At the model's own limit {name}'s least cosine is {own['min']}, below {least}.")
            for name, least in (("fp32", FP32_MIN_COSINE), ("int8", INT8_UNLIKE_COSINE["min"]))
            if (own := report["own_limit"].get(name))
        ),
        (
            difference < INT8_PAIRWISE_DIFFERENCE,
            f"INT8's mean difference of similarities is {difference}, not below {INT8_PAIRWISE_DIFFERENCE}.",
        ),
        (
            retrieval["difference"] >= -INT8_RETRIEVAL_LOSS,
            f"INT8's accuracy of finding translations is {retrieval['int8']}, "
            f"more than {INT8_RETRIEVAL_LOSS} below the original's {retrieval['reference']}.",
        ),
        (overlap >= INT8_NEIGHBOURS, f"INT8's overlap of nearest neighbours is {overlap}, below {INT8_NEIGHBOURS}."),
        (
            small["retrieval_difference"] >= -SMALL_VECTORS_LOSS,
            f"Vectors of int8 find {-small['retrieval_difference']} fewer of the translations than those of float32, "
            f"more than {SMALL_VECTORS_LOSS}.",
        ),
        (
            small["neighbours"] >= INT8_NEIGHBOURS,
            f"Vectors of int8 keep {small['neighbours']} of the nearest neighbours, below {INT8_NEIGHBOURS}.",
        ),
        (report["invariance"]["alone_equals_together"], "A text's INT8 vector depends on its neighbours."),
        (report["tokens_equal"], "The tokens are not those of the model's own tokenizer."),
    ]
    return [sentence for passed, sentence in checks if not passed]  # a comparison with NaN is False


def _draft(facts: ModelFacts, source: Source, out: Path, build_key: str) -> Manifest:
    """Return the manifest without golden vectors and quality, which the encoders need; it is never written."""
    names = [name for file in (FP32, INT8) for name in (file, f"{file}.data")] + [TOKENIZER, CHARACTERS, PIECES, CL100K]
    int8 = {item.key: item.value for item in onnx.load(out / INT8, load_external_data=False).metadata_props}
    if int8.get("calibration_sha256") != calibration_sha256():
        raise BuildError(
            f"{out / INT8} was quantized with other texts than those of build/texts/, so the proof might measure "
            f"what it has seen: run python -m build.quantize --out {out}."
        )
    packages = ("torch", "sentence-transformers", "transformers", "tokenizers", "onnx", "onnxruntime", "numpy")
    return Manifest(
        model=source.model,
        revision=source.revision,
        stand_in=source.stand_in,
        warning=source.warning,
        dimension=facts.dimension,
        max_positions=facts.max_positions,
        max_seq_length=facts.max_seq_length,
        pooling=facts.pooling,
        normalize=facts.normalize,
        prompts=facts.prompts,
        default_prompt_name=facts.default_prompt_name,
        files={name: sha256(out / name) for name in names if (out / name).is_file()},
        golden=Golden("", {}, {}),
        quality={},
        versions={"python": platform.python_version(), **{name: version(name) for name in packages}},
        recipe=int8["recipe"],
        calibration_sha256=int8["calibration_sha256"],
        build_key=build_key,
    )


def _open(manifest: Manifest, model_file: Path, max_length: int) -> Encoder:
    """Return the shipped encoder on one of the model files, without a cache."""
    model_folder = ModelFolder(model_file, model_file.parent / manifest.tokenizer, manifest)
    try:
        encoder = Encoder.load(model_folder, max_length=max_length, threads=cpu.available_cpus())
        encoder.open(self_check=False)  # the golden vector does not exist yet
    except BootError as error:
        raise BuildError(f"The server would not load the model: {error}") from error
    return encoder


def _summary(report: Report) -> Report:
    """Return the figures of a report that GET / shows."""
    short = ("mean", "p1", "min", "pairwise_difference")
    return {
        "texts": report["texts"],
        "int8": {name: report["int8"][name] for name in short},
        "fp32": {name: report["fp32"][name] for name in (*short, "length_difference")},
        "unlike": {name: report["unlike"]["int8"][name] for name in ("mean", "p1", "min")},
        "own_limit": lengths.summary(report["own_limit"]),
        "pairs": report["pairs"],
        "retrieval": report["retrieval"],
        "neighbours": report["neighbours"],
        **{f"{name}_vectors": figures for name, figures in report["small_vectors"].items()},
        "bytes": report["bytes"],
    }


if __name__ == "__main__":
    sys.exit(main())
