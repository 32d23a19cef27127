"""Every architecture that the build takes, as a tiny random model: exact, the same bits in any run, and in INT8."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from build import BuildError, architectures, export_onnx, quantize
from build.export_onnx import FP32
from build.quantize import INT8
from build.similarity import cosines
from tests.support import tiny_model as tiny

Floats = NDArray[np.float32]
# What each architecture's configuration needs besides the sizes.
VARIANTS: dict[str, dict[str, Any]] = {
    "BertModel": {},
    "CamembertModel": {"specials": tiny.SPECIALS_OF_ROBERTA},
    "DistilBertModel": {},
    "ElectraModel": {"options": {"embedding_size": 24}},
    "MPNetModel": {"specials": tiny.SPECIALS_OF_ROBERTA},
    # windows of 8 tokens to either side in two layers of three
    "ModernBertModel": {"layers": 4, "options": {"local_attention": 16, "max_position_embeddings": 128}},
    "RobertaModel": {"specials": tiny.SPECIALS_OF_ROBERTA},
    "XLMRobertaModel": {"specials": tiny.SPECIALS_OF_ROBERTA},
}
LIMIT = 128
TEXTS = ["the cat", "", "東京 は 日本 の 首都", "dynamic [PAD] programming [PAD][MASK] a", "the " * 300]


class Built:
    """A model as sentence-transformers has it, and its exported folder."""

    def __init__(self, folder: Path, **variant: Any) -> None:
        self.original = export_onnx.load(tiny.write(folder / "source", **variant))
        self.out = folder / "model"
        self.facts = export_onnx.export(self.original, self.out)
        self.original.max_seq_length = LIMIT

    def ids(self, text: str) -> NDArray[np.int64]:
        return np.array([self.original.tokenizer(text, truncation=True, max_length=LIMIT)["input_ids"]], np.int64)

    def session(self, file: str) -> ort.InferenceSession:
        return ort.InferenceSession(str(self.out / file), providers=["CPUExecutionProvider"])

    def embed(self, texts: list[str], file: str = FP32) -> Floats:
        session = self.session(file)
        return np.concatenate([session.run(None, {"input_ids": self.ids(text)})[0] for text in texts])

    def reference(self, texts: list[str]) -> Floats:
        """Return the original's vectors, each text alone, so without padding."""
        return np.concatenate([self.original.encode([text], prompt="") for text in texts])


@pytest.fixture(scope="module", params=VARIANTS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("model"), architecture=request.param, **VARIANTS[request.param])


def test_every_architecture_is_tried() -> None:
    assert VARIANTS.keys() == architectures.READERS.keys()


def test_fp32_equals_the_original(built: Built) -> None:
    """Texts with special tokens in them, an empty one and one over the limit have the original's vectors."""
    vectors, reference = built.embed(TEXTS), built.reference(TEXTS)
    assert cosines(vectors, reference).min() > 0.999999
    np.testing.assert_allclose(vectors, reference, atol=2e-5)
    assert (built.facts.max_positions, built.facts.dimension) == (LIMIT, 32)


def test_every_length(built: Built) -> None:
    """Texts of every number of tokens up to the limit, so around the edges of windows, have the original's vectors."""
    words = tiny.WORDS[:10] * LIMIT  # of one token each
    texts = [" ".join(words[n : 2 * n]) for n in range(LIMIT - 1)]
    assert [built.ids(text).shape[1] for text in texts] == list(range(2, LIMIT + 1))
    assert cosines(built.embed(texts), built.reference(texts)).min() > 0.999999


def assert_same_bits_in_any_run(session: ort.InferenceSession, vocabulary: int) -> None:
    """Random rows have the same bits alone and in runs of any number and order."""
    random = np.random.default_rng(3)
    for _ in range(40):
        length = int(random.integers(2, 65))
        rows = random.integers(0, vocabulary, (int(random.integers(2, 2 + 256 // length)), length))
        together = session.run(None, {"input_ids": rows})[0]
        alone = np.concatenate([session.run(None, {"input_ids": row[None]})[0] for row in rows])
        np.testing.assert_array_equal(together, alone, str(rows.shape))


def test_int8(built: Built) -> None:
    """INT8 is near FP32, and both have the same bits in any run."""
    quantize.quantize(built.out, "fast")
    texts = TEXTS + [" ".join((tiny.WORDS * 2)[n : n + 9]) for n in range(12)]
    assert cosines(built.embed(texts, INT8), built.embed(texts)).min() > 0.995
    for file in (FP32, INT8):
        assert_same_bits_in_any_run(built.session(file), 60)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"])
@pytest.mark.parametrize("normalize", [False, True])
def test_poolings_and_dense(tmp_path: Path, pooling: str, normalize: bool) -> None:
    """Every pooling, with layers after it or without, gives the original's vectors, and the same bits in any run."""
    import torch
    from sentence_transformers.base.modules import Dense

    torch.manual_seed(2)
    layers = (Dense(32, 48), Dense(48, 24, bias=False, activation_function=torch.nn.Identity()))
    for name, dense in (("plain", ()), ("dense", layers)):
        model = Built(tmp_path / name, pooling=pooling, dense=dense, normalize=normalize)
        vectors = model.embed(TEXTS)
        np.testing.assert_allclose(vectors, model.reference(TEXTS), atol=2e-5)
        assert vectors.shape[1] == model.facts.dimension == (24 if dense else 32)
        assert_same_bits_in_any_run(model.session(FP32), 60)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(tmp_path: Path, dtype: str) -> None:
    """Weights in half precision are computed in float32, by the reference, too."""
    import torch
    from safetensors.torch import load_file, save_file

    source = tiny.write(tmp_path / "source")
    for file in source.rglob("*.safetensors"):
        save_file({name: value.to(getattr(torch, dtype)) for name, value in load_file(file).items()}, file)
    (config,) = [path for path in source.glob("*config.json") if "dtype" in json.loads(path.read_text())]
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": dtype}))
    original = export_onnx.load(source)
    export_onnx.export(original, tmp_path / "model")
    session = ort.InferenceSession(str(tmp_path / "model" / FP32), providers=["CPUExecutionProvider"])
    vector = session.run(None, {"input_ids": np.array([original.tokenizer("the cat")["input_ids"]])})[0]
    np.testing.assert_allclose(vector, original.encode(["the cat"]), atol=2e-6)


def test_a_folder_of_transformers_alone(tmp_path: Path) -> None:
    """A folder without modules.json has mean pooling, as in sentence-transformers."""
    source = tiny.write(tmp_path / "source")
    backbone = shutil.copytree(source / "backbone", tmp_path / "bare")
    facts = export_onnx.export(export_onnx.load(backbone), tmp_path / "model")
    assert (facts.pooling, facts.normalize, facts.max_seq_length) == ("mean", False, LIMIT)


def test_no_code_of_a_folder_is_run(tmp_path: Path) -> None:
    """A folder that names modules of its own, or has its weights in pickles only, is refused."""
    source = tiny.write(tmp_path / "source")
    modules = json.loads((source / "modules.json").read_text())
    modules[0]["type"] = "own_module.Transformer"
    other = shutil.copytree(source, tmp_path / "other")
    (other / "modules.json").write_text(json.dumps(modules))
    (other / "own_module.py").write_text("raise SystemExit('it was run')")
    with pytest.raises(BuildError, match="modules.json names own_module.Transformer; only sentence-transformers' own"):
        export_onnx.load(other)
    shutil.rmtree(source / "backbone")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(BuildError, match="has its weights as .bin, which can run code; supported is .safetensors."):
        export_onnx.load(source)
