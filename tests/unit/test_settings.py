"""Settings: defaults, and malformed values that stop the start."""

from pathlib import Path

import pytest

from app.errors import BootError
from app.settings import Settings


def test_defaults() -> None:
    """Without variables the documented defaults hold; an empty variable counts as not set."""
    settings = Settings.from_env({"PORT": "", "HOME": "/root"})
    assert (settings.model_dir, settings.model_path) == (Path("model"), Path("model_int8.onnx"))
    assert (settings.max_length, settings.port) == (256, 8080)
    assert (settings.max_texts, settings.max_body_bytes, settings.cache_size) == (2048, 8 * 1024 * 1024, 4096)


def test_values_are_read() -> None:
    """Every kind of value arrives as its type."""
    settings = Settings.from_env({"MODEL_DIR": "/m", "MAX_LENGTH": "128", "CACHE_SIZE": "0", "LOG_LEVEL": "DEBUG"})
    assert (settings.model_dir, settings.max_length, settings.cache_size) == (Path("/m"), 128, 0)
    assert settings.log_level == "debug"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "0"),
        ("PORT", "65536"),
        ("PORT", "80.5"),
        ("MAX_LENGTH", "2"),
        ("MAX_LENGTH", "-1"),
        ("MAX_LENGTH", "1_000"),
        ("MAX_TEXTS", "２０"),
        ("CACHE_SIZE", "many"),
        ("WEB_CONCURRENCY", "auto"),
        ("LOG_LEVEL", "loud"),
    ],
)
def test_malformed_value(name: str, value: str) -> None:
    """A malformed value is refused with the variable's name and the value."""
    with pytest.raises(BootError, match=f"^{name} is '{value}'; it must be "):
        Settings.from_env({name: value})


def test_cpus_decide_on_workers_and_capacity() -> None:
    """CPUS overrides the detected number; there is one worker for every 4 CPUs, and they share them."""
    for cpus, workers, capacity in ((1, 1, 1), (2, 1, 2), (8, 2, 4)):
        settings = Settings.from_env({"CPUS": str(cpus)})
        assert (settings.web_concurrency, settings.capacity) == (workers, capacity)
    assert Settings.from_env({"CPUS": "8", "WEB_CONCURRENCY": "8"}).capacity == 1


def test_every_worker_computes() -> None:
    """All CPUs are used whatever the number of workers is."""
    assert min(Settings(web_concurrency=workers).capacity for workers in (1, 2, 3)) >= 1
