"""Settings, read once from the environment. A malformed value stops the start with a sentence naming the variable."""

import ipaddress
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
ORIGIN = (
    re.compile(r"\*|[a-z][a-z0-9+.-]*://(?:[a-z0-9._-]+|\[[0-9a-f:.]+\])(?::\d+)?"),
    "an origin is like https://example.com or app://obsidian.md, in small letters without a path, or *",
)
MAX_NAME_CHARACTERS = 200
PATH = re.compile(r"(?:/[\w.:@-]+)+", re.ASCII)
# Variables of other servers, and of older versions, that have no effect here -> what to do instead.
# https://huggingface.co/docs/text-embeddings-inference/cli_arguments
# https://michaelfeil.eu/infinity/latest/cli_v2/
_CHOSEN = "the model is chosen when its folder is built (MODEL, REVISION)"
_BY_LENGTH = "texts of equal length are computed together, by themselves"
WITHOUT_EFFECT = {
    "THREADS": "CPUS sets how many texts are computed at once",
    "MODEL_ID": _CHOSEN,
    "DTYPE": "MODEL_PATH chooses between INT8 and FP32",
    "POOLING": "the pooling is the model's own",
    "DENSE_PATH": _CHOSEN,
    "AUTO_TRUNCATE": "a request's truncate says whether long texts are cut",
    "DEFAULT_PROMPT": "DEFAULT_PROMPT_NAME chooses one of the model's prompts, and a request may have its own",
    "MAX_CONCURRENT_REQUESTS": "MAX_QUEUE limits the requests that wait",
    "MAX_CLIENT_BATCH_SIZE": "MAX_TEXTS limits the texts of a request",
    "MAX_BATCH_TOKENS": _BY_LENGTH,
    "MAX_BATCH_REQUESTS": _BY_LENGTH,
    "TOKENIZATION_WORKERS": "WEB_CONCURRENCY sets the number of processes",
    "PAYLOAD_LIMIT": "MAX_BODY_BYTES limits a request's body",
    "UDS_PATH": "the server listens on PORT",
    "JSON_OUTPUT": "LOG_FORMAT is json unless it is set",
    "OTLP_ENDPOINT": "log lines have the trace's id",
    "PROMETHEUS_PORT": "the metrics are at /metrics on PORT",
    "CORS_ALLOW_ORIGIN": "CORS_ORIGINS lists the origins",
    "INFINITY_MODEL_ID": _CHOSEN,
    "INFINITY_SERVED_MODEL_NAME": "SERVED_MODEL_NAME sets the name",
    "INFINITY_HOST": "HOST sets the address",
    "INFINITY_PORT": "PORT sets the port",
    "INFINITY_API_KEY": "API_KEY sets the keys",
    "INFINITY_QUEUE_SIZE": "MAX_QUEUE limits the requests that wait",
    "INFINITY_BATCH_SIZE": _BY_LENGTH,
    "INFINITY_DTYPE": "MODEL_PATH chooses between INT8 and FP32",
    "INFINITY_URL_PREFIX": "the API is at / and at /v1",
    "INFINITY_PERMISSIVE_CORS": "CORS_ORIGINS lists the origins",
    "INFINITY_LOG_LEVEL": "LOG_LEVEL sets the level",
}


@dataclass(frozen=True)
class Settings:
    """The settings. The environment variable of a field is its name in capitals."""

    model_dir: Path = Path("model")
    model_path: Path = Path("model_int8.onnx")
    tokenizer_path: Path = Path("tokenizer/")
    # 0, or in the environment "model": the model's own limit.
    max_length: int = field(default=MAX_LENGTH, metadata={"min": 3, "unit": "tokens", "words": {"model": 0}})
    # Empty: all addresses, IPv4 and IPv6.
    host: str = field(default="", metadata={"address": True})
    # or: the variable that counts if the first is not set. Vertex AI sets it.
    port: int = field(default=8080, metadata={"min": 1, "max": 65535, "or": "AIP_HTTP_PORT"})
    # Empty: the model's id, and the model's own default prompt.
    served_model_name: str = ""
    default_prompt_name: str = ""
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
    # Vertex AI sets these in its containers.
    aip_predict_route: str = field(default="", metadata={"path": True})
    aip_health_route: str = field(default="", metadata={"path": True})

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
            text = (environ.get(name, "") or environ.get(item.metadata.get("or", ""), "")).strip()
            if text:
                values[item.name] = _parse(name, text, item.type, dict(item.metadata))
        return cls(**values)


def _parse(name: str, text: str, kind: Any, limits: dict[str, Any]) -> Any:
    if kind is Path:
        return Path(text)
    if "items" in limits:
        allowed, description = limits["items"]
        return _items(name, text, allowed, description, secret="secret" in limits)
    if "path" in limits and not PATH.fullmatch(text):
        raise BootError(f"{name} is {text[:60]!r}; it must be a path like /predict.")
    if "address" in limits:
        return _address(name, text)
    if kind is str and "choices" not in limits:
        if not text.isprintable() or len(text) > MAX_NAME_CHARACTERS:
            raise BootError(
                f"{name} is {text[:60]!r}; it must have at most {MAX_NAME_CHARACTERS} printable characters."
            )
        return text
    if kind is str:
        if text.lower() not in limits["choices"]:
            raise BootError(f"{name} is {text!r}; it must be one of {', '.join(limits['choices'])}.")
        return text.lower()
    words: dict[str, int] = limits.get("words", {})
    if text.lower() in words:
        return words[text.lower()]
    least, most = limits["min"], limits.get("max", math.inf)
    expected = f"a whole number from {least} to {most}" if "max" in limits else f"a whole number of at least {least}"
    # isdecimal() accepts digits of other scripts, int() underscores
    if not (text.isascii() and text.isdigit() and len(text) < 19) or not least <= int(text) <= most:
        raise BootError(f"{name} is {text!r}; it must be {', or '.join([expected, *words])}.")
    return int(text)


def _address(name: str, text: str) -> str:
    """Return an IP address; an IPv6 one may have brackets."""
    try:
        return str(ipaddress.ip_address(text.removeprefix("[").removesuffix("]")))
    except ValueError:
        raise BootError(
            f"{name} is {text[:60]!r}; it must be an IP address of this machine, like 127.0.0.1 or ::1."
        ) from None


def without_effect(environ: Mapping[str, str]) -> list[str]:
    """Return a sentence for each variable of another server that is set here."""
    return [
        f"{name} is set, which has no effect here: {instead}."
        for name, instead in WITHOUT_EFFECT.items()
        if environ.get(name, "").strip()
    ]


def _items(name: str, text: str, allowed: re.Pattern[str], description: str, secret: bool) -> tuple[str, ...]:
    items = tuple(item.strip() for item in text.split(","))
    for number, item in enumerate(items, 1):
        if not allowed.fullmatch(item):
            problem = f"Item {number} of {name} is not one of its kind" if secret else f"{name} has {item!r}"
            raise BootError(f"{problem}: {description}; items are separated by commas.")
    return items
