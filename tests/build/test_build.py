"""The model build, through `python -m build` and its steps, on tiny real models."""

import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from app.engine.model_folder import ModelFolder, sha256
from app.errors import BootError
from build import BuildError, export_onnx, files, plots, quantize, similarity, texts, verify
from build.__main__ import main
from build.source import Source
from tests.support import ROOT
from tests.support import tiny_model as tiny
from tests.support.model import open_encoder

FILES = {
    "manifest.json",
    "model_fp32.onnx",
    "model_fp32.onnx.data",
    "model_int8.onnx",
    "report.json",
    *plots.PLOTS,
    "speed.json",
    "tokenizer",
}
VARIES = {"speed.json"}


def test_what_a_build_leaves(tiny_model: Path) -> None:
    """A build leaves the documented files and nothing unfinished; the manifest describes the model."""
    assert FILES <= {path.name for path in tiny_model.iterdir()} <= {*FILES, "model_int8.onnx.data"}
    manifest = json.loads((tiny_model / "manifest.json").read_text())
    assert (manifest["model"], manifest["revision"], manifest["stand_in"]) == ("tiny", None, False)
    assert (manifest["dimension"], manifest["max_positions"], manifest["pooling"]) == (32, 128, "mean")
    assert manifest["prompts"] == tiny.PROMPTS


def test_the_report_covers_every_group_and_length(tiny_model: Path) -> None:
    """report.json has cosines overall, per file of build/texts and per length, and the gate's figures."""
    report = json.loads((tiny_model / "report.json").read_text())
    assert set(report["int8"]["by_group"]) == {path.stem for path in (ROOT / "build/texts").glob("*.txt")}
    assert "truncated" in report["int8"]["by_length"]
    assert report["texts"] == sum(len(lines) for lines in texts.held_out().values()) >= 200
    assert report["pairs"]["texts"] == report["retrieval"]["queries"] == 2 * len(texts.pairs())
    assert report["neighbours"]["texts"] == report["texts"] + report["pairs"]["texts"]
    unlike = report["unlike"]
    assert set(unlike["int8"]["by_group"]) == set(texts.unlike())
    assert unlike["texts"] == sum(group["texts"] for group in unlike["int8"]["by_group"].values())
    assert min(report["fp32"]["min"], unlike["fp32"]["min"]) >= 0.99999
    assert report["invariance"] == {"alone_equals_together": True}
    assert verify.failed_checks(report) == []


def test_the_speed_is_in_a_file_of_its_own(tiny_model: Path) -> None:
    """speed.json has texts per second, their ratio, and the CPU of the measurement."""
    speed = json.loads((tiny_model / "speed.json").read_text())
    assert speed["int8_over_fp32"] == pytest.approx(
        speed["int8_texts_per_second"] / speed["fp32_texts_per_second"], abs=0.02
    )
    assert isinstance(speed["cpu"]["vnni"], bool)


def test_the_same_build_twice_gives_the_same_bytes(tiny_source: Path, tiny_model: Path, tmp_path: Path) -> None:
    """The same build in another process and folder gives the same bytes, except for speed.json."""
    assert main(["--model", str(tiny_source), "--out", str(tmp_path)]) == 0
    digests = [
        {path.relative_to(out): sha256(path) for path in out.rglob("*") if path.is_file() and path.name not in VARIES}
        for out in (tiny_model, tmp_path)
    ]
    assert digests[0] == digests[1]
    assert len(digests[0]) >= 5


