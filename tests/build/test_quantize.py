"""INT8: GPTQ, the forms of a linear layer, the search, and the same bits on every CPU."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper

from build import BuildError, export_onnx, graph, quantize, search
from build.__main__ import main
from build.forms import Form
from build.gptq import LARGEST, PAIR_SUM, quantize_weight
from build.network import Linear, Network, Norm, read
from build.quantize import INT8
from build.quantize_linear import measure_inputs, quantize_linear
from build.similarity import cosines
from tests.support import ROOT
from tests.support import tiny_model as tiny
from tests.support.model import assert_same_bits_in_any_run
from tests.support.programs import give_up
from tools import older_cpu

Floats = NDArray[np.float32]
IDS = [np.array(ids, np.int64) for ids in ([2, 3], [2, 5, 9, 14, 3], [2, *range(20, 60), 3])]
ENCODE = """
import sys
from pathlib import Path
import numpy as np
import onnxruntime
from app.engine.model_folder import ModelFolder
from app.engine.encoder import Encoder
from build.texts import held_out

folder, out = Path(sys.argv[1]), sys.argv[2]
model_folder = ModelFolder.load(folder, folder / "model_int8.onnx", folder / "tokenizer")
encoder = Encoder.load(model_folder, max_length=min(256, model_folder.manifest.max_positions))
encoder.open()
np.save(out, encoder.encode([text for lines in held_out().values() for text in lines[::2]]).vectors)
print(onnxruntime.__file__)
"""


def embed(model: onnx.ModelProto | Path) -> Floats:
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["embedding"], {"input_ids": ids[None]})[0] for ids in IDS])


def weights(path: Path) -> dict[str, NDArray[Any]]:
    tensors = {item.name: item for item in onnx.load(path).graph.initializer}
    return {name: numpy_helper.to_array(item) for name, item in tensors.items()}


def pair_sums(codes: NDArray[np.int8]) -> NDArray[np.int32]:
    pairs = codes[: len(codes) // 2 * 2].astype(np.int32).reshape(-1, 2, codes.shape[1])
    sums: NDArray[np.int32] = np.abs(pairs.sum(1))
    return sums


@pytest.mark.parametrize("inputs", [64, 130, 33])
def test_rounding_keeps_the_pair_rule_and_uses_more_than_seven_bits(inputs: int) -> None:
    """Sums of adjacent weights stay within 128, and single weights use up to 127."""
    random = np.random.default_rng(inputs)
    weight = random.standard_normal((inputs, 48)).astype(np.float32)
    weight[:2] = 9  # a pair of the same sign: the hardest case
    codes, scale = quantize_weight(weight, np.eye(inputs, dtype=np.float32))
    assert codes.dtype == np.int8
    assert scale.shape == (48,)
    assert pair_sums(codes).max() <= PAIR_SUM
    assert 64 <= np.abs(codes).max() <= LARGEST
    error = codes[2:] * scale - weight[2:]
    assert np.abs(error).max() <= 1.01 * scale.max()


def test_rounding_serves_the_outputs_not_the_weights() -> None:
    """With correlated inputs, GPTQ's outputs have a smaller error than those of weights rounded one by one."""
    random = np.random.default_rng(1)
    x = (random.standard_normal((2000, 8)) @ random.standard_normal((8, 96))).astype(np.float32)
    weight = random.standard_normal((96, 40)).astype(np.float32)
    codes, scale = quantize_weight(weight, (x.T @ x / len(x)).astype(np.float32))
    nearest = np.clip(np.round(weight / scale), -64, 64) * scale
    errors = [np.mean((x @ (candidate - weight)) ** 2) for candidate in (codes * scale, nearest)]
    assert errors[0] < 0.3 * errors[1]


def test_moments_that_are_almost_symmetric() -> None:
    """Moments that rounding has left a little asymmetric are quantized, even if one direction is far the largest."""
    random = np.random.default_rng(0)
    x = 1 + 0.1 * random.standard_normal((500, 256))
    moments = (x.T @ x / len(x)).astype(np.float32)
    uneven = moments + np.tril(3e-5 * random.standard_normal(moments.shape)).astype(np.float32)
    weight = random.standard_normal((256, 8)).astype(np.float32)
    (codes, scale), (expected, expected_scale) = (quantize_weight(weight, item) for item in (uneven, moments))
    assert np.allclose(scale, expected_scale)
    assert np.mean(codes == expected) > 0.98


def test_the_fp32_file_keeps_the_network(tiny_model: Path) -> None:
    """The graph of the network that is read from the FP32 file is the file's own."""
    network = read(tiny_model / "model_fp32.onnx")
    written = graph.write(network, network.words, network.linears).graph
    file = onnx.load(tiny_model / "model_fp32.onnx").graph
    assert list(written.node) == list(file.node)
    for ours, found in zip(written.initializer, file.initializer, strict=True):
        assert ours.name == found.name
        np.testing.assert_array_equal(numpy_helper.to_array(ours), numpy_helper.to_array(found))


