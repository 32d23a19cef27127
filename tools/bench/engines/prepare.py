"""Prepare: installs each engine's packages, and turns the model into its format, once, under .cache/engines/."""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from app.engine.manifest import TOKENIZER, Manifest
from tests.support import ROOT
from tools.bench import peers, recipes

CACHE = ROOT / ".cache/engines"
REQUIREMENTS = Path(__file__).parent / "requirements.txt"
QUANTIZED_TEXTS = 300  # NNCF's own default
PIP = [sys.executable, "-m", "pip"]


def pinned(name: str) -> str:
    """Return the version of a package in requirements.txt."""
    pins = dict(line.split("==") for line in REQUIREMENTS.read_text().splitlines() if "==" in line)
    return pins[name]


def packages(name: str) -> Path:
    """Return the folder of a package for PYTHONPATH; installs it if it is not there."""
    folder = CACHE / f"packages/{name}-{pinned(name)}"
    install = [*PIP, "install", "--quiet", f"{name}=={pinned(name)}"]
    # NNCF comes with its dependencies; the other packages need none besides the build's.
    install += [f"openvino=={pinned('openvino')}"] if name == "nncf" else ["--no-deps"]
    return _made(folder, lambda part: peers.run_tool([*install, "--target", str(part)], peers.INSTALL_SECONDS))


def ours(source: Path, model: Path) -> Path:
    return model


def torch(source: Path, model: Path) -> Path:
    return source


def onnx_fp32(source: Path, model: Path) -> Path:
    return _made(_folder("onnx_fp32", model), lambda part: recipes.export_plain(str(source), part / "model.onnx"))


def onnx_int8(source: Path, model: Path) -> Path:
    """Quantize the usual export in the usual way: `quantize_dynamic`."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain = onnx_fp32(source, model) / "model.onnx"
    return _made(
        _folder("onnx_int8", model),
        lambda part: quantize_dynamic(plain, part / "model.onnx", weight_type=QuantType.QInt8),
    )


def ctranslate2(source: Path, model: Path) -> Path:
    # The converter asks for an attribute that transformers 5 has removed: all its BERT models are "absolute".
    code = (
        "import sys; from transformers import BertConfig; BertConfig.position_embedding_type = 'absolute';"
        "from ctranslate2.converters import TransformersConverter as C;"
        "C(sys.argv[1]).convert(sys.argv[2], quantization='int8', force=True)"
    )
    return _made(
        _folder("ctranslate2", model), lambda part: _python(code, [str(source), str(part)], packages("ctranslate2"))
    )


def openvino(source: Path, model: Path) -> Path:
    code = "import sys, openvino as o; o.save_model(o.convert_model(sys.argv[1]), sys.argv[2], compress_to_fp16=False)"
    plain = onnx_fp32(source, model) / "model.onnx"
    return _made(
        _folder("openvino", model),
        lambda part: _python(code, [str(plain), str(part / "model.xml")], packages("openvino")),
    )


def openvino_int8(source: Path, model: Path) -> Path:
    """Quantize by NNCF's preset for transformers, with the build's calibration texts."""
    code = """
import json, sys, numpy as np, openvino as ov, nncf
rows = json.load(sys.stdin)
def feeds(row):
    ids = np.array([row], np.int64)
    return ids, np.ones_like(ids), np.zeros_like(ids)
model = ov.Core().read_model(sys.argv[1])
data = nncf.Dataset(rows, feeds)
model = nncf.quantize(model, data, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(rows))
ov.save_model(model, sys.argv[2])
"""
    fp32 = openvino(source, model) / "model.xml"
    return _made(
        _folder("openvino_int8", model),
        lambda part: _python(code, [str(fp32), str(part / "model.xml")], packages("nncf"), _calibration(model)),
    )


def llama_cpp(source: Path, model: Path) -> Path:
    """Convert to Q8_0 by the program in the package's source. Token ids go in, so it needs no tokenizer."""
    code = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import convert_hf_to_gguf
from conversion.bert import BertModel
def no_tokenizer(self):
    self._set_vocab_none()
    self.gguf_writer.add_vocab_size(self.hparams["vocab_size"])
    self.gguf_writer.add_token_type_count(self.hparams["type_vocab_size"])
BertModel.set_vocab = no_tokenizer
convert_hf_to_gguf.main()
"""
    arguments = [str(next(_llama_source().glob("*/vendor/llama.cpp"))), str(source), "--outtype", "q8_0", "--outfile"]
    return _made(
        _folder("llama_cpp", model),
        lambda part: _python(code, [*arguments, str(part / "model.gguf")], packages("llama-cpp-python")),
    )


def _llama_source() -> Path:
    package = f"llama-cpp-python=={pinned('llama-cpp-python')}"

    def make(part: Path) -> None:
        peers.run_tool(
            [*PIP, "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python", package, "-d", str(part)],
            peers.INSTALL_SECONDS,
        )
        (archive,) = part.glob("*.tar.gz")
        shutil.unpack_archive(archive, part, filter="data")

    return _made(CACHE / f"packages/llama-cpp-python-{pinned('llama-cpp-python')}-source", make)


def weights(folder: Path, adapter: str) -> Iterator[Path]:
    """Yield the files of a folder that an engine reads, without the tokenizer."""
    patterns = {
        "ours": "model_int8.onnx*",
        "ctranslate2": "model.bin",
        "llama_cpp": "model.gguf",
        "openvino": "model.*",
        "onnx_runtime": "model.onnx*",
    }
    yield from folder.glob(patterns.get(adapter, "*.safetensors"))


def _calibration(model: Path) -> str:
    from build.export_onnx import FP32
    from build.network import read
    from build.quantize import token_ids
    from build.texts import calibration

    texts = [text for lines in calibration().values() for text in lines][:QUANTIZED_TEXTS]
    return json.dumps([ids.tolist() for ids in token_ids(model / TOKENIZER, read(model / FP32), texts)])


def _folder(name: str, model: Path) -> Path:
    """Return a folder for this model: another one has another build key."""
    key = hashlib.sha256(Manifest.load(model).build_key.encode()).hexdigest()[:12]
    return CACHE / f"{name}-{key}"


def _made(folder: Path, make: Callable[[Path], object]) -> Path:
    """Return the folder; if it is not there, it is made, and appears when it is complete."""
    if not folder.is_dir():
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        print(f"{folder.name} …", file=sys.stderr, flush=True)
        make(part)
        part.rename(folder)
    return folder


def _python(code: str, arguments: Sequence[str], package: Path, text: str = "") -> None:
    command = [sys.executable, "-c", code, *arguments]
    peers.run_tool(command, peers.EXPORT_SECONDS, {"PYTHONPATH": str(package)}, text)
