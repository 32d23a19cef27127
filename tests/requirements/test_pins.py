"""`make pins` with a registry and a hub on loopback, and the pins of everything that a build downloads."""

import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from build.source import DEFAULT_MODEL, DEFAULT_REVISION, revision_of
from tests.support import ROOT
from tests.support.server import free_port
from tests.support.stand_ins import answering

FILES = ["Dockerfile", "cloudbuild.yaml", "build/source.py", "requirements/pins.json", "requirements/pins.py"]
PINS = json.loads((ROOT / "requirements/pins.json").read_text())
NOT_PINNED = "not pinned yet"
BASE, DOCKER = "docker.io/library/python:3.11-slim", "docker.io/library/docker:28-cli"
INDEX = "application/vnd.oci.image.index.v1+json"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


class World:
    """A registry, the place that gives its tokens, and a model hub."""

    url = ""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, bytes, dict[str, str]]] = {}
        self.tokens_seen: list[str | None] = []
        self.manifests = {image: image.encode() * 10 for image in PINS if ":" in image}

    def answer(self, path: str, token: str | None) -> tuple[int, bytes, dict[str, str]]:
        if path in self.answers:
            return self.answers[path]
        if path.startswith("/token?"):
            assert "scope=repository%3A" in path
            return 200, b'{"token": "the-token"}', {}
        if path == f"/api/models/{DEFAULT_MODEL}":
            return 200, json.dumps({"sha": COMMIT}).encode(), {}
        for image, manifest in self.manifests.items():
            name, _, tag = image.partition("/")[2].rpartition(":")
            if path == f"/v2/{name}/manifests/{tag}":
                self.tokens_seen.append(token)
                if token != "Bearer the-token":
                    scope = f'Bearer realm="{self.url}/token",service="registry",scope="repository:{name}:pull"'
                    return 401, b"", {"WWW-Authenticate": scope}
                return 200, manifest, {"Docker-Content-Digest": digest(manifest), "Content-Type": INDEX}
        return 404, b"", {}

    def __call__(self, request: BaseHTTPRequestHandler) -> None:
        status, body, headers = self.answer(request.path, request.headers.get("Authorization"))
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(body)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def world() -> Iterator[World]:
    world = World()
    with answering(world) as world.url:
        yield world


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of what is written, with nothing pinned."""
    for file in FILES:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        text = (ROOT / file).read_text()
        text = re.sub(r"@sha256:\w+", "", text) if file in FILES[:2] else text
        text = re.sub(r"^(DEFAULT_REVISION.* = ).*$", r"\1None", text, flags=re.M)
        (tmp_path / file).write_text(text)
    (tmp_path / "requirements/pins.json").write_text(json.dumps(dict.fromkeys(PINS, NOT_PINNED)))
    return tmp_path


def pin(folder: Path, world: World | None, hub: str = "") -> subprocess.CompletedProcess[str]:
    url = world.url if world else f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, str(folder / "requirements/pins.py"), "--registry", url]
    return subprocess.run(command, env={"HF_ENDPOINT": hub or url}, capture_output=True, text=True)


def pins(folder: Path) -> dict[str, str]:
    return dict(json.loads((folder / "requirements/pins.json").read_text()))


def test_everything_is_pinned(folder: Path, world: World) -> None:
    """`make pins` writes today's digests into one file and everywhere they are used, and prints every change."""
    run = pin(folder, world)
    assert run.returncode == 0, run.stderr
    wanted = {image: digest(manifest) for image, manifest in world.manifests.items()} | {DEFAULT_MODEL: COMMIT}
    assert pins(folder) == wanted
    assert set(run.stdout.splitlines()) == {f"{name}: {NOT_PINNED} -> {pin}" for name, pin in wanted.items()}
    assert f"ARG PYTHON_IMAGE={BASE}@{wanted[BASE]}\n" in (folder / "Dockerfile").read_text()
    pipeline = (folder / "cloudbuild.yaml").read_text()
    assert f"name: {DOCKER}@{wanted[DOCKER]}\n" in pipeline
    assert f"  _PYTHON_IMAGE: {BASE}@{wanted[BASE]}\n" in pipeline
    assert f'\nDEFAULT_REVISION: str | None = "{COMMIT}"\n' in (folder / "build/source.py").read_text()
    floating(folder)


def test_again(folder: Path, world: World) -> None:
    """A second run writes nothing; after a tag has moved, it writes that one."""
    pin(folder, world)
    before = {file: (folder / file).read_text() for file in FILES}
    run = pin(folder, world)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")
    assert {file: (folder / file).read_text() for file in FILES} == before
    old, world.manifests[BASE] = digest(world.manifests[BASE]), b"a security fix"
    run = pin(folder, world)
    assert run.stdout == f"{BASE}: {old} -> {digest(b'a security fix')}\n"
    assert old not in "".join((folder / file).read_text() for file in FILES)
    floating(folder)


