"""tokenizer.json -> characters.json + pieces.npy: a Unigram tokenizer that loads in milliseconds.

characters.json is the same tokenizer with the characters of all pieces as its vocabulary. pieces.npy is the trie of
the pieces over these characters; app/engine/tokenizer.py says what its rows are and searches it.
"""

import json
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from build import BuildError, files

TOKENIZER = "tokenizer/tokenizer.json"
CHARACTERS = "tokenizer/characters.json"
PIECES = "tokenizer/pieces.npy"
# The rest is as app/engine/tokenizer.py knows it: build/verify.py proves that both are at one.
WORD_START = "▁"
NO_PIECE = -1
# Code 0. Its name has several characters, so no character of a text is called so.
NO_CHARACTER = "unknown character"
# What the library takes off the least score for a character that is no piece (K_UNK_PENALTY, models/unigram/model.rs).
UNKNOWN_PENALTY = 10.0
TRIES = 64  # places at once for a node's children


def write(out: Path) -> bool:
    """Write both files from OUT/tokenizer/tokenizer.json; whether it is of the kind that has them."""
    content = json.loads((out / TOKENIZER).read_text(encoding="utf-8"))
    if not _is_supported(content):
        for name in (CHARACTERS, PIECES):
            (out / name).unlink(missing_ok=True)
        return False
    pieces: list[tuple[str, float]] = [(piece, score) for piece, score in content["model"]["vocab"]]
    characters = sorted({WORD_START, *(character for piece, _ in pieces for character in piece)})
    codes = {name: code for code, name in enumerate([NO_CHARACTER, *characters])}
    added = {token["content"]: len(codes) + n for n, token in enumerate(content["added_tokens"])}
    text = _characters_json(content, codes, added, Tokenizer.from_file(str(out / TOKENIZER)))
    known = Tokenizer.from_str(text)
    if any(known.token_to_id(token) != code for token, code in added.items()):
        raise BuildError(f"{out / TOKENIZER} has an added token that the tokenizers library numbers unexpectedly.")
    table = _trie(content, pieces, codes, added)
    with files.replacing(out, CHARACTERS, PIECES) as part:
        (part / CHARACTERS).write_text(text, encoding="utf-8")
        np.save(part / PIECES, table)
    return True


def _is_supported(content: dict[str, Any]) -> bool:
    """A Unigram model whose every word begins with WORD_START, so that no piece reaches over a word's end."""
    model = content["model"]
    if model.get("type") != "Unigram" or model["unk_id"] is None or model.get("byte_fallback"):
        return False
    names = [piece for piece, _ in model["vocab"]]
    if len(set(names)) < len(names) or "" in names or WORD_START not in names or names[model["unk_id"]] == WORD_START:
        return False
    step = content["pre_tokenizer"] or {}
    *before, last = step["pretokenizers"] if step.get("type") == "Sequence" else [step]
    metaspace = {"type": "Metaspace", "replacement": WORD_START, "prepend_scheme": "always", "split": True}
    return last == metaspace and all(item == {"type": "WhitespaceSplit"} for item in before)


def _characters_json(
    content: dict[str, Any], codes: dict[str, int], added: dict[str, int], tokenizer: Tokenizer
) -> str:
    """The tokenizer's JSON with character codes for ids."""
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
            # Without merges it gives each character its code.
            "model": {"type": "BPE", "vocab": codes, "merges": [], "unk_token": NO_CHARACTER, "fuse_unk": False},
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )


def _trie(
    content: dict[str, Any], pieces: list[tuple[str, float]], codes: dict[str, int], added: dict[str, int]
) -> NDArray[np.int32]:
    """The table, (4, cells) int32."""
    ids = [token["id"] for token in content["added_tokens"]]
    unknown = max(len(pieces) - 1, *ids) + 1
    scores = np.zeros(unknown + 1)
    scores[: len(pieces)] = [score for _, score in pieces]
    scores[unknown] = scores.min() - UNKNOWN_PENALTY
    rows = [([code], unknown) for code in codes.values()]  # of those that are pieces, the next row counts
    rows += [
        ([codes[character] for character in piece], number)
        for number, (piece, _) in enumerate(pieces)
        if WORD_START not in piece[1:]  # it would reach over a word's end
    ]
    rows += [([added[token["content"]]], token["id"]) for token in content["added_tokens"]]
    alphabet = len(codes) + len(added)
    parents, characters, found = _nodes(rows, alphabet)
    bases, cells = _placed(parents, characters, alphabet)
    # After the last cell as many more as there are codes, so that no base + code is out of the table.
    width = max(cells.max() + 2 + alphabet, 2 * len(scores))
    table = np.full((4, width + width % 2), NO_PIECE, np.int32)
    table[0] = cells.max() + 1
    table[0, cells] = bases
    table[1, cells[alphabet:]] = characters[alphabet:]
    table[2, cells] = found
    table[3, : 2 * len(scores)] = scores.view(np.int32)
    table[1, 0] = content["model"]["unk_id"]
    return table


def _nodes(
    rows: list[tuple[list[int], int]], alphabet: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The trie's nodes, level by level, the first ones those of single codes: parent, code and piece, (nodes,) each."""
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
    pieces = np.full(count, NO_PIECE)
    for node, (_, piece) in zip(nodes, rows, strict=True):
        pieces[node] = piece
    return np.concatenate(parents), np.concatenate(codes), pieces


def _placed(
    parents: NDArray[np.int64], characters: NDArray[np.int64], alphabet: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Base and cell of each node: large families first, anywhere they fit; only children fill the holes."""
    count = len(parents)
    families, firsts, sizes = np.unique(parents[alphabet:], return_index=True, return_counts=True)
    firsts += alphabet
    cells = np.arange(count)
    free = np.zeros(count + count // 20 + alphabet, bool)
    free[alphabet:] = True
    last = len(free) - alphabet
    bases, used = np.zeros(count, np.int64), {0}
    choice = np.random.default_rng(0)
    for family in sorted(np.flatnonzero(sizes > 1), key=lambda family: -sizes[family]):
        children = slice(firsts[family], firsts[family] + sizes[family])
        codes = characters[children]
        while True:
            tried = choice.integers(alphabet, last, TRIES) - codes[0]
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
