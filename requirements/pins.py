"""Pin what a build takes from elsewhere: images by their digest, the default model by its commit.

    python requirements/pins.py [--registry URL]      or: make pins

Looks up what each reference of pins.json means today, writes that into pins.json and beside the reference wherever it
stands, and prints what changed. Review the difference, build, commit. Exit status 1: something could not be looked up,
and stays as it was. HF_ENDPOINT names a mirror of the model hub, --registry one of every image registry.
"""

import argparse
import hashlib
import http.client
import json
import os
import re
import signal
import sys
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PINS = ROOT / "requirements/pins.json"
NOT_PINNED = "not pinned yet"
# Files in which an image stands as `REFERENCE` or `REFERENCE@DIGEST`, and the line of the model's commit.
IMAGES_IN = ("Dockerfile", "cloudbuild.yaml")
MODEL_IN, MODEL_LINE = "build/source.py", "DEFAULT_REVISION: str | None = "
# An index of images for several machines, or one image, in either format.
# https://github.com/opencontainers/distribution-spec/blob/main/spec.md#pulling-manifests
MANIFESTS = [
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1",
        "docker.distribution.manifest.list.v2",
        "oci.image.manifest.v1",
        "docker.distribution.manifest.v2",
    )
]
# Limits of the time between two packets, and of a whole lookup.
REQUEST_SECONDS, LOOKUP_SECONDS = 20, 60
MAX_BYTES = 4_000_000


class LookupFailed(Exception):
    """A reference could not be looked up; the message says why."""


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would take a token to another host."""

    def redirect_request(self, *_: Any) -> None:
        return None


OPENER = urllib.request.build_opener(NoRedirects)


def get(url: str, headers: dict[str, str]) -> tuple[bytes, Any]:
    """Return body and headers of a 200. Raises LookupFailed, or HTTPError for another status."""
    try:
        with OPENER.open(urllib.request.Request(url, headers=headers), timeout=REQUEST_SECONDS) as response:
            body = response.read(MAX_BYTES + 1)
    except urllib.error.HTTPError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise LookupFailed(f"{url} cannot be reached ({error})") from None
    if len(body) > MAX_BYTES:
        raise LookupFailed(f"{url} answered with more than {MAX_BYTES} bytes")
    return body, response.headers


def digest_of(image: str, registry: str = "") -> str:
    """Return the digest of an image's tag. registry: URL to use instead of the image's own."""
    host, _, rest = image.partition("/")
    name, _, tag = rest.rpartition(":")
    base = registry or f"https://{'registry-1.docker.io' if host == 'docker.io' else host}"
    url, headers = f"{base}/v2/{name}/manifests/{tag}", {"Accept": ", ".join(MANIFESTS)}
    try:
        try:
            body, answered = get(url, headers)
        except urllib.error.HTTPError as error:
            if error.code != http.client.UNAUTHORIZED:
                raise
            headers["Authorization"] = f"Bearer {token(error.headers.get('WWW-Authenticate', ''), url)}"
            body, answered = get(url, headers)
    except urllib.error.HTTPError as error:
        raise LookupFailed(f"{url} answered {error.code}") from None
    if answered.get_content_type() not in MANIFESTS:
        raise LookupFailed(f"{url} answered with {answered.get_content_type()}, which is no manifest")
    digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
    if answered.get("Docker-Content-Digest", digest) != digest:
        raise LookupFailed(f"{url} answered with other bytes than its Docker-Content-Digest says")
    return digest


def token(challenge: str, url: str) -> str:
    """Return the token that a registry requires, from the address in its response.

    https://distribution.github.io/distribution/spec/auth/token/
    """
    fields = dict(re.findall(r'(\w+)="([^"]*)"', challenge))
    realm = fields.pop("realm", "")
    if not realm.startswith(("https://", "http://127.0.0.1:")):
        raise LookupFailed(f"{url} wants a token, and names no place that gives one")
    try:
        body, _ = get(f"{realm}?{urllib.parse.urlencode(fields)}", {})
        answer = json.loads(body)
        return str(answer.get("token") or answer["access_token"])
    except (urllib.error.HTTPError, ValueError, KeyError, AttributeError, TypeError):
        raise LookupFailed(f"{realm} gave no token") from None


def commit_of(model: str) -> str:
    """Return the commit of a model's main branch."""
    url = f"{(os.environ.get('HF_ENDPOINT') or 'https://huggingface.co').rstrip('/')}/api/models/{model}"
    try:
        commit = str(json.loads(get(url, {})[0])["sha"])
    except urllib.error.HTTPError as error:
        raise LookupFailed(f"{url} answered {error.code}") from None
    except (ValueError, KeyError, TypeError):
        raise LookupFailed(f"{url} answered without a commit") from None
    if not re.fullmatch("[0-9a-f]{40}", commit):
        raise LookupFailed(f"{url} says that the commit is {commit[:60]!r}; it must be 40 hex digits")
    return commit


def is_image(reference: str) -> bool:
    return ":" in reference


def write(pins: dict[str, str]) -> None:
    """Write the pins into pins.json and wherever their references stand."""
    PINS.write_text(json.dumps(pins, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for reference, pin in pins.items():
        pinned = pin != NOT_PINNED
        if not is_image(reference):
            line = MODEL_LINE + (f'"{pin}"' if pinned else "None")
            replace(ROOT / MODEL_IN, f"^{re.escape(MODEL_LINE)}.*$", line)
            continue
        for name in IMAGES_IN:
            replace(ROOT / name, rf"{re.escape(reference)}(@sha256:\w+)?(?![\w.:-])", reference + f"@{pin}" * pinned)


def replace(path: Path, pattern: str, text: str) -> None:
    before = path.read_text(encoding="utf-8")
    after = re.sub(pattern, text, before, flags=re.MULTILINE)
    if after != before:
        path.write_text(after, encoding="utf-8")


def out_of_time(*_: Any) -> None:
    raise LookupFailed(f"it was not answered within {LOOKUP_SECONDS} s")


def mirror(text: str) -> str:
    if text and not re.match("https?://.", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no URL like https://mirror.example.com")
    return text.rstrip("/")


def main() -> int:
    parser = argparse.ArgumentParser(description="Pin images and the default model; show what changed.")
    parser.add_argument("--registry", type=mirror, default="", help="URL of a mirror to ask about all images")
    options = parser.parse_args()
    signal.signal(signal.SIGALRM, out_of_time)
    pins, status = json.loads(PINS.read_text(encoding="utf-8")), 0
    for reference, before in pins.items():
        signal.alarm(LOOKUP_SECONDS)
        try:
            pins[reference] = digest_of(reference, options.registry) if is_image(reference) else commit_of(reference)
        except LookupFailed as error:
            what_to_do = "Try again, or ask a mirror (--registry, HF_ENDPOINT)."
            print(f"Error: {reference} stays {before}: {error}. {what_to_do}", file=sys.stderr)
            status = 1
        else:
            if pins[reference] != before:
                print(f"{reference}: {before} -> {pins[reference]}")
    signal.alarm(0)
    write(pins)
    return status


if __name__ == "__main__":
    sys.exit(main())
