"""The estimate of the memory that a build needs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from build import __main__ as build
from build import needs
from tests.support import ROOT


def test_weights_are_counted_from_the_files_heads(tiny_source: Path, tmp_path: Path) -> None:
    """The table of words and all other weights are counted, whatever the files' precision."""
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(str(tiny_source), device="cpu")[0].auto_model
    total = sum(weight.numel() for weight in model.parameters())
    words = model.get_input_embeddings().weight.numel()
    assert needs.weights(tiny_source) == (words, total - words)
    model.half().save_pretrained(tmp_path)
    assert needs.weights(tmp_path) == (words, total - words)
    assert needs.memory_gb(tmp_path) == pytest.approx(needs.BASE_GB, abs=0.1)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("modules.json", b"[]"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
        ("model.safetensors", b"\x08\0"),
        ("model.safetensors", b"\x02\0\0\0\0\0\0\0[]"),
        ("pytorch_model.bin", b""),
    ],
)
def test_files_that_cannot_be_read(name: str, content: bytes, tmp_path: Path) -> None:
    """Without readable weights there is no estimate, and no error: the build fails with the reason."""
    (tmp_path / name).write_bytes(content)
    assert needs.memory_gb(tmp_path) is None


def test_a_build_says_what_it_needs(tiny_source: Path, tmp_path: Path) -> None:
    """The first line of a build says how much memory it needs, before anything is converted."""
    command = [sys.executable, "-m", "build", "--model", str(tiny_source), "--out", str(tmp_path / "model")]
    run = subprocess.run([*command, "--effort", "fast"], capture_output=True, text=True, cwd=ROOT)
    first, second, *_ = run.stdout.splitlines()
    assert first.startswith("source ") and first.endswith("tiny (the build needs about 2 GB of memory)"), run.stderr
    assert second.startswith("export ")


@pytest.mark.parametrize(
    ("limit", "free"), [("max\n", 8.192), ("6000000000\n", 5.5), ("90000000000\n", 8.192), (None, 8.192)]
)
def test_free_memory(limit: str | None, free: float, tmp_path: Path) -> None:
    """Free memory is what is available, or what is left of the cgroup's limit if that is less; cached files count."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:       16000000 kB\nMemAvailable:    8000000 kB\nHugePages_Total:       0\n")
    if limit:
        (tmp_path / "memory.max").write_text(limit)
        (tmp_path / "memory.current").write_text("1000000000\n")
        (tmp_path / "memory.stat").write_text("anon 500000000\nactive_file 200000000\ninactive_file 300000000\n")
    assert needs.free_gb(meminfo, tmp_path) == free
    assert needs.free_gb(tmp_path / "none", tmp_path) is None


def test_too_little_memory_is_a_warning(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With less memory than needed a build warns with both figures, and goes on; otherwise it does not."""
    assert needs.warning(11.2, 11.5) is needs.warning(11.2, None) is needs.warning(None, 1) is None
    monkeypatch.setattr(needs, "free_gb", lambda: 0.14)
    arguments = ["--model", str(tiny_source), "--out", str(tmp_path / "model"), "--effort", "fast"]
    build.main(arguments)
    assert "WARNING: The build needs about 2 GB of memory, and 0.1 GB are free" in capsys.readouterr().err