MANIFEST = "/v2/library/python/manifests/3.11-slim"


@pytest.mark.parametrize(
    ("path", "answer", "says"),
    [
        (MANIFEST, (404, b"", {}), "answered 404"),
        (MANIFEST, (200, b"<html>", {"Content-Type": "text/html"}), "answered with text/html, which is no manifest"),
        (
            MANIFEST,
            (200, b"{}", {"Docker-Content-Digest": digest(b"other"), "Content-Type": INDEX}),
            "other bytes than its Docker-Content-",
        ),
        (MANIFEST, (302, b"", {"Location": "http://127.0.0.1:1/elsewhere"}), "answered 302"),
        (MANIFEST, (401, b"", {"WWW-Authenticate": 'Basic realm="x"'}), "wants a token, and names no place"),
        (MANIFEST, (200, b" " * 5_000_000, {}), "answered with more than 4000000 bytes"),
        (f"/api/models/{DEFAULT_MODEL}", (200, b'{"sha": "main"}', {}), "says that the commit is 'main'"),
        (f"/api/models/{DEFAULT_MODEL}", (200, b"<html>", {}), "answered without a commit"),
    ],
)
def test_one_that_cannot_be_looked_up(
    folder: Path, world: World, path: str, answer: tuple[int, bytes, dict[str, str]], says: str
) -> None:
    """An image that cannot be looked up keeps its pin, and the others are pinned."""
    world.answers[path] = answer
    run = pin(folder, world)
    assert run.returncode == 1
    name = BASE if path == MANIFEST else DEFAULT_MODEL
    assert run.stderr.startswith(f"Error: {name} stays {NOT_PINNED}: ") and says in run.stderr
    assert (
        run.stderr.endswith(". Try again, or ask a mirror (--registry, HF_ENDPOINT).\n") and run.stderr.count("\n") == 1
    )
    assert {reference for reference, pin in pins(folder).items() if pin == NOT_PINNED} == {name}
    floating(folder)


def test_a_registry_that_drips(folder: Path, world: World) -> None:
    """A lookup has a time limit, however many bytes arrive."""

    def drip(request: BaseHTTPRequestHandler) -> None:
        if "/manifests/" not in request.path:
            return world(request)
        request.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(1000):
            request.wfile.write(b" ")
            time.sleep(0.1)

    program = folder / "requirements/pins.py"
    program.write_text(program.read_text().replace("LOOKUP_SECONDS = 20, 60", "LOOKUP_SECONDS = 20, 1"))
    with answering(drip) as url:
        run = subprocess.run(
            [sys.executable, str(program), "--registry", url], env={"HF_ENDPOINT": url}, capture_output=True, text=True
        )
    assert run.stderr.count("it was not answered within 1 s") == len(world.manifests)
    assert pins(folder)[DEFAULT_MODEL] == COMMIT


def test_without_a_network(folder: Path) -> None:
    """Without a network nothing is changed, and the exit status says so."""
    before = {file: (folder / file).read_text() for file in FILES[:3]}
    run = pin(folder, None)
    assert run.returncode == 1
    assert run.stderr.count("cannot be reached") == len(PINS)
    assert {file: (folder / file).read_text() for file in FILES[:3]} == before


def test_nothing_floats() -> None:
    """Every image of a build has a version in its tag, and the known pin."""
    floating(ROOT)
    assert "docker.io" not in (ROOT / "Makefile").read_text()
    assert PINS[DEFAULT_MODEL] == (DEFAULT_REVISION or NOT_PINNED)


def floating(folder: Path) -> None:
    known = pins(folder)
    found = []
    for file in ("Dockerfile", "cloudbuild.yaml"):
        text = (folder / file).read_text()
        # Patterns of image names: a stage's base, a default, a step's image, and BuildKit's frontend.
        for pattern in (
            r"^FROM (\S+)",
            r"PYTHON_IMAGE(?:=|: )([\w.]+/\S+)",
            r"^ +name: (\S+)",
            r"--driver-opt image=(\S+)",
        ):
            found += re.findall(pattern, text, re.M)
        assert "# syntax" not in text
    stages = set(re.findall(r" AS (\w+)$", (folder / "Dockerfile").read_text(), re.M))
    images = {name for name in found if name not in stages and name != "scratch" and "$" not in name}
    assert {image.partition("@")[0] for image in images} == {name for name in known if ":" in name}
    for image in images:
        reference, _, pin = image.partition("@")
        assert re.search(r"\d", reference.rpartition(":")[2]), f"{reference} has no version"
        assert (pin or NOT_PINNED) == known[reference]


def test_the_default_models_commit_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pinned commit is the default revision of the default model only."""
    monkeypatch.setattr("build.source.DEFAULT_REVISION", COMMIT)
    assert revision_of(DEFAULT_MODEL, None) == COMMIT
    assert revision_of(DEFAULT_MODEL, "main") == "main"
    assert revision_of("intfloat/multilingual-e5-small", None) is None
