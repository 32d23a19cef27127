"""requirements/sbom.py as the Dockerfile calls it, with a part of a real base image and real files of cyclonedx-py.

The folder sbom/ has seven packages of Debian's status file, one removed with `dpkg --remove`, and cyclonedx-py's
files about two small environments. tests/image/ shows that a built image's list is complete.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app import routes
from tests.support import ROOT
from tests.support.cyclonedx import problems

INPUTS = ROOT / "tests/requirements/sbom"
SERVER, BASE = INPUTS / "server.json", INPUTS / "base.json"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
DEBIAN = {
    "pkg:deb/debian/bash@5.2.15-2%2Bb13?arch=amd64&distro=debian-12&upstream=bash%405.2.15-2",
    "pkg:deb/debian/libcap2@1:2.66-4%2Bdeb12u3%2Bb1?arch=amd64&distro=debian-12&upstream=libcap2%401:2.66-4%2Bdeb12u3",
    "pkg:deb/debian/libssl3@3.0.22-1~deb12u2?arch=amd64&distro=debian-12&upstream=openssl",
    "pkg:deb/debian/libstdc%2B%2B6@12.2.0-14%2Bdeb12u1?arch=amd64&distro=debian-12&upstream=gcc-12",
    "pkg:deb/debian/tzdata@2026f-0%2Bdeb12u1?arch=all&distro=debian-12",
    "pkg:deb/debian/zlib1g@1:1.2.13.dfsg-1?arch=amd64&distro=debian-12&upstream=zlib",
}
PYTHON = {"pkg:pypi/jinja2@3.1.6", "pkg:pypi/markupsafe@3.0.4", "pkg:pypi/pip@23.2.1", "pkg:pypi/setuptools@65.5.0"}


@pytest.fixture
def manifest(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model's manifest, as if it had come from the hub."""
    content = json.loads((tiny_model / "manifest.json").read_text())
    assert content["revision"] is None
    return write(tmp_path / "manifest.json", {**content, "model": "owner/tiny", "revision": COMMIT})


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def run(
    manifest: Path, *python: Path, root: Path = INPUTS, precision: str = "int8", **environ: str
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "requirements/sbom.py", "--version", routes.VERSION, "--precision", precision]
    command += ["--manifest", str(manifest), "--root", str(root), *map(str, python or (SERVER, BASE))]
    return subprocess.run(command, cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True)


def listed(*arguments: Any, **options: Any) -> dict[str, Any]:
    process = run(*arguments, **options)
    assert process.returncode == 0, process.stderr
    document: dict[str, Any] = json.loads(process.stdout)
    assert problems(document) == []
    return document


def model_of(document: dict[str, Any]) -> dict[str, Any]:
    [model] = [part for part in document["components"] if part["type"] == "machine-learning-model"]
    return dict(model)


def test_everything_is_listed(manifest: Path) -> None:
    """The SBOM has Debian, its installed packages, Python, the packages of both environments, and the model."""
    document = listed(manifest)
    purls = {part.get("purl") or part["name"] for part in document["components"]}
    python = f"pkg:generic/python@{platform.python_version()}"
    assert purls == {"debian", *DEBIAN, python, *PYTHON, f"pkg:huggingface/owner/tiny@{COMMIT}"}
    assert document["metadata"]["component"] == {
        "type": "container",
        "bom-ref": "embedding-api",
        "name": "embedding-api",
        "version": routes.VERSION,
    }
    needs = {entry["ref"]: entry["dependsOn"] for entry in document["dependencies"]}
    assert needs["embedding-api"] == sorted(part["bom-ref"] for part in document["components"])
    assert needs["Jinja2==3.1.6"] == ["MarkupSafe==3.0.4"]


def test_the_names_and_versions_are_debians_own(manifest: Path) -> None:
    """Names and versions are Debian's; only the purl is percent-encoded."""
    versions = {part["name"]: part.get("version") for part in listed(manifest)["components"]}
    assert versions["libstdc++6"] == "12.2.0-14+deb12u1"
    assert versions["zlib1g"] == "1:1.2.13.dfsg-1"
    assert versions["debian"] == "12"
    assert "netbase" not in versions


