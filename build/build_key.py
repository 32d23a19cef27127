"""Build key: a hash of a build's inputs, by which a model folder is known to be up to date."""

import hashlib
import json
from pathlib import Path
from typing import Any

from app.engine.manifest import MANIFEST
from app.engine.model_folder import sha256

ROOT = Path(__file__).parent.parent


def build_key(model: str, revision: str | None, effort: str) -> str:
    """Return the SHA-256 of the inputs: the model asked for, the effort, this code, its packages and its texts."""
    digest = hashlib.sha256(json.dumps([_identity(model), revision, effort]).encode())
    inputs = [path for pattern in ("*.py", "*.txt", "*.tsv") for path in (ROOT / "build").rglob(pattern)]
    inputs += (ROOT / "app/engine").glob("*.py")
    inputs += [ROOT / f"requirements/{name}.txt" for name in ("runtime", "build", "torch")]
    for path in sorted(inputs):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def _identity(model: str) -> list[Any]:
    """Return a model's name and, for a folder, the sizes and times of its files."""
    folder = Path(model)
    if not folder.is_dir():
        return [model]
    stats = [(path.relative_to(folder).as_posix(), path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    return [str(folder.resolve()), [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]]


def up_to_date(out: Path, key: str, accept_stand_in: bool) -> dict[str, Any] | None:
    """Return the manifest of OUT if it is complete and has this build key, otherwise None.

    accept_stand_in: whether a folder that holds the stand-in as a fallback counts as up to date.
    """
    try:
        manifest: dict[str, Any] = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
        if manifest["build_key"] != key or (manifest["warning"] and not accept_stand_in):
            return None
        is_complete = all(sha256(out / name) == known for name, known in manifest["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return manifest if is_complete else None
