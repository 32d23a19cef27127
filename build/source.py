"""Source: finds or downloads MODEL as a local sentence-transformers folder.

MODEL is an id of the Hugging Face hub, a folder, or "stand-in".
"""

import hashlib
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from build import BuildError, files, standin

DEFAULT_MODEL = "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"
# Commit of the default model, written by `make pins`; None: its main branch on the day of the build.
DEFAULT_REVISION: str | None = None
CACHE = Path(__file__).parent.parent / ".cache"
# Files that sentence-transformers reads. Repositories also hold the same weights for other frameworks, and as pickles,
# which can run code.
WEIGHTS = ".safetensors"
WANTED = ["*.json", "*.txt", "*.model", f"*{WEIGHTS}"]
OTHER_FRAMEWORKS = ["onnx/*", "openvino/*", "coreml/*"]


@dataclass(frozen=True)
class Source:
    """A model on the local disk, and its origin.

    model: name to show, a hub id or a folder's name. revision: the hub's commit, or None. stand_in: whether it is the
    offline model. warning: sentence to show to every user of the model, or None.
    """

    folder: Path
    model: str
    revision: str | None = None
    stand_in: bool = False
    warning: str | None = None


def revision_of(model: str, revision: str | None) -> str | None:
    """Return the requested revision, or the default model's pinned one."""
    return revision or (DEFAULT_REVISION if model == DEFAULT_MODEL else None)


def fetch(model: str, revision: str | None = None, fallback: str | None = None) -> Source:
    """Find or download MODEL.

    Args:
        model: a hub id, a folder, or "stand-in".
        revision: the hub's branch, tag or commit; None: its main branch.
        fallback: "stand-in" uses the stand-in if the hub cannot be reached.

    Raises:
        BuildError: the model or folder does not exist, or the hub cannot be reached.
    """
    if model == standin.NAME:
        return _stand_in(None)
    if Path(model).is_dir():
        if revision is not None:
            raise BuildError(f"--revision {revision} goes with a hub id, and {model} is a folder.")
        if not any((Path(model) / name).is_file() for name in ("modules.json", "config.json")):
            raise BuildError(f"{model} is not the folder of a model: it has neither modules.json nor config.json.")
        return Source(Path(model), Path(model).resolve().name)
    if model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise BuildError(f"There is no folder {model}.")
    try:
        return _download(model, revision)
    except HubUnreachable as error:
        if fallback is None:
            raise BuildError(
                f"The hub cannot be reached ({error}), so {model} cannot be downloaded.\n"
                "Two ways on: MODEL=/path/to/a/sentence-transformers/folder, "
                "or MODEL=stand-in (another model, offline)."
            ) from None
        return _stand_in(
            f"The hub could not be reached, so this is the stand-in ({standin.MODEL_ID}), NOT {model}: "
            "the vectors of the two do not fit together. Good for a trial, not for production."
        )


class HubUnreachable(Exception):
    """The hub gave no answer."""


def _stand_in(warning: str | None) -> Source:
    code = hashlib.sha256(Path(standin.__file__).read_bytes()).hexdigest()
    folder = CACHE / f"stand-in-{code[:12]}"
    if not folder.is_dir():
        CACHE.mkdir(exist_ok=True)
        with files.locked(CACHE):
            if not folder.is_dir():
                files.clean(CACHE)
                for old in CACHE.glob("stand-in-*"):  # 470 MB each
                    shutil.rmtree(old)
                part = Path(tempfile.mkdtemp(dir=CACHE, prefix=files.PART))
                standin.write_folder(part)
                part.rename(folder)
    return Source(folder, f"{standin.NAME} ({standin.MODEL_ID})", stand_in=True, warning=warning)


def _download(model: str, revision: str | None) -> Source:
    """Download from the hub, or take what an earlier download left in its cache.

    Raises:
        BuildError: the hub answered no. HubUnreachable: it did not answer, and the cache has nothing.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    try:
        info = HfApi().model_info(model, revision=revision, timeout=10)
        if not any(file.rfilename.endswith(WEIGHTS) for file in info.siblings or []):
            raise BuildError(f"{model} has no weights as {WEIGHTS}, and others can run code.")
        # by name, not by info.sha: the cache finds only branches and tags by name without the hub
        folder = snapshot_download(model, revision=revision, allow_patterns=WANTED, ignore_patterns=OTHER_FRAMEWORKS)
    except hub.HFValidationError as error:
        raise BuildError(f"{model!r} is neither a folder nor a hub id: {error}") from None
    except hub.GatedRepoError:
        raise BuildError(
            f"The hub does not let this account read {model}: ask for access, then set HF_TOKEN."
        ) from None
    except hub.RevisionNotFoundError:
        raise BuildError(f"{model} has no revision {revision!r} on the hub.") from None
    except hub.RepositoryNotFoundError:
        raise BuildError(
            f"There is no model {model!r} on the hub, nor a folder of that name (a private one needs HF_TOKEN)."
        ) from None
    except (
        hub.HfHubHTTPError,
        hub.LocalEntryNotFoundError,
        hub.OfflineModeIsEnabled,
        httpx2.HTTPError,
        json.JSONDecodeError,  # a page of a proxy in between
    ) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if isinstance(error, hub.HfHubHTTPError) and error.response.status_code in (400, 401, 403, 404):
            raise BuildError(f"The hub refuses {model}: {reason}") from None
        try:
            folder = snapshot_download(
                model,
                revision=revision,
                allow_patterns=WANTED,
                ignore_patterns=OTHER_FRAMEWORKS,
                local_files_only=True,
            )
        except hub.LocalEntryNotFoundError:
            raise HubUnreachable(reason) from None
    except OSError as error:
        raise BuildError(f"{model} cannot be downloaded: {error}") from None
    return Source(Path(folder), model, os.path.basename(folder))