@pytest.mark.parametrize("precision", ["int8", "fp32"])
@pytest.mark.parametrize("has_pieces", [True, False])
def test_the_models_files_are_those_of_the_image(manifest: Path, precision: str, has_pieces: bool) -> None:
    """The model's files are those of the image."""
    content = json.loads(manifest.read_text())
    tokenizer = {"tokenizer/tokenizer.json": "1" * 64}
    pieces = {"tokenizer/characters.json": "2" * 64, "tokenizer/pieces.npy": "3" * 64}
    onnx = {name: digest for name, digest in content["files"].items() if name.startswith("model_")}
    write(manifest, {**content, "files": {**onnx, **tokenizer, **(pieces if has_pieces else {})}})
    model = model_of(listed(manifest, precision=precision))
    shipped = {name: digest for name, digest in onnx.items() if name.startswith(f"model_{precision}.")}
    wanted = {**shipped, **(pieces if has_pieces else tokenizer)}
    assert len(wanted) == len(shipped) + (2 if has_pieces else 1) > 2
    found = {part["name"]: part["hashes"] for part in model["components"]}
    assert found == {name: [{"alg": "SHA-256", "content": digest}] for name, digest in wanted.items()}


def test_a_model_that_is_not_the_hubs_has_no_address(tiny_model: Path) -> None:
    """A model from a folder has no address."""
    model = model_of(listed(tiny_model / "manifest.json"))
    assert model["name"] == json.loads((tiny_model / "manifest.json").read_text())["model"]
    assert "purl" not in model
    assert "version" not in model


def test_a_package_in_both_environments_is_listed_once(manifest: Path) -> None:
    """A package in both environments is listed once."""
    assert listed(manifest, SERVER, BASE, SERVER) == listed(manifest, SERVER, BASE)


def test_the_same_inputs_give_the_same_bytes(manifest: Path) -> None:
    """The same inputs give the same bytes."""
    outputs = {run(manifest, PYTHONHASHSEED=seed).stdout for seed in ("1", "2", "3")}
    assert len(outputs) == 1
    document = json.loads(outputs.pop())
    assert "serialNumber" not in document
    assert "timestamp" not in document["metadata"]


def test_the_schema_refuses_what_is_misspelt(manifest: Path) -> None:
    """The check finds problems in a wrong file."""
    text = run(manifest).stdout
    assert "SHA256" in problems(json.loads(text.replace("SHA-256", "SHA256", 1)))[0]
    assert "librari" in problems(json.loads(text.replace('"type": "library"', '"type": "librari"', 1)))[0]
    assert "no component: Jinja2" in problems(json.loads(text.replace('"bom-ref": "Jinja2', '"bom-ref": "Jinja')))[0]


def test_errors_are_sentences(manifest: Path, tmp_path: Path) -> None:
    """Errors are sentences."""
    content = json.loads(manifest.read_text())
    nowhere = tmp_path / "nowhere"
    older = write(tmp_path / "older.json", {**json.loads(SERVER.read_text()), "specVersion": "1.6"})
    array = write(tmp_path / "array.json", [1])
    empty = write(tmp_path / "empty.json", {})
    no_hash = write(tmp_path / "no-hash.json", {**content, "files": {}})
    for process, message in [
        (run(nowhere), f"{nowhere} cannot be read: No such file or directory."),
        (run(manifest, nowhere), f"{nowhere} cannot be read: No such file or directory."),
        (run(manifest, root=nowhere), f"{nowhere}/etc/os-release cannot be read: No such file or directory."),
        (run(manifest, older), f"{older} is not a CycloneDX 1.5 file."),
        (run(array), f"{array} is not a JSON object: "),
        (run(INPUTS / "etc/os-release"), f"{INPUTS}/etc/os-release is not a JSON object: "),
        (run(empty), f"{empty} has no model."),
        (run(no_hash), f"{no_hash} has no model_int8.onnx."),
    ]:
        assert process.returncode == 1
        assert process.stderr.startswith(f"Error: {message}"), process.stderr
        assert process.stdout == ""
        assert process.stderr.count("\n") == 1
