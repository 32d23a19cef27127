"""Chunks: a long text in parts whose tokens, one after the other, are the tokens of the whole."""

import re
from collections.abc import Callable, Iterator

import tokenizers

# Longer texts are tokenized chunk by chunk, and one at a time: the memory of it grows with the chunk, and some
# characters become 18 (NFKC of U+FDFA). 8 MiB of "a a a …" took 1,490 MB as one chunk and 35 MB so.
CHUNK_CHARACTERS = 2_000
# Longest chunk, characters: a text without white space is one chunk.
MAX_CHUNK_CHARACTERS = 100_000
# White space that may separate words. \v, \f, U+001C to U+001F and U+0085 may not: BERT's normalizer deletes them.
WHITE_SPACE = "\t\n\r \u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
WHITE_SPACE += "\u2028\u2029\u202f\u205f\u3000"
# No cut beside these (a character class): SentencePiece's mark for a space, which would be taken for the white space
# that the normalizer strips, and invisible characters, which normalizers delete or turn into spaces.
NEVER_BESIDE = r"▁\s\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"


def cut_pattern(library: tokenizers.Tokenizer) -> re.Pattern[str]:
    """Return a pattern that matches where a tokenizer's texts may be cut: before white space that separates words.

    The white space goes to the second chunk, all of it: normalizers that collapse it see the whole run, and those that
    strip it take it from a chunk's beginning, where the pre-tokenizer begins a word anyway.
    """
    added = library.get_added_tokens_decoder().values()
    has_rstrip = any(token.rstrip for token in added)
    white = "".join(character for character in WHITE_SPACE if _separates(library, character, has_rstrip))
    if not white or any(re.search(r"[\s▁]", token.content) for token in added):
        return re.compile(r"(?!)")  # no match: white space may be inside of a word, or of an added token
    # The white space first, which is found four times as fast as what may be before it.
    return re.compile(rf"[{white}](?<=[^{NEVER_BESIDE}].)[{white}]*+(?=[^{NEVER_BESIDE}])", re.DOTALL)


def chunks(text: str, cuts: re.Pattern[str]) -> Iterator[str]:
    """Cut a text into chunks of CHUNK_CHARACTERS or a little more."""
    start = 0
    while cut := cuts.search(text, start + CHUNK_CHARACTERS):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def _separates(library: tokenizers.Tokenizer, white: str, has_rstrip: bool) -> bool:
    """Return whether a text's words are those before this white space and those from there on.

    has_rstrip: whether an added token takes the white space after it, which it cannot take from the next chunk.
    """
    words = _words_of(library)
    for run in (white, white * 2):
        for after in ("b", ""):
            if any(words(before + run + after) != words(before) + words(run + after) for before in ("a", ".")):
                return False
        if has_rstrip and words(run + "b") != words("b"):
            return False
    return True


def _words_of(library: tokenizers.Tokenizer) -> Callable[[str], list[str]]:
    """Return what splits a text into the words that the model takes one by one."""
    normalizer, pre_tokenizer = library.normalizer, library.pre_tokenizer

    def words(text: str) -> list[str]:
        normalized = normalizer.normalize_str(text) if normalizer is not None else text
        return [word for word, _ in pre_tokenizer.pre_tokenize_str(normalized)] if pre_tokenizer else [normalized]

    return words