@pytest.mark.parametrize(
    ("part", "figure", "limit", "good", "bad"),
    [
        ("fp32", "min", verify.FP32_MIN_COSINE, 0, -1e-5),
        ("fp32", "length_difference", verify.FP32_LENGTH_DIFFERENCE, -1e-6, 0),
        *(("int8", name, least, 0, -1e-4) for name, least in verify.INT8_COSINE.items()),
        ("unlike.fp32", "min", verify.FP32_MIN_COSINE, 0, -1e-5),
        *(("unlike.int8", name, least, 0, -1e-4) for name, least in verify.INT8_UNLIKE_COSINE.items()),
        ("int8", "pairwise_difference", verify.INT8_PAIRWISE_DIFFERENCE, -1e-6, 0),
        ("retrieval", "difference", -verify.INT8_RETRIEVAL_LOSS, 0, -1e-4),
        ("neighbours", "overlap", verify.INT8_NEIGHBOURS, 0, -1e-4),
        ("small_vectors.int8", "retrieval_difference", -verify.SMALL_VECTORS_LOSS, 0, -1e-4),
        ("small_vectors.int8", "neighbours", verify.INT8_NEIGHBOURS, 0, -1e-4),
    ],
)
def test_the_gate(tiny_model: Path, part: str, figure: str, limit: float, good: float, bad: float) -> None:
    """Each figure below its limit gives one sentence with the limit; NaN fails."""
    report = json.loads((tiny_model / "report.json").read_text())
    figures = functools.reduce(dict.__getitem__, part.split("."), report)
    for value in (limit + bad, float("nan")):
        figures[figure] = value
        (sentence,) = verify.failed_checks(report)
        assert str(abs(limit)) in sentence
    figures[figure] = limit + good
    assert verify.failed_checks(report) == []


@pytest.mark.parametrize(("part", "figure"), [("invariance", "alone_equals_together"), (None, "tokens_equal")])
def test_the_gate_of_what_is_true_or_false(tiny_model: Path, part: str | None, figure: str) -> None:
    report = json.loads((tiny_model / "report.json").read_text())
    (report[part] if part else report)[figure] = False
    assert len(verify.failed_checks(report)) == 1


def test_the_manifest_tells_how_the_int8_file_was_made(tiny_model: Path) -> None:
    """recipe and calibration_sha256 in the manifest are those of the INT8 file's metadata."""
    int8 = onnx.load(tiny_model / "model_int8.onnx", load_external_data=False)
    metadata = {item.key: item.value for item in int8.metadata_props}
    manifest = ModelFolder.load(tiny_model, Path("model_int8.onnx"), Path("tokenizer")).manifest
    assert manifest.recipe == metadata["recipe"]
    assert manifest.calibration_sha256 == metadata["calibration_sha256"] == texts.calibration_sha256()


def test_a_manifest_of_an_earlier_version(tiny_model: Path, tmp_path: Path) -> None:
    """A manifest of another format is refused with the format that the server reads and what to do."""
    out = shutil.copytree(tiny_model, tmp_path / "model")
    manifest = json.loads((out / "manifest.json").read_text())
    assert "created" not in manifest
    (out / "manifest.json").write_text(json.dumps(manifest | {"format": 1, "created": "2026-11-01T00:00:00+00:00"}))
    with pytest.raises(BootError, match=r"has format 1, this server reads 2 – run `make model`\.$"):
        ModelFolder.load(out, Path("model_int8.onnx"), Path("tokenizer"))


@pytest.mark.parametrize("name", ["model_fp32.onnx", "model_int8.onnx"])
def test_the_graph_takes_ids_alone(tiny_model: Path, name: str) -> None:
    """Both files take input_ids (texts, seq) and return embedding (texts, 32)."""
    graph = onnx.load(tiny_model / name, load_external_data=False).graph
    assert [(item.name, len(item.type.tensor_type.shape.dim)) for item in graph.input] == [("input_ids", 2)]
    assert [item.name for item in graph.output] == ["embedding"]
    assert [dim.dim_value for dim in graph.output[0].type.tensor_type.shape.dim] == [0, 32]


def test_the_tokenizer_neither_pads_nor_truncates(tiny_model: Path) -> None:
    """The tokenizer's file is compact, without padding and truncation."""
    text = (tiny_model / "tokenizer/tokenizer.json").read_text()
    assert json.loads(text)["padding"] is json.loads(text)["truncation"] is None
    assert "\n" not in text


