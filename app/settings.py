"""Settings, read once from the environment. A malformed value stops the start with a sentence naming the variable."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from app.engine.cpu import available_cpus
from app.engine.encoder import MAX_LENGTH
from app.errors import BootError

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
LOG_FORMATS = ("json", "text")
CPUS_PER_WORKER = 4
# Longest pause of a client while it sends a request or reads a response, seconds.
RECEIVE_SECONDS = 10
# Settings with comma-separated items: pattern of an item, and its description in an error.
KEY = (re.compile(r"[\x21-\x7e]+"), "a key is printable ASCII characters without spaces")
# Origins as browsers send them: https://html.spec.whatwg.org/multipage/browsers.html#ascii-serialisation-of-an-origin
HOST = r"(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::\d+)?"
ORIGIN = (
    re.compile(rf"\*|https?://{HOST}"),
    "an origin is like https://example.com, in small letters without a path, or *",
)


@dataclass(frozen=True)
class Settings:
    """The settings. The environment variable of a field is its name in capitals."""

    model_dir: Path = Path("model")
    model_path: Path = Path("model_int8.onnx")
    tokenizer_path: Path = Path("tokenizer/")
    max_length: int = field(default=MAX_LENGTH, metadata={"min": 3, "unit": "tokens"})
    port: int = field(default=8080, metadata={"min": 1, "max": 65535})
    cpus: int = field(default_factory=available_cpus, metadata={"min": 1, "max": 1024})
    web_concurrency: int = field(default=0, metadata={"min": 1})
    max_texts: int = field(default=2048, metadata={"min": 1})
    max_body_bytes: int = field(default=8 * 1024 * 1024, metadata={"min": 1})
    max_queue: int = field(default=512, metadata={"min": 1, "unit": "requests"})
    request_deadline: int = field(default=60, metadata={"min": 1, "unit": "seconds"})
    cache_size: int = field(default=4096, metadata={"min": 0})
    # secret: the value never appears in a log line or an error.
    api_key: tuple[str, ...] = field(default=(), repr=False, metadata={"secret": True, "items": KEY})
    cors_origins: tuple[str, ...] = field(default=(), metadata={"items": ORIGIN})
    log_level: str = field(default="info", metadata={"choices": LOG_LEVELS})
    log_format: str = field(default="json", metadata={"choices": LOG_FORMATS})
    google_cloud_project: str = ""

    def __post_init__(self) -> None:
        # One worker process for every 4 CPUs: a worker costs memory, its threads share it.
        if not self.web_concurrency:
            object.__setattr__(self, "web_concurrency", math.ceil(self.cpus / CPUS_PER_WORKER))

    @property
    def capacity(self) -> int:
        """Texts that one worker computes at the same time: its share of the CPUs."""
        return math.ceil(self.cpus / self.web_concurrency)

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> "Settings":
        """Read the settings; an empty variable counts as not set.

        Raises:
            BootError: a value is malformed; the message names the variable.
        """
        values = {}
        for item in fields(cls):
            name = item.name.upper()
            text = environ.get(name, "").strip()
            if text:
                values[item.name] = _parse(name, text, item.type, dict(item.metadata))
        return cls(**values)


def _parse(name: str, text: str, kind: Any, limits: dict[str, Any]) -> Any:
    if kind is Path:
        return Path(text)
    if "items" in limits:
        allowed, description = limits["items"]
        return _items(name, text, allowed, description, secret="secret" in limits)
    if kind is str and "choices" not in limits:
        return text
    if kind is str:
        if text.lower() not in limits["choices"]:
            raise BootError(f"{name} is {text!r}; it must be one of {', '.join(limits['choices'])}.")
        return text.lower()
    least, most = limits["min"], limits.get("max", math.inf)
    expected = f"a whole number from {least} to {most}" if "max" in limits else f"a whole number of at least {least}"
    # isdecimal() accepts digits of other scripts, int() underscores
    if not (text.isascii() and text.isdigit() and len(text) < 19) or not least <= int(text) <= most:
        raise BootError(f"{name} is {text!r}; it must be {expected}.")
    return int(text)


def _items(name: str, text: str, allowed: re.Pattern[str], description: str, secret: bool) -> tuple[str, ...]:
    items = tuple(item.strip() for item in text.split(","))
    for number, item in enumerate(items, 1):
        if not allowed.fullmatch(item):
            problem = f"Item {number} of {name} is not one of its kind" if secret else f"{name} has {item!r}"
            raise BootError(f"{problem}: {description}; items are separated by commas.")
    return items
