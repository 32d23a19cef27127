"""Every architecture that the build takes, as a tiny random model: exact, the same bits in any run, and in INT8."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from build import BuildError, architectures, export_onnx, quantize
from build.export_onnx import FP32
from build.network import read
from build.quantize import INT8
from build.similarity import cosines
from build.source import fetch
from tests.support import tiny_model as tiny
from tests.support.model import assert_same_bits_in_any_run

Floats = NDArray[np.float32]
# Arguments of tiny_model.write() for each architecture.
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

    def embed(self, texts: list[str], file: str = FP32) -> Floats:
        session = ort.InferenceSession(str(self.out / file), providers=["CPUExecutionProvider"])
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


def test_int8(built: Built) -> None:
    """INT8 is near FP32, and both have the same bits in any run."""
    quantize.quantize(built.out, "fast")
    texts = TEXTS + [" ".join((tiny.WORDS * 2)[n : n + 9]) for n in range(12)]
    assert cosines(built.embed(texts, INT8), built.embed(texts)).min() > 0.995
    for file in (FP32, INT8):
        assert_same_bits_in_any_run(built.out / file, 40)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max", "lasttoken", "weightedmean", "mean_sqrt_len_tokens"])
def test_poolings_and_dense(tmp_path: Path, pooling: str) -> None:
    """Every pooling, with layers after it or without, gives the original's vectors, and the same bits in any run."""
    import torch
    from sentence_transformers.base.modules import Dense

    torch.manual_seed(2)
    layers = (Dense(32, 48), Dense(48, 24, bias=False, activation_function=torch.nn.Identity()))
    for name, dense in (("plain", ()), ("dense", layers)):
        model = Built(tmp_path / name, pooling=pooling, dense=dense, normalize=pooling in ("mean", "max", "cls"))
        vectors = model.embed(TEXTS)
        np.testing.assert_allclose(vectors, model.reference(TEXTS), atol=2e-5)
        assert vectors.shape[1] == model.facts.dimension == (24 if dense else 32)
        assert_same_bits_in_any_run(model.out / FP32, 40)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(tmp_path: Path, dtype: str) -> None:
    """Weights in half precision are computed in float32, by the reference, too."""
    import torch

    source = tiny.write(tmp_path / "source")
    change_weights(source, lambda weights: {name: value.to(getattr(torch, dtype)) for name, value in weights.items()})
    change(source / "config.json", dtype=dtype)
    original = export_onnx.load(source)
    export_onnx.export(original, tmp_path / "model")
    session = ort.InferenceSession(str(tmp_path / "model" / FP32), providers=["CPUExecutionProvider"])
    vector = session.run(None, {"input_ids": np.array([original.tokenizer("the cat")["input_ids"]])})[0]
    np.testing.assert_allclose(vector, original.encode(["the cat"]), atol=2e-6)


def test_a_folder_of_transformers_alone(tmp_path: Path) -> None:
    """A folder without modules.json has mean pooling, as in sentence-transformers."""
    backbone = tiny.write(tmp_path / "source") / "backbone"
    export_onnx.export(export_onnx.load(fetch(str(backbone)).folder), tmp_path / "model")
    assert read(tmp_path / "model" / FP32).pooling == "mean"


def refuse(folder: Path, sentence: str) -> None:
    """Check that a folder is refused with this sentence before anything is written."""
    with pytest.raises(BuildError, match=re.escape(sentence)):
        export_onnx.export(export_onnx.load(folder), folder / "model")
    assert not (folder / "model").exists()


def change(file: Path, **fields: Any) -> None:
    """Set fields of a JSON file; None removes one."""
    content = {**(json.loads(file.read_text()) if file.is_file() else {}), **fields}
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def change_weights(source: Path, changed: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    from safetensors.torch import load_file, save_file

    file = source / "model.safetensors"
    save_file(changed(load_file(file)), file, metadata={"format": "pt"})


def test_missing_weights(tmp_path: Path) -> None:
    """A model that lacks weights is refused: transformers would take random ones."""
    source = tiny.write(tmp_path / "source")
    change_weights(
        source, lambda weights: {name: value for name, value in weights.items() if "layer.1.output" not in name}
    )
    refuse(source, "has no weights, or others, for 4 tensors, such as encoder.layer.1.output.LayerNorm.bias.")


@pytest.mark.parametrize(
    ("file", "fields", "sentence"),
    [
        ("config_sentence_transformers.json", {"model_type": "CrossEncoder"}, "The model is a CrossEncoder; supported"),
        ("config_sentence_transformers.json", {"truncate_dim": 16}, "The model's truncate_dim is 16; not supported"),
        ("2_Normalize/config.json", {"module_output_name": "other"}, "The model's module_output_name is 'other'"),
        ("tokenizer_config.json", {"split_special_tokens": True}, "The model's split_special_tokens is True"),
        ("tokenizer_config.json", {"truncation_side": "left"}, "The model's truncation_side is 'left'"),
        (
            "sentence_bert_config.json",
            {"module_output_name": "sentence_embedding"},
            "The model's module_output_name is",
        ),
        ("sentence_bert_config.json", {"max_seq_length": 1}, "The model's max_seq_length is 1; it must be at least 3."),
        ("config.json", {"num_hidden_layers": 0}, "The model has no layers."),
    ],
)
def test_options_that_are_not_supported(tmp_path: Path, file: str, fields: dict[str, Any], sentence: str) -> None:
    """An option that would change the vectors is refused by its name."""
    source = tiny.write(tmp_path / "source", normalize=True)
    (source / file).parent.mkdir(exist_ok=True)
    change(source / file, **fields)
    if "num_hidden_layers" in fields:
        change_weights(
            source, lambda weights: {name: value for name, value in weights.items() if ".layer." not in name}
        )
    refuse(source, sentence)


def test_an_activation_of_its_own(tmp_path: Path) -> None:
    """A Dense module with a function that sentence-transformers would replace is refused."""
    from sentence_transformers.base.modules import Dense

    source = tiny.write(tmp_path / "source", dense=(Dense(32, 16),))
    change(source / "2_Dense/config.json", activation_function="own_module.Swish")
    refuse(source, "The activation of a Dense module is own_module.Swish; supported are Identity and Tanh.")


def test_tokenizers_that_do_not_fit(tmp_path: Path) -> None:
    """A tokenizer whose files are missing, or with tokens that the model does not have, is refused."""
    source = tiny.write(tmp_path / "source")
    other = shutil.copytree(source, tmp_path / "other")
    content = json.loads((source / "tokenizer.json").read_text())
    content["model"]["vocab"]["extra"] = len(content["model"]["vocab"])
    (source / "tokenizer.json").write_text(json.dumps(content))
    refuse(source, "The tokenizer has the token id")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (other / name).unlink()
    refuse(other, "has no tokens but the special ones: its files are missing.")


def test_no_code_of_a_folder_is_run(tmp_path: Path) -> None:
    """A folder that names modules of its own, or has its weights in pickles only, is refused."""
    source = tiny.write(tmp_path / "source")
    modules = json.loads((source / "modules.json").read_text())
    modules[0]["type"] = "own_module.Transformer"
    other = shutil.copytree(source, tmp_path / "other")
    (other / "modules.json").write_text(json.dumps(modules))
    (other / "own_module.py").write_text("raise SystemExit('it was run')")
    refuse(other, "The model's modules.json names own_module.Transformer; supported are Transformer, Pooling, ")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    refuse(source, "pytorch_model.bin has weights that can run code; supported is .safetensors.")
