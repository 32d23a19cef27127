"""PyTorch's CPU build: its lock, the message when its index cannot be reached, and writing the lock."""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from io import BytesIO
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.server import free_port
from tests.support.stand_ins import answering

REQUIREMENTS = ROOT / "requirements"
LOCK = (REQUIREMENTS / "torch.txt").read_text()
PYTHONS = ("311", "312", "313", "314")


def test_the_lock() -> None:
    """The lock has one version: CPU builds for Linux on two machines and four Pythons, and for macOS, with hashes."""
    pins = re.findall(
        r"^torch==(\S+) ; sys_platform == '(\w+)' \\\n((?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", LOCK, re.M
    )
    assert re.findall(r"^torch.*", LOCK, re.M) == [
        f"torch=={pin} ; sys_platform == '{name}' \\" for pin, name, _ in pins
    ]
    versions = {name: pin for pin, name, _ in pins}
    assert versions["linux"] == f"{versions['darwin']}+cpu"
    assert f"\ntorch=={versions['darwin']}\n" in (REQUIREMENTS / "build.in").read_text()
    hashes = {name: hashes.count("--hash") for _, name, hashes in pins}
    assert hashes["linux"] >= 2 * len(PYTHONS) and hashes["darwin"] >= len(PYTHONS)


def test_an_index_out_of_reach() -> None:
    """Without the index one sentence says what to set, and nothing is installed."""
    index = f"http://127.0.0.1:{free_port()}"
    environ = {"PATH": os.defpath, "PIP_INDEX_URL": f"{index}/simple", "PIP_CONFIG_FILE": os.devnull}
    command = ["sh", str(REQUIREMENTS / "torch"), sys.executable, "-m", "pip", "install", "--quiet", "--dry-run"]
    run = subprocess.run(
        [*command, "--ignore-installed"], env={**environ, "TORCH_INDEX": index}, capture_output=True, text=True
    )
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1] == (
        f"Error: PyTorch's CPU build could not be installed from {index}; the lines above say why. Set TORCH_INDEX "
        "to a mirror of https://download.pytorch.org/whl/cpu, or PIP_FIND_LINKS to a folder with the wheel."
    )


def wheel(version: str) -> bytes:
    """Return the bytes of an empty wheel."""
    data = BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        folder = f"torch-{version}.dist-info"
        archive.writestr(f"{folder}/METADATA", f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n")
        archive.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: false\n")
        archive.writestr(f"{folder}/RECORD", "")
    return data.getvalue()


WHEELS = {
    f"torch-9.0.0%2Bcpu-cp{python}-cp{python}-manylinux_2_28_{machine}.whl": wheel("9.0.0+cpu")
    for python in PYTHONS
    for machine in ("x86_64", "aarch64")
} | {f"torch-9.0.0-cp{python}-cp{python}-macosx_14_0_arm64.whl": wheel("9.0.0") for python in PYTHONS}


@pytest.fixture
def index() -> Iterator[str]:
    """The URL of an index that has torch 9 and nothing else, as PyTorch's has it."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        name = request.path.rsplit("/", 1)[1]
        links = [f'<a href="/{w}#sha256={hashlib.sha256(data).hexdigest()}">{w}</a>' for w, data in WHEELS.items()]
        body = WHEELS.get(name, "<br>\n".join(links).encode())
        request.send_response(200 if name in WHEELS or request.path == "/whl/torch/" else 404)
        request.send_header("Content-Type", "text/html")
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    with answering(answer) as url:
        yield f"{url}/whl"


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    """`requirements/lock` in a folder of its own, where it locks torch 9 and nothing else."""
    folder = tmp_path / "requirements"
    shutil.copytree(REQUIREMENTS, folder)
    wanted = folder / "torch.in"
    wanted.write_text(re.sub(r"^(torch==)[0-9.]+", r"\g<1>9.0.0", wanted.read_text(), flags=re.M))
    (tmp_path / "uv").write_text(
        f'#!/bin/sh\ncase "$*" in *torch.in*) exec {shutil.which("uv", path=BIN)} "$@" ;; esac\n'
    )
    (tmp_path / "uv").chmod(0o755)
    return folder / "lock"


BIN = str(Path(sys.executable).parent)


def write_lock(lock: Path, index: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": f"{lock.parent.parent}:{os.defpath}", "TORCH_INDEX": index, "HOME": str(lock.parent)}
    return subprocess.run([str(lock)], env=environ, capture_output=True, text=True)


def test_the_lock_is_written_from_the_index(lock: Path, index: str) -> None:
    """`make lock` writes every build of the version for Linux and macOS, with the index's hashes."""
    run = write_lock(lock, index)
    assert run.returncode == 0, run.stderr
    text = (lock.parent / "torch.txt").read_text()
    assert set(re.findall("sha256:([0-9a-f]{64})", text)) == {
        hashlib.sha256(data).hexdigest() for data in WHEELS.values()
    }
    assert re.findall(r"^torch==\S+ ; .*?'(\w+)'", text, re.M) == ["darwin", "linux"]


def test_the_lock_stays_without_the_index(lock: Path) -> None:
    """Without the index the lock stays as it is."""
    before = (lock.parent / "torch.txt").read_text()
    run = write_lock(lock, f"http://127.0.0.1:{free_port()}")
    assert run.returncode == 1
    assert "torch.txt stays as it was" in run.stderr
    assert (lock.parent / "torch.txt").read_text() == before
