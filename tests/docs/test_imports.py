"""The parts import what they may: the build the engine only, the engine no server, app/ nothing of the build."""

import ast
import graphlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT


def test_app_never_imports_what_only_the_build_has() -> None:
    """Importing the whole server loads nothing of build/, torch, transformers, onnx or huggingface_hub."""
    heavy = {"build", "torch", "transformers", "sentence_transformers", "onnx", "matplotlib", "huggingface_hub"}
    code = "import sys, app.server.worker, app; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert heavy & set(run.stdout.split()) == set()


def imports(path: Path) -> set[str]:
    """Return the modules that a file imports, also within functions. For parts of a package: each part."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, path
            parts = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {part if module_file(part) else node.module for part in parts}
    return found


def module_file(name: str) -> Path | None:
    """Return the file of one of our modules, or None for any other module."""
    path = ROOT / name.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def of(name: str, *packages: str) -> bool:
    """Return whether a module is one of the packages or within one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def modules(folder: str) -> dict[str, Path]:
    """Return the modules of a folder: name -> file."""
    paths = sorted(ROOT.glob(f"{folder}/**/*.py"))
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}


APP = modules("app")


def test_the_build_imports_the_engine_only() -> None:
    """build/ uses only app.engine of app/, so that an edit of the server or of a route does not rerun the proof."""
    used = {name for path in ROOT.glob("build/**/*.py") for name in imports(path) if of(name, "app")}
    assert used and [name for name in used if not of(name, "app.engine")] == []


def test_the_engine_knows_no_server() -> None:
    """The engine imports its own parts, app.errors and numerical packages: no Flask, Gunicorn or gevent."""
    allowed = {*sys.stdlib_module_names, "numpy", "onnxruntime", "tokenizers", "msgspec"}
    for module, path in APP.items():
        if of(module, "app.engine"):
            for name in imports(path):
                assert of(name, "app.engine", "app.errors", *allowed), (module, name)
                assert not of(name, "http"), module


def test_the_errors_are_pure() -> None:
    """app/errors.py imports the standard library only."""
    assert [name for name in imports(APP["app.errors"]) if name.split(".")[0] not in sys.stdlib_module_names] == []


def test_the_engine_runs_without_the_rest(tmp_path: Path) -> None:
    """app/engine/ and app/errors.py, which the Dockerfile copies for the proof, run without the server's packages."""
    shutil.copytree(ROOT / "app/engine", tmp_path / "app/engine", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "app/errors.py", tmp_path / "app")
    hide = "import sys; sys.modules.update(dict.fromkeys(['flask', 'gunicorn', 'gevent', 'orjson']))"
    subprocess.run([sys.executable, "-c", f"{hide}; import app.engine.encoder"], cwd=tmp_path, check=True)
    copied = re.findall(r"^COPY (app/.+) app/\S*$", (ROOT / "Dockerfile").read_text(), re.M)
    assert copied == [
        "app/errors.py",
        "app/engine/__init__.py app/engine/manifest.py app/engine/unigram.py",
        "app/engine",
    ]


def test_export_and_quantization_need_three_files_of_the_engine(tmp_path: Path) -> None:
    """They run with only the files that the Dockerfile copies for them: an edit of others does not rerun them."""
    shutil.copytree(ROOT / "build", tmp_path / "build", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "app/engine").mkdir(parents=True)
    for name in ("errors", "engine/__init__", "engine/manifest", "engine/unigram"):
        shutil.copy(ROOT / f"app/{name}.py", tmp_path / f"app/{name}.py")
    subprocess.run([sys.executable, "-c", "import build.export_onnx, build.quantize"], cwd=tmp_path, check=True)


def test_only_the_server_knows_gunicorn_and_gevent() -> None:
    """Only app/server/ and gunicorn.conf.py import Gunicorn and gevent; app/logs.py extends Gunicorn's logger."""
    for module, path in APP.items():
        used = {name for name in imports(path) if of(name, "gunicorn", "gevent", "greenlet")}
        allowed = {"gunicorn.glogging"} if module == "app.logs" else set()
        assert used <= allowed or of(module, "app.server"), module


def test_the_bulk_command_knows_no_http() -> None:
    """app/bulk/ imports the engine, settings and log lines, and nothing else of app/; the server does not import it."""
    allowed = ("app.bulk", "app.engine", "app.errors", "app.loading", "app.logs", "app.settings")
    for module, path in APP.items():
        used = {name for name in imports(path) if of(name, "app")}
        assert all(of(name, *allowed) for name in used - {"app"}) or not of(module, "app.bulk"), module
        assert of(module, "app.bulk") or not any(of(name, "app.bulk") for name in used), module


@pytest.mark.parametrize("folder", ["app", "build"])
def test_imports_have_no_circle(folder: str) -> None:
    """The imports within a folder have no circle."""
    paths = modules(folder)
    below = {module: {name for name in imports(path) if name in paths} - {module} for module, path in paths.items()}
    tuple(graphlib.TopologicalSorter(below).static_order())
