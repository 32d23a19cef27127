"""build.source with the real hub client and a stand-in for the hub, and the messages of `python -m build`."""

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from build.source import DEFAULT_MODEL, Source
from build.standin import MODEL_ID
from tests.support import ROOT
from tests.support.hub import Run, build, python
from tests.support.server import free_port

MAIN, OLDER = "a" * 40, "b" * 40  # the commits of the branch main and the tag v1
DECOYS = ("onnx/model.onnx", "onnx/config.json", "openvino/x.bin", "coreml/x.json", "tf_model.h5", "README.md")
# The client reads its settings when it is imported, so it runs in a process of its own.
FETCH = """
import dataclasses, json, sys
from build.source import fetch
print(json.dumps(dataclasses.asdict(fetch(*json.loads(sys.argv[1]))), default=str))
"""
TOKEN = "hf_secret"
ASK = ": ask for access, then set HF_TOKEN."
RULE = (
    "Repo id must use alphanumeric chars, '-', '_' or '.'. "
    "The name cannot start or end with '-' or '.' and the maximum length is 96"
)


class Hub(ThreadingHTTPServer):
    """Speaks the part of the hub's protocol that huggingface_hub uses to download a model.

    repositories: id -> file's name -> content, the same in both commits; org/gated refuses everything,
    org/gated-files its files. always: what every request is answered with, if set.
    asked: commit -> "id/file" asked for.
    """

    def __init__(self, repositories: dict[str, dict[str, bytes]]) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repositories = repositories
        self.always: tuple[int, bytes] | None = None
        self.asked: dict[str, set[str]] = {MAIN: set(), OLDER: set()}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        path = urlsplit(self.path).path.removeprefix("/")
        is_api = path.startswith("api/models/")
        words = path.removeprefix("api/models/").split("/")
        model, what, revision, name = "/".join(words[:2]), *(words[2:4] or ["revision", "main"]), "/".join(words[4:])
        commit = {"main": MAIN, "v1": OLDER}.get(revision, revision)
        files = self.server.repositories.get(model)
        if self.server.always:
            self.reply(*self.server.always, {})
        elif files is None:
            self.refuse(404, "RepoNotFound")
        elif commit not in self.server.asked:
            self.refuse(404, "RevisionNotFound")
        elif (model == "org/gated" or (model == "org/gated-files" and what == "resolve")) and not self.is_known():
            self.refuse(403, "GatedRepo")
        elif is_api and what == "revision":
            self.answer({"id": model, "sha": commit, "siblings": [{"rfilename": file} for file in files]})
        elif is_api:
            self.answer([{"type": "file", "path": file, "size": len(files[file]), "oid": file} for file in files])
        else:
            self.server.asked[commit].add(f"{model}/{name}")
            etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
            self.reply(200, files[name], {"ETag": etag, "X-Repo-Commit": commit})

    do_HEAD = do_GET

    def is_known(self) -> bool:
        return self.headers["Authorization"] == f"Bearer {TOKEN}"

    def answer(self, value: Any) -> None:
        self.reply(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def refuse(self, status: int, code: str = "") -> None:
        self.reply(status, b"", {"X-Error-Code": code})

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Silent."""


@pytest.fixture
def hub(tiny_source: Path) -> Iterator[Hub]:
    """org/tiny has safetensors among decoys, org/old its weights in pytorch_model.bin only."""
    files = {path.relative_to(tiny_source).as_posix(): path.read_bytes() for path in tiny_source.rglob("*.json")}
    decoys = dict.fromkeys(DECOYS, b"decoy")
    old = {**files, **decoys, "pytorch_model.bin": b"weights"}
    tiny = {**old, "model.safetensors": (tiny_source / "model.safetensors").read_bytes()}
    with Hub({"org/tiny": tiny, "org/old": old, "org/gated": tiny, "org/gated-files": tiny}) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def dead_hub() -> str:
    """The address of a hub that is not there."""
    return f"http://127.0.0.1:{free_port()}"


def fetch(folder: Path, endpoint: str, *arguments: str | None) -> Source:
    """Run build.source.fetch(*arguments) in a process of its own."""
    run = python(["-c", FETCH, json.dumps(arguments)], endpoint, folder / "home")
    assert run.returncode == 0, run.stderr
    fields = json.loads(run.stdout)
    return Source(**{**fields, "folder": Path(fields["folder"])})


def assert_refused(run: Run, folder: Path, *lines: str) -> None:
    """Check for exit code 1, exactly these lines, and nothing written into folder/model."""
    assert (run.returncode, run.stdout, run.stderr.splitlines()) == (1, "", list(lines))
    assert not (folder / "model").exists()


def assert_unreachable(run: Run, folder: Path, model: str, reason: str) -> None:
    """Check for a refusal with the reason and the two alternatives."""
    first = run.stderr.partition("\n")[0]
    assert first.startswith("error: The hub cannot be reached (") and reason in first
    assert first.endswith(f"), so {model} cannot be downloaded.")
    ways = "MODEL=/path/to/a/sentence-transformers/folder, or MODEL=stand-in (another model, offline)."
    assert_refused(run, folder, first, f"Two ways on: {ways}")


def test_only_what_is_needed_is_downloaded(hub: Hub, tmp_path: Path, tiny_source: Path) -> None:
    """Only text files and safetensors are downloaded."""
    source = fetch(tmp_path, hub.url, "org/tiny")
    names = {path.relative_to(tiny_source).as_posix() for path in tiny_source.rglob("*.json")} | {"model.safetensors"}
    assert {"modules.json", "1_Pooling/config.json", "tokenizer.json"} <= names
    assert hub.asked[MAIN] == {f"org/tiny/{name}" for name in names}
    for name in names:
        assert (source.folder / name).read_bytes() == hub.repositories["org/tiny"][name]


def test_a_model_without_safetensors(hub: Hub, tmp_path: Path) -> None:
    """A model with pickles only is refused before anything is downloaded."""
    run = build(tmp_path, hub.url, "--model", "org/old")
    assert_refused(run, tmp_path, "error: org/old has no weights as .safetensors, and others can run code.")
    assert not any(hub.asked.values())


@pytest.mark.parametrize("revision, commit", [(None, MAIN), ("main", MAIN), ("v1", OLDER), (OLDER, OLDER)])
def test_the_revision_asked_for_is_downloaded(revision: str | None, commit: str, hub: Hub, tmp_path: Path) -> None:
    """A branch, a tag or a commit is downloaded; the source's revision is the commit."""
    source = fetch(tmp_path, hub.url, "org/tiny", revision)
    assert source == Source(source.folder, "org/tiny", commit)
    assert {known for known, files in hub.asked.items() if files} == {commit}


def test_a_build_from_the_hub_says_the_commit(hub: Hub, tmp_path: Path) -> None:
    """The manifest has the model and its commit, and no warning."""
    run = build(tmp_path, hub.url, "--model", "org/tiny", "--revision", "v1")
    assert (run.returncode, run.stderr) == (0, "")
    manifest = json.loads((tmp_path / "model/manifest.json").read_text(encoding="utf-8"))
    shown = {name: manifest[name] for name in ("model", "revision", "warning", "stand_in")}
    assert shown == {"model": "org/tiny", "revision": OLDER, "warning": None, "stand_in": False}


@pytest.mark.parametrize("model, revision", [("org/tiny", None), ("org/tiny", "v1"), ("org/tiny", OLDER)])
@pytest.mark.parametrize("answers", [False, True])
def test_a_model_downloaded_before_needs_no_hub(
    model: str, revision: str | None, answers: bool, hub: Hub, dead_hub: str, tmp_path: Path
) -> None:
    """An earlier download of the same revision is used while the hub cannot be reached or fails."""
    downloaded = fetch(tmp_path, hub.url, model, revision)
    hub.always = (500, b"")
    assert fetch(tmp_path, hub.url if answers else dead_hub, model, revision) == downloaded


def test_half_a_download_is_not_used(hub: Hub, dead_hub: str, tmp_path: Path) -> None:
    """A cache without the weights is refused when the hub cannot be reached."""
    (fetch(tmp_path, hub.url, "org/tiny").folder / "model.safetensors").unlink()
    assert_unreachable(build(tmp_path, dead_hub, "--model", "org/tiny"), tmp_path, "org/tiny", "Connection refused")


def test_an_unreachable_hub_is_an_error_with_two_ways_on(dead_hub: str, tmp_path: Path) -> None:
    """Without hub and cache the error names two alternatives."""
    assert_unreachable(build(tmp_path, dead_hub), tmp_path, DEFAULT_MODEL, "Connection refused")


@pytest.mark.parametrize(
    "always, reason", [((500, b""), "500"), ((200, b"<html>Please log in</html>"), "Expecting value")]
)
def test_a_failing_hub_is_as_good_as_none(always: tuple[int, bytes], reason: str, hub: Hub, tmp_path: Path) -> None:
    """A hub that answers 500, or a login page of the network, counts as unreachable."""
    hub.always = always
    assert_unreachable(build(tmp_path, hub.url, "--model", "org/tiny"), tmp_path, "org/tiny", reason)


def test_a_refusal_is_not_a_missing_hub(hub: Hub, tmp_path: Path) -> None:
    """A wrong HF_TOKEN is reported, without a fallback to the stand-in."""
    hub.always = (401, b"")
    run = build(tmp_path, hub.url, "--model", "org/tiny", "--fallback", "stand-in")
    assert run.stderr.startswith("error: ") and "hub cannot be reached" not in run.stderr
    assert_refused(run, tmp_path, run.stderr.splitlines()[0])


def test_a_private_model_as_the_image_builds_it(hub: Hub, tmp_path: Path) -> None:
    """HF_TOKEN_PATH names the token's file for the export; verification needs neither token nor hub."""
    (tmp_path / "hf_token").write_text(TOKEN + "\n")
    home, model, out = tmp_path / "home", ["--model", "org/gated"], ["--out", str(tmp_path / "model")]
    for arguments, environ in (
        (["-m", "build.export_onnx", *model, *out], {"HF_TOKEN_PATH": str(tmp_path / "hf_token")}),
        (["-m", "build.quantize", *out], {}),
        (["-m", "build.verify", *model, *out, "--name", "ours"], {"HF_HUB_OFFLINE": "1"}),
    ):
        run = python(arguments, hub.url, home, **environ)
        assert run.returncode == 0, run.stderr
    manifest = json.loads((tmp_path / "model/manifest.json").read_text())
    assert (manifest["model"], manifest["revision"]) == ("ours", MAIN)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [path.name for path in files if TOKEN.encode() in path.read_bytes()] == ["hf_token"]


def test_the_proof_alone_needs_the_other_steps(tiny_source: Path, tmp_path: Path) -> None:
    """`python -m build.verify` without a model names the missing file, and writes no manifest."""
    run = subprocess.run(
        [sys.executable, "-m", "build.verify", "--model", str(tiny_source), "--out", str(tmp_path / "model")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert run.stderr.startswith("error: There is no ")
    assert "Traceback" not in run.stderr
    assert not (tmp_path / "model/manifest.json").exists()


@pytest.mark.full_size
@pytest.mark.usefixtures("full_size_model")
def test_the_stand_in_takes_an_unreachable_hubs_place_where_allowed(dead_hub: str, tmp_path: Path) -> None:
    """With --fallback the stand-in replaces an unreachable hub's model; the warning names both."""
    source = fetch(tmp_path, dead_hub, "org/tiny", None, "stand-in")
    assert source.stand_in and source.revision is None and (source.folder / "modules.json").is_file()
    assert source.warning is not None and "org/tiny" in source.warning and MODEL_ID in source.warning


@pytest.mark.parametrize(
    "arguments, error",
    [
        (["org/tiny", "--revision", "v2"], "org/tiny has no revision 'v2' on the hub."),
        (
            ["org/none"],
            "There is no model 'org/none' on the hub, nor a folder of that name (a private one needs HF_TOKEN).",
        ),
        (["org/gated"], f"The hub does not let this account read org/gated{ASK}"),
        (["org/gated-files"], f"The hub does not let this account read org/gated-files{ASK}"),
        (["a b/c"], f"'a b/c' is neither a folder nor a hub id: {RULE}: 'a b/c'."),
        (["./nope"], "There is no folder ./nope."),
        (["/nope"], "There is no folder /nope."),
        (["a/b/c"], "There is no folder a/b/c."),
        (["build"], "build is not the folder of a model: it has neither modules.json nor config.json."),
        (["build", "--revision", "v1"], "--revision v1 goes with a hub id, and build is a folder."),
    ],
)
def test_a_model_that_is_not_to_be_had_is_one_line(arguments: list[str], error: str, hub: Hub, tmp_path: Path) -> None:
    """A refusal of the hub, and a name that is neither a hub id nor a folder, stop the build; there is no fallback."""
    run = build(tmp_path, hub.url, "--fallback", "stand-in", "--model", *arguments)
    assert_refused(run, tmp_path, f"error: {error}")
