"""Programs that use the Hugging Face hub, or a stand-in for it, and nothing of the user's own settings."""

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.support import ROOT

Run = subprocess.CompletedProcess[str]


def python(arguments: list[str], endpoint: str, home: Path, **environ: str) -> Run:
    """Run Python in the repository's root with the hub at `endpoint` and its client's cache in `home`."""
    ours = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", **environ}
    others = re.compile("(HF|HUGGING|TRANSFORMERS)_.*|.*PROXY", re.IGNORECASE)
    clean = {name: value for name, value in os.environ.items() if not others.fullmatch(name)}
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, env={**clean, **ours}, capture_output=True, text=True)


def build(folder: Path, endpoint: str, *arguments: str) -> Run:
    """Run `python -m build` into folder/model."""
    return python(["-m", "build", "--out", str(folder / "model"), *arguments], endpoint, folder / "home")