def test_the_same_bits_in_any_run(full_size_model: Path) -> None:
    """A text's bits do not depend on the texts of its run, at full size."""
    assert_same_bits_in_any_run(full_size_model / INT8, 40)


def harder(network: Network, factor: float) -> Network:
    """Return the same function with one channel of the norms' outputs and GELU's inputs `factor` times the others."""
    linears, norms = dict(network.linears), dict(network.norms)
    for index in range(network.layers):
        name = f"layers.{index}.attention_norm"
        scale = norms[name].scale.copy()
        scale[3] *= factor
        norms[name] = Norm(scale, norms[name].bias, norms[name].epsilon)
        linear = linears[f"layers.{index}.feed_forward_in"]
        weight = linear.weight.copy()
        weight[3] /= factor
        weight[:, 5] *= factor
        linears[f"layers.{index}.feed_forward_in"] = Linear(weight, linear.bias)
    return Network(**{**vars(network), "linears": linears, "norms": norms})


def test_each_form_is_nearer_than_plain_int8(tiny_model: Path) -> None:
    """On a network with outliers, each form has a fraction of plain INT8's error."""
    network = harder(read(tiny_model / "model_fp32.onnx"), 30)
    ids = [np.array([2, *range(5 + n, 60 + n), 3], np.int64) for n in range(0, 40, 4)]
    inputs = measure_inputs(network, ids)
    reference = embed(graph.write(network, network.words, network.linears))

    def loss(form: Form) -> float:
        linears = {name: quantize_linear(linear, inputs[name], form, 0.5) for name, linear in network.linears.items()}
        return float((1 - cosines(embed(graph.write(network, network.words, linears)), reference)).max())

    plain = loss(Form(headroom=1))
    for form in (
        Form(smoothed=True, outliers=16, headroom=1.25),
        Form(smoothed=True, outliers=16, rotated=True, headroom=1.25),
        Form(smoothed=True, outliers=16, per_token=True),
    ):
        assert loss(form) < plain / 3
    assert loss(Form(smoothed=True, outliers=16)) < plain


def test_the_file_says_what_it_is(tiny_model: Path) -> None:
    """Recipe, effort, the calibration texts' hash and the tools are in the ONNX metadata."""
    model = onnx.load(tiny_model / INT8)
    metadata = {item.key: item.value for item in model.metadata_props}
    assert metadata.keys() == {"recipe", "effort", "calibration_sha256", "tools"}
    assert metadata["recipe"].startswith("GPTQ under the pair rule, smoothing; of 8 linear layers ")
    assert len(metadata["calibration_sha256"]) == 64
    assert metadata["tools"].split()[0] == "onnx"
    onnx.checker.check_model(model, full_check=False)


def test_weights_of_a_model_keep_the_pair_rule(full_size_model: Path) -> None:
    """All integer weights of the full-size model keep the pair rule."""
    codes = [array for name, array in weights(full_size_model / INT8).items() if array.dtype == np.int8]
    linear = [array for array in codes if len(array) < 10_000]  # not the table of words, which is only looked up
    assert len(linear) == 48
    assert max(pair_sums(array).max() for array in linear) <= PAIR_SUM
    assert max(np.abs(array).max() for array in linear) > 100


