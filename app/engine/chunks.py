"""Chunks: a long text in parts whose tokens, one after the other, are the tokens of the whole."""

import re

# Longer texts are tokenized chunk by chunk, and one at a time: the memory of it grows with the chunk, and some
# characters become 18 (NFKC of U+FDFA). 8 MiB of "a a a …" took 1,490 MB as one chunk and 35 MB so.
CHUNK_CHARACTERS = 2_000
# Longest chunk, characters: what has no white space is one. Japanese pages have none; whole books are refused.
MAX_CHUNK_CHARACTERS = 100_000
FIRST_SPACE = re.compile(r"(?<=\S) ")


def chunks(text: str) -> list[str]:
    """Cut a text into chunks of about CHUNK_CHARACTERS, before spaces: no token crosses these."""
    found = []
    start = 0
    while cut := FIRST_SPACE.search(text, start + CHUNK_CHARACTERS):
        found.append(text[start : cut.start()])
        start = cut.start()
    return [*found, text[start:]]
