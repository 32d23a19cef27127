"""Chunks: cuts a long text so that the tokens of the chunks, one after the other, are the tokens of the text."""

import re
from collections.abc import Callable, Iterator

import tokenizers

# Length of a chunk, characters. Longer texts are tokenized chunk by chunk, one text at a time: the memory grows with
# the chunk, and one character may become 18 (NFKC of U+FDFA). 8 MiB of "a a a …" took 1,490 MB as one chunk, 35 MB so.
CHUNK_CHARACTERS = 2_000
# Longest allowed chunk, characters: a text without white space cannot be cut.
MAX_CHUNK_CHARACTERS = 100_000
# White space that may separate words; without \v, \f, U+001C to U+001F and U+0085, which BERT's normalizer deletes.
WHITE_SPACE = "\t\n\r \u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
WHITE_SPACE += "\u2028\u2029\u202f\u205f\u3000"
# Characters beside which no cut is made (a character class): SentencePiece's mark for a space, which the normalizer
# would strip like white space, and invisible characters, which normalizers delete or turn into spaces.
NEVER_BESIDE = r"▁\s\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff"


def cut_pattern(library: tokenizers.Tokenizer) -> re.Pattern[str]:
    """Return the pattern of the places where a tokenizer's texts may be cut: before white space that separates words.

    The second chunk gets all of the white space. Normalizers that collapse it then see the whole run, and those that
    strip it remove it from a chunk's beginning, where a word begins in any case.
    """
    added = library.get_added_tokens_decoder().values()
    has_rstrip = any(token.rstrip for token in added)
    white = "".join(character for character in WHITE_SPACE if _separates(library, character, has_rstrip))
    if not white or any(re.search(r"[\s▁]", token.content) for token in added):
        return re.compile(r"(?!)")  # never matches: white space may be part of a word or of an added token
    # Begins with the white space: that is found four times as fast as the character before it.
    return re.compile(rf"[{white}](?<=[^{NEVER_BESIDE}].)[{white}]*+(?=[^{NEVER_BESIDE}])", re.DOTALL)


def chunks(text: str, cuts: re.Pattern[str]) -> Iterator[str]:
    """Yield the chunks of a text, each of CHUNK_CHARACTERS or a little more."""
    start = 0
    while cut := cuts.search(text, start + CHUNK_CHARACTERS):
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def _separates(library: tokenizers.Tokenizer, white: str, has_rstrip: bool) -> bool:
    """Return whether a text may be cut before this white space without a change of its words.

    has_rstrip: whether an added token absorbs the white space after it. It could not do so across a cut.
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
    """Return the function that splits a text into the words that are tokenized one by one."""
    normalizer, pre_tokenizer = library.normalizer, library.pre_tokenizer

    def words(text: str) -> list[str]:
        normalized = normalizer.normalize_str(text) if normalizer is not None else text
        return [word for word, _ in pre_tokenizer.pre_tokenize_str(normalized)] if pre_tokenizer else [normalized]

    return words
