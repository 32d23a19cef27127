"""Access: API keys, CORS, and the headers of every response: security, the request's id and stages."""

import hmac

from flask import Flask, Response, request

from app import page
from app.context import CONTEXT, RequestContext
from app.errors import Unauthorized
from app.settings import Settings

# Public paths: health checks and documentation. The page of GET / is public, too; the JSON there is not.
PUBLIC_PATHS = ("/health", "/healthz", "/readyz", "/docs", "/openapi.json", "/apidocs/index.html")
PUBLIC_PREFIXES = ("/docs/", "/page/")
ANY = "*"
PREFLIGHT_SECONDS = 3600
EXPOSED_HEADERS = "X-Request-Id, X-Truncated-Texts, Server-Timing, Retry-After"
# Headers that have the key alone: Azure's clients send the first, many others the second.
KEY_HEADERS = ("api-key", "X-API-Key")
SECURITY_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer"}
CSP = "Content-Security-Policy"
CSP_DENY_ALL = "default-src 'none'; frame-ancestors 'none'"


def register(app: Flask, settings: Settings) -> None:
    """Check the API key before each request, and add the headers of each response."""

    public_paths = (*PUBLIC_PATHS, settings.aip_health_route)

    @app.before_request
    def check_key() -> None:
        environ, rule = request.environ, request.url_rule
        context: RequestContext | None = environ.get(CONTEXT)
        if context is None:  # the app runs without the server, as in tests
            context = environ[CONTEXT] = RequestContext()
            context.read_environ(environ)
            context.error_fields = app.extensions["error_fields"](context.canonical_path)
        if rule is not None:
            context.route = rule.rule
        if settings.api_key and not _is_public(public_paths) and not _has_key(settings.api_key):
            raise Unauthorized(
                "The API key is missing or wrong: send one of the server's with Authorization: Bearer KEY."
            )

    @app.after_request
    def add_headers(response: Response) -> Response:
        context: RequestContext = request.environ[CONTEXT]
        headers = response.headers
        for name, value in SECURITY_HEADERS.items():
            headers.add(name, value)
        if CSP not in headers:  # /docs and the page have their own
            headers.add(CSP, CSP_DENY_ALL)
        headers.add("X-Request-Id", context.request_id)
        if context.truncated:
            headers.add("X-Truncated-Texts", str(context.truncated))
        if context.stages:
            headers.add("Server-Timing", context.server_timing())
        if settings.cors_origins:
            headers.extend(cors(settings.cors_origins, context.origin))
            if request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers:
                headers["Access-Control-Allow-Methods"] = "GET, POST"
                asked = request.headers.get("Access-Control-Request-Headers", "")
                headers["Access-Control-Allow-Headers"] = asked or "Authorization, Content-Type"
                headers["Access-Control-Max-Age"] = str(PREFLIGHT_SECONDS)
        return response


def cors(origins: tuple[str, ...], origin: str) -> dict[str, str]:
    """Return the headers that let a web page read the response: https://fetch.spec.whatwg.org/#http-cors-protocol"""
    if ANY in origins:
        return {"Access-Control-Allow-Origin": ANY, "Access-Control-Expose-Headers": EXPOSED_HEADERS}
    if origin not in origins:
        return {"Vary": "Origin"}
    return {"Vary": "Origin", "Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": EXPOSED_HEADERS}


def _is_public(public_paths: tuple[str, ...]) -> bool:
    # OPTIONS: a browser's preflight request never has the key.
    path = request.path
    return request.method == "OPTIONS" or path in public_paths or path.startswith(PUBLIC_PREFIXES) or page.is_wanted()


def _has_key(keys: tuple[str, ...]) -> bool:
    """Return whether one of the headers for keys has one of the keys."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    sent = [token] if scheme.lower() == "bearer" else []
    sent += [value for name in KEY_HEADERS if (value := request.headers.get(name)) is not None]
    matches = False
    for key_sent in sent:
        for key in keys:  # compares with every key, so that the time does not show which one matched
            matches |= hmac.compare_digest(key_sent.strip().encode("utf-8", "replace"), key.encode())
    return matches
