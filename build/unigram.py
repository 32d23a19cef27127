"""tokenizer.json -> characters.json + pieces.npy: a Unigram vocabulary that loads in a millisecond.

characters.json is the same tokenizer with single characters as its vocabulary: all those of the tokens. pieces.npy is
the trie of the tokens over these characters. app/engine/unigram.py defines its rows, maps it and searches it;
build/verify.py checks that both give the token ids of tokenizer.json.
"""

import json
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from app.engine.manifest import CHARACTERS, PIECES, TOKENIZER
from app.engine.unigram import NO_TOKEN, WORD_START
from build import BuildError, files

# Name of code 0. It has several characters, so no character of a text has this name.
NO_CHARACTER = "unknown character"
# Score of an unknown character: the least score minus this (the library's K_UNK_PENALTY in models/unigram/model.rs).
UNKNOWN_PENALTY = 10.0
# Random positions for a node's children that are tried at once.
TRIES = 64


def write(out: Path) -> bool:
    """Write both files from OUT/tokenizer/tokenizer.json; return whether its kind is supported."""
    content = json.loads((out / TOKENIZER).read_text(encoding="utf-8"))
    if not _is_supported(content):
        for name in (CHARACTERS, PIECES):
            (out / name).unlink(missing_ok=True)
        return False
    vocabulary: list[tuple[str, float]] = [(token, score) for token, score in content["model"]["vocab"]]
    characters = sorted({WORD_START, *(character for token, _ in vocabulary for character in token)})
    codes = {name: code for code, name in enumerate([NO_CHARACTER, *characters])}
    added = {token["content"]: len(codes) + n for n, token in enumerate(content["added_tokens"])}
    text = _characters_json(content, codes, added, Tokenizer.from_file(str(out / TOKENIZER)))
    known = Tokenizer.from_str(text)
    if any(known.token_to_id(token) != code for token, code in added.items()):
        raise BuildError(f"{out / TOKENIZER} has an added token that the tokenizers library numbers unexpectedly.")
    table = _trie(content, vocabulary, codes, added)
    with files.replacing(out, CHARACTERS, PIECES) as part:
        (part / CHARACTERS).write_text(text, encoding="utf-8")
        np.save(part / PIECES, table)
    return True


def _is_supported(content: dict[str, Any]) -> bool:
    """Return whether it is a Unigram model with WORD_START before every word: no token then spans two words."""
    model = content["model"]
    if model.get("type") != "Unigram" or model["unk_id"] is None or model.get("byte_fallback"):
        return False
    names = [token for token, _ in model["vocab"]]
    if len(set(names)) < len(names) or "" in names or WORD_START not in names or names[model["unk_id"]] == WORD_START:
        return False
    step = content["pre_tokenizer"] or {}
    *before, last = step["pretokenizers"] if step.get("type") == "Sequence" else [step]
    metaspace = {"type": "Metaspace", "replacement": WORD_START, "prepend_scheme": "always", "split": True}
    return last == metaspace and all(item == {"type": "WhitespaceSplit"} for item in before)


