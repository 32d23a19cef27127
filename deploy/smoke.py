"""Smoke test: checks a running server over HTTP: model, quality, vectors, dialects, errors.

It uses the standard library only, so that the image itself can run it.

python deploy/smoke.py URL            exit status 0 or 1; SMOKE_TOKEN: an identity token for a private service;
                                      SMOKE_API_KEY: one of the server's keys, or its whole API_KEY
docker run -i IMAGE python - URL < deploy/smoke.py
"""

import argparse
import http.client
import json
import math
import os
import signal
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

# The gate of build/verify.py, which is not in the image; a test keeps them equal.
FP32_MIN_COSINE = 0.99999
FP32_LENGTH_DIFFERENCE = 0.001
INT8_COSINE = {"mean": 0.9995, "p1": 0.9985, "min": 0.997}
INT8_UNLIKE_COSINE = {"mean": 0.999, "min": 0.995}
INT8_PAIRWISE_DIFFERENCE = 0.005
INT8_RETRIEVAL_LOSS = 0.005
INT8_NEIGHBOURS = 0.9

TEXTS = ["動的計画法", "グラフ理論", "深さ優先探索"]
RETRY_SECONDS = 2
REQUEST_SECONDS = 30
# Limit for all checks together once the server is ready: a slow byte now and then never reaches a request's timeout.
CHECKS_SECONDS = 60
MAX_ANSWER_BYTES = 1_000_000
# Statuses of an instance that is starting or ending; the request is tried again.
PASSING = (429, 502, 503, 504)
TRIES = 3
# Statuses without permission. A new permission takes some seconds to become effective.
DENIED = (401, 403)
DENIED_SECONDS = 20


class Failed(Exception):
    """A check has failed; the message names it and the difference."""


