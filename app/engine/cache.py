"""Least-recently-used cache of computed texts."""

import hashlib
import threading
from collections import OrderedDict
from typing import Generic, TypeVar

T = TypeVar("T")


class TextCache(Generic[T]):
    """Maps a text to its computed entry. When full, it drops the entry that was unused for longest.

    size: most entries; 0 turns the cache off. Keys are SHA-256 digests: long texts use no memory, and no two texts with
    the same digest are known.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._entries: OrderedDict[bytes, T] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, text: str) -> T | None:
        if not self.size:
            return None
        key = _key(text)
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
            return entry

    def put(self, text: str, entry: T) -> None:
        if not self.size:
            return
        with self._lock:
            self._entries[_key(text)] = entry
            if len(self._entries) > self.size:
                self._entries.popitem(last=False)


def _key(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