@pytest.mark.parametrize(
    "variant",
    [{"pooling": "cls"}, {"normalize": True}, {"default_prompt_name": "query"}, {"pooling": "cls", "normalize": True}],
)
def test_supported_variants(tmp_path: Path, variant: dict[str, Any]) -> None:
    """With CLS pooling, Normalize or a default prompt, FP32 equals the original."""
    folder = tiny.write(tmp_path / "source", **variant)
    model = export_onnx.load(folder)
    out = tmp_path / "model"
    facts = export_onnx.export(model, out)
    quantize.quantize(out)
    verify.verify(model, facts, Source(folder, "variant"), out, "key")
    model.max_seq_length = 64
    some = ["cat", "", "東京 は 日本 の 首都", "the " * 100]
    vectors = open_encoder(out, "model_fp32.onnx").encode(some).vectors
    np.testing.assert_allclose(vectors, model.encode(some), atol=2e-6)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1) == variant.get("normalize", False)


def test_the_models_own_limit(tiny_source: Path, tmp_path: Path) -> None:
    """The proof measures texts over the model's own limit there, too, and what serving them longer changes."""
    model = export_onnx.load(tiny_source)
    model.max_seq_length = 32
    facts = export_onnx.export(model, tmp_path)
    quantize.quantize(tmp_path)
    report, _ = verify.verify(model, facts, Source(tiny_source, "tiny"), tmp_path, "key")
    own = report["own_limit"]
    assert (own["model"], own["served"]) == (32, 128) and own["texts"] > 50
    assert own["fp32"]["min"] >= 0.99999 and own["int8"]["min"] >= 0.995
    assert own["int8_as_served"]["mean"] < 0.99
    quality = json.loads((tmp_path / "manifest.json").read_text())["quality"]["own_limit"]
    assert quality["int8_as_served_mean"] == own["int8_as_served"]["mean"]


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        ({"pooling": ("mean", "max")}, "The model's pooling is mean + max; supported is one of them."),
        ({"include_prompt": False}, "The model's pooling leaves the prompt's tokens out"),
        (
            {"architecture": "AlbertModel", "options": {"embedding_size": 32}},
            "The model's architecture is AlbertModel; supported are BertModel, CamembertModel, DistilBertModel, ",
        ),
        ({"options": {"hidden_act": "relu"}}, "The model's hidden_act is 'relu'; supported is 'gelu'."),
        ({"dense": "ReLU"}, "The activation of a Dense module is ReLU; supported are Identity and Tanh."),
    ],
)
def test_unsupported_models_are_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], variant: dict[str, Any], message: str
) -> None:
    """An unsupported model gives exit code 1 and the reason, and nothing is written."""
    if "dense" in variant:
        import torch
        from sentence_transformers.base.modules import Dense

        variant = {"dense": (Dense(32, 16, activation_function=getattr(torch.nn, variant["dense"])()),)}
    folder = tiny.write(tmp_path / "source", **variant)
    assert main(["--model", str(folder), "--out", str(tmp_path / "model")]) == 1
    assert f"error: {message}" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_unsupported_module(tmp_path: Path, tiny_source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A module that the graph does not express is refused by name."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dropout

    model = SentenceTransformer(str(tiny_source), device="cpu")
    model.append(Dropout(0.1))
    model.save(str(tmp_path / "source"), create_model_card=False)
    assert main(["--model", str(tmp_path / "source"), "--out", str(tmp_path / "model")]) == 1
    assert "modules.dropout.Dropout; supported are Transformer, Pooling, Dense, Normalize." in capsys.readouterr().err


def test_a_broken_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that sentence-transformers cannot load gives one line of error, not a stack trace."""
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "modules.json").write_text("[")
    assert main(["--model", str(folder), "--out", str(tmp_path / "model")]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: sentence-transformers cannot load {folder}: ")
    assert "Traceback" not in error


def test_nothing_changed_does_nothing(tiny_source: Path, tiny_model: Path, tmp_path: Path) -> None:
    """A second build with the same arguments writes no file; another model does."""
    out = shutil.copytree(tiny_model, tmp_path / "model")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert main(["--model", str(tiny_source), "--out", str(out)]) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    other = tiny.write(tmp_path / "other", pooling="cls")
    assert main(["--model", str(other), "--out", str(out)]) == 0
    assert json.loads((out / "manifest.json").read_text())["pooling"] == "cls"


@pytest.mark.parametrize("damage", ["lost", "changed", "no manifest"])
def test_a_damaged_folder_is_built_again(tiny_source: Path, tiny_model: Path, tmp_path: Path, damage: str) -> None:
    """A folder that the server would refuse is not up to date."""
    out = shutil.copytree(tiny_model, tmp_path / "model")
    if damage == "lost":
        (out / "model_int8.onnx").unlink()
    elif damage == "changed":
        (out / "model_int8.onnx").write_bytes((out / "model_int8.onnx").read_bytes() + b" ")
    else:
        (out / "manifest.json").write_text("[]")
    assert main(["--model", str(tiny_source), "--out", str(out)]) == 0
    assert open_encoder(out).not_ready_reason is None


def test_the_steps_alone(tiny_source: Path, tmp_path: Path) -> None:
    """python -m build.export_onnx and build.quantize write what the documentation promises, and no manifest."""
    out = tmp_path / "model"
    step("export_onnx", "--model", str(tiny_source), "--out", str(out))
    assert (out / "tokenizer/tokenizer.json").is_file()
    assert (out / "model_fp32.onnx").is_file()
    step("quantize", "--out", str(out))
    assert (out / "model_int8.onnx").is_file()
    with pytest.raises(BootError, match="manifest.json not found: the model folder is not complete"):
        ModelFolder.load(out, Path("model_int8.onnx"), Path("tokenizer"))


def test_quantize_without_an_export(tmp_path: Path) -> None:
    """The error says which step comes first."""
    run = step("quantize", "--out", str(tmp_path), check=False)
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: There is no {tmp_path / 'model_fp32.onnx'}: run python -m build.export_onnx")


def test_a_step_that_cannot_start_leaves_the_seal(tiny_model: Path, tmp_path: Path) -> None:
    """Quantizing without an FP32 file changes nothing in a folder that serves INT8."""
    out = shutil.copytree(tiny_model, tmp_path / "model")
    (out / "model_fp32.onnx").unlink()
    assert step("quantize", "--out", str(out), check=False).returncode == 1
    assert open_encoder(out).not_ready_reason is None


def test_two_builds_at_once(tiny_source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A second build in the same folder is refused."""
    with files.locked(tmp_path / "model"):
        assert main(["--model", str(tiny_source), "--out", str(tmp_path / "model")]) == 1
    assert "Another build is at work in" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written(tiny_source: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that cannot be written gives one line of error."""
    assert main(["--model", str(tiny_source), "--out", "/proc/model"]) == 1
    assert capsys.readouterr().err.startswith("error: ")


def test_a_step_alone_breaks_the_seal(tiny_model: Path, tmp_path: Path) -> None:
    """Quantizing again in a whole folder removes its manifest: it has to be verified again."""
    out = shutil.copytree(tiny_model, tmp_path / "model")
    step("quantize", "--out", str(out))
    assert not (out / "manifest.json").exists()


def test_a_model_that_falls_short(tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model below the gate gives the reason and a report, but no manifest."""
    out = tmp_path / "model"
    model = export_onnx.load(tiny_source)
    facts = export_onnx.export(model, out)
    quantize.quantize(out)
    monkeypatch.setattr(verify, "INT8_COSINE", {"mean": 0.9999999})
    with pytest.raises(
        BuildError, match=r"falls short, see .*report\.json: INT8's mean cosine is 0\.\d+, below 0\.9999999"
    ):
        verify.verify(model, facts, Source(tiny_source, "tiny"), out, "key")
    assert (out / "report.json").is_file()
    assert not (out / "manifest.json").exists()


@pytest.mark.parametrize(
    ("pooling", "message"),
    [("cls", "FP32's least cosine is"), ("mean_sqrt_len_tokens", "FP32's vectors differ in length by")],
)
def test_a_wrong_graph_falls_short(tiny_source: Path, tmp_path: Path, pooling: str, message: str) -> None:
    """A graph with another pooling than the model's fails the gate, also if only the lengths of its vectors differ."""
    out = tmp_path / "model"
    model = export_onnx.load(tiny_source)
    model[1].pooling_mode = pooling
    facts = export_onnx.export(model, out)
    quantize.quantize(out)
    model[1].pooling_mode = "mean"
    with pytest.raises(BuildError, match=message):
        verify.verify(model, facts, Source(tiny_source, "tiny"), out, "key")


@pytest.mark.parametrize("last", ["manifest.json", "model_fp32.onnx", "model_int8.onnx"])
def test_a_killed_build_is_not_served(tiny_model: Path, tmp_path: Path, last: str) -> None:
    """A build killed after any step leaves a folder that the server refuses; the next build completes it."""
    out = shutil.copytree(tiny_model, tmp_path / "model")
    other = tiny.write(tmp_path / "other", pooling="cls")
    command = [sys.executable, "-m", "build", "--model", str(other), "--out", str(out)]
    before = (out / last).stat().st_mtime_ns
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while (out / last).exists() and (out / last).stat().st_mtime_ns == before:
        assert process.poll() is None
        time.sleep(0.0002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(BootError, match="run `make model`"):
        ModelFolder.load(out, Path("model_int8.onnx"), Path("tokenizer"))
    assert main(["--model", str(other), "--out", str(out)]) == 0
    assert open_encoder(out).not_ready_reason is None
    assert not list(out.glob(".part-*"))


def test_pairwise_difference_is_of_similarities() -> None:
    """Three vectors with the similarities 0, 0, 1 against 1, 1, 1 have the mean difference 2/3."""
    a = np.array([[1, 0], [0, 1], [0, 1]], np.float32)
    assert similarity.pairwise_difference(a, np.ones((3, 2), np.float32)) == pytest.approx(2 / 3)


def test_translation_accuracy_is_of_both_directions() -> None:
    """Translations are found by cosine, not by length; the accuracy is the mean of both directions."""
    a = np.array([[1, 0], [0, 1], [3, 4]], np.float32)
    assert similarity.translation_accuracy(a, 7 * a) == 1
    assert similarity.translation_accuracy(a, a[::-1]) == pytest.approx(1 / 3)
    b = np.array([[5, 1], [0.1, 1], [0.2, 1]], np.float32)
    assert similarity.translation_accuracy(a, b) == pytest.approx(5 / 6)


def test_neighbour_overlap_leaves_out_the_text_itself() -> None:
    """The overlap falls when one vector of two near pairs moves to the other pair."""
    a = np.array([[1, 0], [9, 1], [0, 1], [1, 9]], np.float32)
    assert similarity.neighbour_overlap(a, 7 * a, nearest=1) == 1
    b = np.array([[1, 0], [9, 1], [9, 2], [1, 9]], np.float32)
    assert similarity.neighbour_overlap(a, b, nearest=1) == pytest.approx(2 / 4)
    assert similarity.neighbour_overlap(a, b, nearest=3) == 1


def step(name: str, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    run = subprocess.run(
        [sys.executable, "-m", f"build.{name}", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0 or not check, run.stderr
    return run


def test_the_proof_refuses_texts_that_quantization_may_have_seen(
    tiny_source: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verification refuses a file that was quantized with other texts: the halves would differ."""
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(verify, "calibration_sha256", lambda: "of other texts")
    model = export_onnx.load(tiny_source)
    with pytest.raises(BuildError, match="was quantized with other texts than those of build/texts/"):
        verify.verify(model, export_onnx.inspect(model)[1], Source(tiny_source, "tiny"), tmp_path, "key")