class TimeIsUp(Failed):
    """The time limit has passed. It is not an OSError, which would be tried again."""


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """Does not follow redirects: that would send the identity token to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


OPENER = urllib.request.build_opener(NoRedirects)


class Server:
    """The server to check. token: Cloud Run's identity token. keys: the server's own API_KEY."""

    def __init__(self, url: str, token: str = "", keys: str = "") -> None:
        self.url = _checked(url).rstrip("/")
        key = keys.partition(",")[0].strip()
        # Cloud Run accepts its token in either header, and forwards the other one.
        # https://cloud.google.com/run/docs/authenticating/service-to-service
        headers = {
            "X-Serverless-Authorization" if key else "Authorization": token,
            **({"Authorization": key} if key else {}),
        }
        self.headers = {name: f"Bearer {value}" for name, value in headers.items() if value}

    def ask(self, path: str, body: Any = None, seconds: float = REQUEST_SECONDS) -> tuple[int, Any]:
        """Return status and JSON of a GET, or of a POST if there is a body; None for a response without JSON."""
        data = None if body is None else json.dumps(body).encode()
        headers = self.headers if data is None else {**self.headers, "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with OPENER.open(request, timeout=seconds) as response:
                status, content = response.status, response.read(MAX_ANSWER_BYTES + 1)
        except urllib.error.HTTPError as error:
            with error:
                status, content = error.code, error.read(MAX_ANSWER_BYTES + 1)
        if len(content) > MAX_ANSWER_BYTES:
            raise Failed(f"{path.partition('?')[0]} answered with more than {MAX_ANSWER_BYTES} bytes.")
        try:
            return status, json.loads(content)
        except (ValueError, RecursionError):
            return status, None

    def get(self, path: str, body: Any = None) -> Any:
        """Return the JSON of a response with 200; retry while an instance starts or ends."""
        for left in reversed(range(TRIES)):
            status, answer = self.ask(path, body)
            if status not in PASSING or not left:
                break
            time.sleep(RETRY_SECONDS)
        if status != 200 or not isinstance(answer, dict):
            raise Failed(f"{path.partition('?')[0]} answered {status} with {_short(answer)}; wanted: 200 with JSON.")
        return answer


def ready(server: Server, path: str, seconds: float) -> str:
    """Wait until the path answers 200; say so if that takes longer than a moment."""
    until = time.monotonic() + seconds
    denied_until = until
    has_waited = False
    while True:
        try:
            status, answer = server.ask(path, seconds=max(1, min(REQUEST_SECONDS, until - time.monotonic())))
            last = f"{status} with {_short(answer)}"
        except (OSError, http.client.HTTPException) as error:
            status, last = 0, str(error)
        if status == 200:
            return f"{path} answers 200"
        now = time.monotonic()
        if status not in DENIED:
            denied_until = until
        else:
            denied_until = min(denied_until, now + DENIED_SECONDS)
            if now >= denied_until:
                raise Failed(
                    f"{path} went on answering {last}. It is private: set SMOKE_TOKEN to an identity token of an "
                    "account with roles/run.invoker."
                )
        if now >= until:
            raise Failed(f"{path} did not answer 200 within {seconds:g} s; last: {last}.")
        if not has_waited:
            print(f"waiting for {path}, up to {seconds:g} s; so far: {last}", file=sys.stderr, flush=True)
            has_waited = True
        time.sleep(min(RETRY_SECONDS, seconds))


def about(server: Server, allow_stand_in: bool) -> str:
    answer = server.get("/")
    model = answer["model"]
    if model["stand_in"] and not allow_stand_in:
        raise Failed(f"The model is the {model['id']}: build with a real MODEL, or pass --allow-stand-in.")
    warning = f"; warning: {model['warning']}" if model["warning"] else ""
    return (
        f"{answer['name']} {answer['version']} serves {model['id']} at {model['revision']}, "
        f"{model['precision']}, {model['dimension']} dimensions{warning}"
    )


def quality(server: Server) -> str:
    figures = server.get("/")["quality"]
    fp32, int8, retrieval = figures["fp32"]["min"], figures["int8"], figures["retrieval"]
    difference, overlap = int8["pairwise_difference"], figures["neighbours"]["overlap"]
    if not fp32 >= FP32_MIN_COSINE:
        raise Failed(f"FP32's least cosine is {fp32}, below {FP32_MIN_COSINE}.")
    if not figures["fp32"]["length_difference"] < FP32_LENGTH_DIFFERENCE:
        lengths = figures["fp32"]["length_difference"]
        raise Failed(f"FP32's vectors differ in length by {lengths}, not below {FP32_LENGTH_DIFFERENCE}.")
    for measured, limits, where in (
        (int8, INT8_COSINE, ""),
        (figures["unlike"], INT8_UNLIKE_COSINE, " on texts unlike the calibration's"),
    ):
        for name, least in limits.items():
            if not measured[name] >= least:
                raise Failed(f"INT8's {name} cosine{where} is {measured[name]}, below {least}.")
    if not difference < INT8_PAIRWISE_DIFFERENCE:
        raise Failed(f"INT8's mean difference of similarities is {difference}, not below {INT8_PAIRWISE_DIFFERENCE}.")
    if not retrieval["difference"] >= -INT8_RETRIEVAL_LOSS:
        raise Failed(
            f"INT8's accuracy of finding translations is {retrieval['int8']}, "
            f"more than {INT8_RETRIEVAL_LOSS} below the original's {retrieval['reference']}."
        )
    if not overlap >= INT8_NEIGHBOURS:
        raise Failed(f"INT8's overlap of nearest neighbours is {overlap}, below {INT8_NEIGHBOURS}.")
    return (
        f"quality: FP32's least cosine {fp32}, INT8's mean {int8['mean']} and least {int8['min']}, mean difference of "
        f"similarities {difference}, translations found {retrieval['int8']}, overlap of nearest neighbours {overlap}"
    )


def embed(server: Server) -> str:
    dimension = server.get("/")["model"]["dimension"]
    vectors = server.get("/embed", {"texts": TEXTS})["vectors"]
    if [len(vector) for vector in vectors] != [dimension] * len(TEXTS):
        lengths = [len(vector) for vector in vectors]
        raise Failed(f"/embed gave vectors of lengths {lengths} for {len(TEXTS)} texts; wanted: {dimension} each.")
    if not all(math.isfinite(number) for vector in vectors for number in vector):
        raise Failed("/embed gave a vector with a number that is not finite.")
    if any(vector == vectors[0] for vector in vectors[1:]):
        raise Failed("/embed gave the same vector for different texts.")
    alone = server.get("/embed?" + urllib.parse.urlencode({"q": TEXTS[-1]}))["vector"]
    if alone != vectors[-1]:
        raise Failed("/embed gave a text another vector alone than in a batch.")
    return f"/embed gives {len(vectors)} vectors of {dimension} numbers, and the same one alone as in the batch"


def dialects(server: Server) -> str:
    wanted = server.get("/embed", {"texts": TEXTS, "normalize": True})["vectors"]
    openai = [item["embedding"] for item in server.get("/v1/embeddings", {"input": TEXTS})["data"]]
    bigquery = server.get(
        "/bigquery", {"calls": [[text] for text in TEXTS], "userDefinedContext": {"normalize": "true"}}
    )
    if not wanted == openai == bigquery["replies"] == server.ask("/embed", {"inputs": TEXTS})[1]:
        raise Failed(
            "/v1/embeddings, /bigquery and /embed with inputs do not all give the vectors of /embed with texts."
        )
    return "/v1/embeddings, /bigquery and /embed with inputs give the same vectors"


def errors(server: Server) -> str:
    status, answer = server.ask("/embed", {"texts": []})
    shape = {"message", "type", "param", "code"}
    if status != 400 or not isinstance(answer, dict) or set(answer.get("error", ())) != shape:
        raise Failed(f"/embed answered an empty list with {status} and {_short(answer)}; wanted: 400 with an error.")
    return "/embed refuses an empty list with 400 and a reason"


def _checked(url: str) -> str:
    try:
        parts = urllib.parse.urlsplit(url)
        # the attribute port raises ValueError for a wrong one
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and parts.path in ("", "/"):
            return url
    except ValueError:
        pass
    raise Failed(
        "this is no URL of a server; it must be like http://localhost:8080 or https://example.com, without a path."
    )


def _short(answer: Any) -> str:
    return "no JSON" if answer is None else json.dumps(answer)[:200]


def within(seconds: float, what: str) -> None:
    """Raise TimeIsUp after these seconds from now, wherever the program is then. Unix, main thread."""

    def stop(*_: Any) -> None:
        raise TimeIsUp(f"{what} did not end within {seconds:g} s.")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description="Check a running server from outside.")
    parser.add_argument("url", help="where it answers, without a path")
    parser.add_argument("--timeout", type=float, default=120, help="seconds to wait until it is ready (%(default)g)")
    parser.add_argument("--ready-path", default="/readyz", help="what to wait for (%(default)s)")
    parser.add_argument("--allow-stand-in", action="store_true", help="accept the offline model")
    options = parser.parse_args()
    try:
        server = Server(options.url, os.environ.get("SMOKE_TOKEN", ""), os.environ.get("SMOKE_API_KEY", ""))
        # A little longer than the wait, whose own message has more details.
        within(options.timeout + 2 * RETRY_SECONDS, f"an answer of {options.ready_path}")
        print("ok:", ready(server, options.ready_path, options.timeout), flush=True)
        within(CHECKS_SECONDS, "the checks")
        print("ok:", about(server, options.allow_stand_in), flush=True)
        for check in (quality, embed, dialects, errors):
            print("ok:", check(server), flush=True)
    except (Failed, OSError, http.client.HTTPException) as error:
        print(f"FAILED: {options.url}: {error}", file=sys.stderr)
        return 1
    except (KeyError, TypeError) as error:
        print(f"FAILED: {options.url}: an answer is not of this API's form ({error!r}).", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
