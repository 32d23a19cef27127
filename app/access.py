"""Who may ask, and what every answer says: API keys, CORS, security headers, the request's id and stages."""

import hmac

from flask import Flask, Response, request

from app.errors import Unauthorized
from app.record import RECORD, Record
from app.settings import Settings

# Without a key: whether it lives, and its documentation.
OPEN = ("/health", "/healthz", "/readyz", "/docs", "/openapi.json", "/apidocs/index.html")
OPEN_BELOW = "/docs/"
ANY = "*"
PREFLIGHT_SECONDS = 3600
READABLE = "X-Request-Id, Server-Timing, Retry-After"
SECURITY = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
POLICY, NOTHING = "Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"


def register(app: Flask, settings: Settings) -> None:
    """Ask for a key before everything else, and complete every answer."""

    @app.before_request
    def begin() -> None:
        environ, rule = request.environ, request.url_rule
        if RECORD not in environ:  # the server has none, as in tests
            environ[RECORD] = Record()
            environ[RECORD].begin(environ)
        if rule is not None:
            environ[RECORD].route = rule.rule
        if settings.api_key and not _is_open() and not _has_key(settings.api_key):
            raise Unauthorized(
                "The API key is missing or wrong: send one of the server's with Authorization: Bearer KEY."
            )

    @app.after_request
    def complete(response: Response) -> Response:
        record: Record = request.environ[RECORD]
        headers = response.headers
        for name, value in SECURITY.items():
            headers.add(name, value)
        if POLICY not in headers:  # /docs has its own
            headers.add(POLICY, NOTHING)
        headers.add("X-Request-Id", record.request_id)
        if record.stages:
            headers.add("Server-Timing", record.server_timing())
        if settings.cors_origins:
            headers.extend(cors(settings.cors_origins, request.headers.get("Origin", "")))
            if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
                headers["Access-Control-Allow-Methods"] = "GET, POST"
                asked = request.headers.get("Access-Control-Request-Headers", "")
                headers["Access-Control-Allow-Headers"] = asked or "Authorization, Content-Type"
                headers["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
        return response


def cors(origins: tuple[str, ...], origin: str) -> dict[str, str]:
    """The headers that let a page of that origin read the answer. https://fetch.spec.whatwg.org/#http-cors-protocol"""
    if ANY in origins:
        return {"Access-Control-Allow-Origin": ANY, "Access-Control-Expose-Headers": READABLE}
    if origin not in origins:
        return {"Vary": "Origin"}
    return {"Vary": "Origin", "Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": READABLE}


def _is_open() -> bool:
    # A browser asks before it sends the key.
    return request.method == "OPTIONS" or request.path in OPEN or request.path.startswith(OPEN_BELOW)


def _has_key(keys: tuple[str, ...]) -> bool:
    scheme, _, given = request.headers.get("Authorization", "").partition(" ")
    found = False
    for key in keys:  # all of them, so that the time does not tell which one
        found |= hmac.compare_digest(given.strip().encode("utf-8", "replace"), key.encode())
    return found and scheme.lower() == "bearer"
