"""A tiny sentence-transformers folder: random weights, a real tokenizer, real modules."""

from pathlib import Path
from typing import Any

# Sizes of each architecture's configuration: hidden size, layers, heads, feed-forward.
SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
SIZES_OF_DISTILBERT = ("dim", "n_layers", "n_heads", "hidden_dim")
# Special tokens by their ids: BERT's, and RoBERTa's, whose positions begin after the id of padding.
SPECIALS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
SPECIALS_OF_ROBERTA = ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")
WORDS = "the cat sat on a mat dynamic programming graph theory 東京 動的 計画 法 は 日本 の 首都".split()
PROMPTS = {"query": "the ", "document": "a "}


def write(
    folder: Path,
    *,
    pooling: Any = "mean",
    dense: tuple[Any, ...] = (),
    normalize: bool = False,
    architecture: str = "BertModel",
    options: dict[str, Any] | None = None,
    specials: tuple[str, ...] = SPECIALS,
    include_prompt: bool = True,
    default_prompt_name: str | None = None,
    hidden: int = 32,
    heads: int = 4,
    layers: int = 2,
    feed_forward: int = 64,
) -> Path:
    """Write a folder of 2 layers, 32 dimensions, 128 positions; the arguments vary one thing each.

    dense: modules after the pooling. options: more of the architecture's configuration.
    """
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    backbone = folder / "backbone"
    vocabulary = write_tokenizer(backbone, specials)
    torch.manual_seed(1)
    config_class = getattr(transformers, architecture.replace("Model", "Config"))
    names = SIZES_OF_DISTILBERT if architecture == "DistilBertModel" else SIZES
    config = config_class(
        vocab_size=vocabulary,
        **dict(zip(names, (hidden, layers, heads, feed_forward), strict=True)),
        initializer_range=0.2,  # so that random vectors differ
        pad_token_id=specials.index("[PAD]"),
        # RoBERTa has as many unused positions as the id of padding and one
        **{"max_position_embeddings": 128 if specials == SPECIALS else 130, **(options or {})},
    )
    getattr(transformers, architecture)(config).save_pretrained(backbone)
    modules: list[Any] = [
        Transformer(str(backbone)),
        Pooling(hidden, pooling_mode=pooling, include_prompt=include_prompt),
        *dense,
        *([Normalize()] if normalize else []),
    ]
    SentenceTransformer(modules=modules, prompts=PROMPTS, default_prompt_name=default_prompt_name, device="cpu").save(
        str(folder), create_model_card=False
    )
    return folder


def write_tokenizer(folder: Path, specials: tuple[str, ...]) -> int:
    """Write a WordPiece tokenizer of words and letters; return the size of its vocabulary."""
    import transformers
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = [chr(code) for code in range(33, 127)]
    pieces = [*specials, *WORDS, *letters, *("##" + letter for letter in letters)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", vocabulary["[SEP]"]), ("[CLS]", vocabulary["[CLS]"]))
    names = {f"{name[1:-1].lower()}_token": name for name in specials}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **names).save_pretrained(
        folder
    )
    return len(vocabulary)
