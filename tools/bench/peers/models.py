"""The one model, in the formats that the peers read.

Releases of sentence-transformers and transformers before the newest cannot read a folder that
the newest has saved, though the weights and the tokenizer are the same. So the folder is written
once in the format that all of them read, the one of every published model.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.engine import cpu

CLASSIC = "sentence_transformers"
ONNX_ONLY = "onnx"
INT8 = "onnx/model_quantized.onnx"
STAMP = "made_from.json"
Export = Callable[[Path, Path], None]


def write(out: Path, source: Path, max_length: int, export: Export | None) -> None:
    """Write out/sentence_transformers and, with `export`, the INT8 file and out/onnx. What is up to date is kept.

    Args:
        export: (folder, out) -> writes out/onnx/ with the INT8 file, model_q….onnx, in it.
    """
    wanted = {"source": _fingerprint(source), "max_length": max_length}
    classic, onnx_only = out / CLASSIC, out / ONNX_ONLY
    if _stamp(classic) != wanted:
        shutil.rmtree(out, ignore_errors=True)
        classic.mkdir(parents=True)
        _write_classic(classic, source, max_length)
        _seal(classic, wanted)
    if export is None:
        return
    wanted = {**wanted, "quantization": quantization()}
    if _stamp(onnx_only) != wanted:
        shutil.rmtree(onnx_only, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=out) as scratch:
            export(classic, Path(scratch))
            (int8,) = (Path(scratch) / "onnx").glob("model_q*.onnx")
            (classic / INT8).parent.mkdir(exist_ok=True)
            int8.replace(classic / INT8)
        _write_onnx_only(onnx_only, classic, max_length)
        _seal(onnx_only, wanted)


def quantization() -> str:
    """Return the name of sentence-transformers' quantization configuration for this CPU."""
    features = cpu.features()
    if features["architecture"] in ("aarch64", "arm64"):
        return "arm64"
    if features["vnni"]:
        return "avx512_vnni"
    return "avx512" if features["avx512"] else "avx2"


def default_prompt(folder: Path) -> str:
    """Return the prefix that sentence-transformers adds to a text by default."""
    config = _json(folder / "config_sentence_transformers.json")
    name = config.get("default_prompt_name")
    return str(config["prompts"][name]) if name else ""


def pooling(folder: Path) -> str:
    """Return the pooling, mean or cls."""
    return "cls" if _json(folder / "1_Pooling/config.json").get("pooling_mode_cls_token") else "mean"


def _write_classic(out: Path, source: Path, max_length: int) -> None:
    modules = _json(source / "modules.json")
    for file in source.iterdir():
        if file.suffix in (".json", ".txt", ".model"):
            shutil.copy(file, out)
        elif file.name in ("model.safetensors", "pytorch_model.bin"):
            _link(file, out)
    for module in modules:
        kind = module["type"].rpartition(".")[2]
        module["type"] = f"sentence_transformers.models.{kind}"
        if module["path"]:
            shutil.copytree(source / module["path"], out / module["path"])
        if kind == "Pooling":
            _write(
                out / module["path"] / "config.json", _classic_pooling(_json(source / module["path"] / "config.json"))
            )
    tokenizer = _json(source / "tokenizer_config.json")
    for name in ("backend", "is_local", "local_files_only"):
        tokenizer.pop(name, None)
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    _write(out / "modules.json", modules)
    _write(out / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    _write(out / "tokenizer_config.json", {**tokenizer, "model_max_length": max_length})


def _classic_pooling(config: dict[str, Any]) -> dict[str, Any]:
    if "pooling_mode" not in config:
        return config
    mode = config["pooling_mode"]
    return {
        "word_embedding_dimension": config["embedding_dimension"],
        "pooling_mode_cls_token": mode == "cls",
        "pooling_mode_mean_tokens": mode == "mean",
        "include_prompt": config["include_prompt"],
    }


def _write_onnx_only(out: Path, classic: Path, max_length: int) -> None:
    """Write a folder without other weights. Infinity's ONNX engine truncates texts at max_position_embeddings only."""
    shutil.copytree(classic, out, ignore=shutil.ignore_patterns("*.safetensors", "*.bin", "*.onnx", STAMP))
    config = _json(classic / "config.json")
    _write(out / "config.json", {**config, "max_position_embeddings": max_length})
    _link(classic / INT8, out / Path(INT8).parent)


def _link(file: Path, folder: Path) -> None:
    """Link or copy a file; a link uses no space."""
    folder.mkdir(exist_ok=True)
    try:
        os.link(file.resolve(), folder / file.name)
    except OSError:
        shutil.copy(file, folder)


def _fingerprint(source: Path) -> list[list[Any]]:
    files = sorted(path for path in source.rglob("*") if path.is_file())
    return [[str(path.relative_to(source)), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def _stamp(folder: Path) -> Any:
    return _json(folder / STAMP) if (folder / STAMP).is_file() else None


def _seal(folder: Path, wanted: dict[str, Any]) -> None:
    _write(folder / STAMP, wanted)


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2))
