"""API keys, origins and headers that the tests of access control share."""

from collections.abc import Iterable

KEYS = "first-key, second-key"
BEARER = {"Authorization": "Bearer second-key"}
ORIGIN, OTHER_ORIGIN = "https://a.example", "https://a.example.org"
# Headers that every answer has once.
ALWAYS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
# Header of an answer to an allowed origin.
EXPOSED = {"access-control-expose-headers": "X-Request-Id, X-Truncated-Texts, Server-Timing, Retry-After"}


def cors_headers(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the headers that browsers and caches need for CORS, their names in small letters."""
    lower = {name.lower(): value for name, value in headers}
    return {name: value for name, value in lower.items() if name.startswith("access-control-") or name == "vary"}