def test_a_model_too_hard_for_int8_gets_layers_in_fp32(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If no form of INT8 is exact enough, layers are computed in FP32, those with the largest gain first."""
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    easy = quantize.quantize(tmp_path)
    assert ", 0 are in FP32" in easy
    losses = 1 - cosines(embed(tmp_path / INT8), embed(tmp_path / "model_fp32.onnx"))
    monkeypatch.setattr(search, "MAX_MEAN_LOSS", 1e-5)
    monkeypatch.setattr(search, "TABLE_SHARE", 0.01)
    hard = quantize.quantize(tmp_path)
    in_fp32 = int(hard.partition(" are in FP32")[0].rpartition(" ")[2])
    assert 0 < in_fp32 < 8
    assert_same_bits_in_any_run(tmp_path / INT8, 100)
    harder_losses = 1 - cosines(embed(tmp_path / INT8), embed(tmp_path / "model_fp32.onnx"))
    assert harder_losses.mean() < losses.mean()


def test_changes_of_a_large_model_are_ranked_on_fewer_texts(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With many weights, single changes are ranked on every k-th text; what is chosen is measured on all texts."""
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    measured: list[int] = []

    class Counting(search.Evaluator):
        def losses(self, *arguments: Any) -> NDArray[np.float64]:
            found = super().losses(*arguments)
            measured.append(len(found))
            return found

    monkeypatch.setattr(quantize, "Evaluator", Counting)
    for weights, least, every in ((16384 // 4, 1, 4), (16384 // 4, 10**6, 1), (10**9, 1, 1)):
        monkeypatch.setattr(search, "RANKED_WEIGHTS", weights)
        monkeypatch.setattr(search, "RANKED_TEXTS", least)
        measured.clear()
        quantize.quantize(tmp_path)
        everything = max(measured)
        assert measured[-1] == everything  # the choice
        ranked = [count for count in measured if count < everything]
        assert ranked == ([] if every == 1 else [-(-everything // every)] * 16)


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden": 33, "heads": 3, "feed_forward": 65, "layers": 1},
        {"hidden": 144, "heads": 3, "feed_forward": 300, "pooling": "cls", "normalize": True},
    ],
)
def test_odd_sizes(tmp_path: Path, sizes: dict[str, Any]) -> None:
    """Sizes that no block divides stay close to FP32 in each layer's most exact form."""
    model = export_onnx.load(tiny.write(tmp_path / "source", **sizes))
    export_onnx.export(model, tmp_path / "model")
    quantize.quantize(tmp_path / "model", "fast")
    vectors = [embed(tmp_path / "model" / name) for name in (INT8, "model_fp32.onnx")]
    assert cosines(*vectors).min() > 0.998
    assert_same_bits_in_any_run(tmp_path / "model" / INT8, 100)


def test_vectors_close_together_do_not_send_every_layer_to_fp32(tiny_model: Path, tmp_path: Path) -> None:
    """If the texts' vectors lie close together, less error is allowed, also to the table of words."""
    path = tmp_path / "model_fp32.onnx"
    shutil.copytree(tiny_model, tmp_path, dirs_exist_ok=True)
    model = onnx.load(path)
    (bias,) = [item for item in model.graph.initializer if item.name == "layers.1.feed_forward_norm.bias"]
    bias.CopyFrom(numpy_helper.from_array(np.full(32, 3, np.float32), bias.name))
    onnx.save_model(model, path, save_as_external_data=True, location="model_fp32.onnx.data")
    recipe = quantize.quantize(tmp_path)
    assert ", 8 are in FP32" not in recipe
    assert (1 - cosines(embed(tmp_path / INT8), embed(path))).mean() < 4e-5


def test_an_export_of_an_older_version(tiny_model: Path, tmp_path: Path) -> None:
    """An export without the facts for quantization is refused with what to do."""
    model = onnx.load(tiny_model / "model_fp32.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "model_fp32.onnx")
    with pytest.raises(BuildError, match="made by an older version: run python -m build.export_onnx --out "):
        quantize.quantize(tmp_path)


@pytest.mark.parametrize("effort", ["fast", "best"])
def test_efforts(tiny_source: Path, tmp_path: Path, effort: str) -> None:
    """Each effort gives a complete folder with its name; `fast` has every layer in its most exact form."""
    assert main(["--model", str(tiny_source), "--out", str(tmp_path), "--effort", effort]) == 0
    assert quantize.effort_of(tmp_path) == effort
    assert (tmp_path / "manifest.json").is_file()
    if effort == "fast":
        recipe = {item.key: item.value for item in onnx.load(tmp_path / INT8).metadata_props}["recipe"]
        assert "6 have outlier channels in FP32, 2 are rotated, 8 have a scale for each token" in recipe


def test_another_effort_builds_again(
    tiny_source: Path, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder is up to date for the effort that it was made with."""
    arguments = ["--model", str(tiny_source), "--out", str(tmp_path)]
    assert main([*arguments, "--effort", "fast"]) == 0
    assert main([*arguments, "--effort", "fast"]) == 0
    assert "up to date" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "up to date" not in capsys.readouterr().out
    assert quantize.effort_of(tmp_path) == "default"


@pytest.mark.parametrize("model", ["full-size", "every form"])
def test_the_same_bits_on_a_cpu_without_vnni(model: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The server's encoder gives the same floats with the kernels of a CPU that has AVX2 alone."""
    try:
        older = older_cpu.environment()
    except older_cpu.Unavailable as error:
        give_up(str(error))
    if model == "full-size":
        folder = request.getfixturevalue("full_size_model")
    else:  # rotated, with a scale for each token, with Normalize
        folder = tmp_path / "model"
        source = tiny.write(tmp_path / "source", normalize=True)
        assert main(["--model", str(source), "--out", str(folder), "--effort", "fast"]) == 0
    vectors, paths = [], []
    for name, environment in (("here", None), ("older", older)):
        out = tmp_path / f"{name}.npy"
        command = [sys.executable, "-c", ENCODE, str(folder), str(out)]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        paths.append(run.stdout.strip())
        vectors.append(np.load(out))
    assert paths[0] != paths[1]  # the older one is another copy of onnxruntime
    assert len(vectors[0]) > 100
    np.testing.assert_array_equal(*vectors)
