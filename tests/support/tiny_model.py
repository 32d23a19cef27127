"""A tiny sentence-transformers folder: random weights, a real tokenizer, real modules."""

from pathlib import Path
from typing import Any

WORDS = "the cat sat on a mat dynamic programming graph theory 東京 動的 計画 法 は 日本 の 首都".split()
PROMPTS = {"query": "the ", "document": "a "}


def write(
    folder: Path,
    *,
    pooling: Any = "mean",
    normalize: bool = False,
    architecture: str = "BertModel",
    hidden_act: str = "gelu",
    include_prompt: bool = True,
    default_prompt_name: str | None = None,
    hidden: int = 32,
    heads: int = 4,
    layers: int = 2,
    feed_forward: int = 64,
) -> Path:
    """Write a folder of 2 layers, 32 dimensions, 128 positions; the options vary one thing each."""
    import torch
    import transformers
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.base.modules import Normalize
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = [chr(code) for code in range(33, 127)]
    pieces = [*specials, *WORDS, *letters, *("##" + letter for letter in letters)]
    vocabulary = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    backbone = folder / "backbone"
    names = {f"{name[1:-1].lower()}_token": name for name in specials}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=128, **names).save_pretrained(
        backbone
    )
    torch.manual_seed(1)
    config_class = {"BertModel": transformers.BertConfig, "RobertaModel": transformers.RobertaConfig}[architecture]
    config = config_class(
        vocab_size=len(vocabulary),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=feed_forward,
        max_position_embeddings=128,
        hidden_act=hidden_act,
        initializer_range=0.2,  # so that random vectors differ
        pad_token_id=0,
    )
    getattr(transformers, architecture)(config, add_pooling_layer=False).save_pretrained(backbone)
    modules: list[Any] = [
        Transformer(str(backbone)),
        Pooling(hidden, pooling_mode=pooling, include_prompt=include_prompt),
    ]
    if normalize:
        modules.append(Normalize())
    SentenceTransformer(modules=modules, prompts=PROMPTS, default_prompt_name=default_prompt_name, device="cpu").save(
        str(folder), create_model_card=False
    )
    return folder
