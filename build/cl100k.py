"""Cl100k: writes the table of OpenAI's token ids, for clients that send these instead of text.

The table is in the package llama-index-core, a copy of the file that OpenAI's tiktoken downloads.
"""

import base64
import hashlib
import importlib.util
from pathlib import Path

import numpy as np

from app.engine.manifest import CL100K
from build import BuildError, files

PACKAGE = "llama_index"
# tiktoken's cache: the name is the SHA-1 of https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken
DATA_FILE = "core/_static/tiktoken_cache/9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
# Hash of the file and special tokens: https://github.com/openai/tiktoken/blob/main/tiktoken_ext/openai_public.py
SHA256 = "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7"
SPECIAL_TOKENS = {
    100257: b"<|endoftext|>",
    100258: b"<|fim_prefix|>",
    100259: b"<|fim_middle|>",
    100260: b"<|fim_suffix|>",
    100276: b"<|endofprompt|>",
}


def write(out: Path) -> None:
    """Write OUT/tokenizer/cl100k_base.npy, in the form that app/engine/cl100k.py reads.

    Raises:
        BuildError: the package is not installed, or its file is another one.
    """
    data = _data_file().read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    if digest != SHA256:
        raise BuildError(f"{_data_file()} is not the table of cl100k_base: its SHA-256 is {digest}, not {SHA256}.")
    tokens = dict(SPECIAL_TOKENS)
    for line in data.splitlines():
        token, rank = line.split()
        tokens[int(rank)] = base64.b64decode(token)
    in_order = [tokens.get(index, b"") for index in range(max(tokens) + 1)]
    offsets = np.cumsum([0, *map(len, in_order)], dtype=np.uint32)
    head = np.array([len(in_order)], np.uint32).tobytes() + offsets.tobytes()
    with files.replacing(out, CL100K) as part:
        np.save(part / CL100K, np.frombuffer(head + b"".join(in_order), np.uint8))


def _data_file() -> Path:
    """Find the package's data file without importing the package."""
    spec = importlib.util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (file := Path(folder, DATA_FILE)).is_file():
            return file
    raise BuildError(
        "The table of OpenAI's token ids needs the package llama-index-core, which is not installed: "
        "pip install --no-deps -r requirements/data.txt"
    )