def _characters_json(
    content: dict[str, Any], codes: dict[str, int], added: dict[str, int], tokenizer: Tokenizer
) -> str:
    """Return the tokenizer's JSON with character codes as ids."""
    encoding = tokenizer.encode("a")
    around = [token for token, special in zip(encoding.tokens, encoding.special_tokens_mask, strict=True) if special]
    first = encoding.special_tokens_mask.index(0)
    template = [{"SpecialToken": {"id": token, "type_id": 0}} for token in around]
    template.insert(first, {"Sequence": {"id": "A", "type_id": 0}})
    return json.dumps(
        {
            **content,
            "added_tokens": [{**token, "id": added[token["content"]]} for token in content["added_tokens"]],
            "post_processor": {
                "type": "TemplateProcessing",
                "single": template,
                "pair": [*template, {"Sequence": {"id": "B", "type_id": 0}}],
                "special_tokens": {t: {"id": t, "ids": [added[t]], "tokens": [t]} for t in around},
            },
            # BPE without merges: each character becomes its code.
            "model": {"type": "BPE", "vocab": codes, "merges": [], "unk_token": NO_CHARACTER, "fuse_unk": False},
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )


def _trie(
    content: dict[str, Any], vocabulary: list[tuple[str, float]], codes: dict[str, int], added: dict[str, int]
) -> NDArray[np.int32]:
    """Return the table of app.engine.unigram.Unigram, (4, cells) int32."""
    ids = [token["id"] for token in content["added_tokens"]]
    unknown = max(len(vocabulary) - 1, *ids) + 1
    scores = np.zeros(unknown + 1)
    scores[: len(vocabulary)] = [score for _, score in vocabulary]
    scores[unknown] = scores.min() - UNKNOWN_PENALTY
    rows = [([code], unknown) for code in codes.values()]  # overridden by the next rows if it is a token
    rows += [
        ([codes[character] for character in token], number)
        for number, (token, _) in enumerate(vocabulary)
        if WORD_START not in token[1:]  # it would span two words
    ]
    rows += [([added[token["content"]]], token["id"]) for token in content["added_tokens"]]
    alphabet = len(codes) + len(added)
    parents, characters, tokens = _nodes(rows, alphabet)
    bases, cells = _place(parents, characters, alphabet)
    # One more cell for each code after the last one: base + code is always within the table.
    width = max(cells.max() + 2 + alphabet, 2 * len(scores))
    table = np.full((4, width + width % 2), NO_TOKEN, np.int32)
    table[0] = cells.max() + 1
    table[0, cells] = bases
    table[1, cells[alphabet:]] = characters[alphabet:]
    table[2, cells] = tokens
    table[3, : 2 * len(scores)] = scores.view(np.int32)
    table[1, 0] = content["model"]["unk_id"]
    return table


def _nodes(
    rows: list[tuple[list[int], int]], alphabet: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return parent, code and token of the trie's nodes, (nodes,) each, level by level from the single codes."""
    lengths = np.array([len(row) for row, _ in rows])
    characters = np.zeros((len(rows), lengths.max()), np.int64)
    for number, (row, _) in enumerate(rows):
        characters[number, : len(row)] = row
    nodes = characters[:, 0].copy()
    parents, codes = [np.full(alphabet, -1)], [np.arange(alphabet)]
    count = alphabet
    for depth in range(1, lengths.max()):
        longer = lengths > depth
        level, place = np.unique(nodes[longer] * alphabet + characters[longer, depth], return_inverse=True)
        nodes[longer] = count + place
        parents.append(level // alphabet)
        codes.append(level % alphabet)
        count += len(level)
    tokens = np.full(count, NO_TOKEN)
    for node, (_, token) in zip(nodes, rows, strict=True):
        tokens[node] = token
    return np.concatenate(parents), np.concatenate(codes), tokens


def _place(
    parents: NDArray[np.int64], characters: NDArray[np.int64], alphabet: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return base and cell of each node, (nodes,) each.

    Large families of children are placed first, at random positions where they fit; only children fill the holes.
    """
    count = len(parents)
    families, firsts, sizes = np.unique(parents[alphabet:], return_index=True, return_counts=True)
    firsts += alphabet
    cells = np.arange(count)
    free = np.zeros(count + count // 20 + alphabet, bool)
    free[alphabet:] = True
    last = len(free) - alphabet
    bases, used = np.zeros(count, np.int64), {0}
    generator = np.random.default_rng(0)
    for family in sorted(np.flatnonzero(sizes > 1), key=lambda family: -sizes[family]):
        children = slice(firsts[family], firsts[family] + sizes[family])
        codes = characters[children]
        while True:
            tried = generator.integers(alphabet, last, TRIES) - codes[0]
            fitting = tried[free[tried[:, None] + codes].all(axis=1)].tolist()
            if base := next((base for base in fitting if base > 0 and base not in used), 0):
                break
        bases[families[family]] = base
        used.add(base)
        cells[children] = base + codes
        free[cells[children]] = False
    holes = deque(np.flatnonzero(free).tolist())
    for family in np.flatnonzero(sizes == 1):
        child, skipped = firsts[family], []
        while (base := holes[0] - int(characters[child])) in used:
            skipped.append(holes.popleft())
        bases[families[family]] = base
        used.add(base)
        cells[child] = holes.popleft()
        holes.extendleft(reversed(skipped))
    leaves = np.ones(count, bool)
    leaves[families] = False
    bases[leaves] = cells.max() + 1
    return bases, cells
