"""Take out of the image's environment what the server never uses, and make bytecode of what it does.

    /opt/venv/bin/python requirements/slim.py

The Dockerfile runs it; tests/image/ shows that the service still does everything. Licences stay.
An entry that matches nothing stops the build, so that the lists stay true when packages change.
"""

import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import distribution
from pathlib import Path

PACKAGES = Path(sysconfig.get_path("purelib"))
# reason -> distributions
UNUSED = {
    "flasgger was built with it": "setuptools",
    "the hub's client: tokenizers requires it to download, we read a file": (
        "huggingface-hub hf-xet httpx2 httpcore2 h11 anyio idna truststore fsspec filelock tqdm"
    ),
    "onnxruntime's tools that change models need them, its engine does not": "flatbuffers protobuf",
}
# reason -> patterns of paths, below site-packages
DEAD_WEIGHT = {
    "the engine a second time; Python's module does not link to this one": "onnxruntime/capi/libonnxruntime.so.*",
    "tools that change models": "onnxruntime/tools onnxruntime/transformers onnxruntime/quantization",
    "examples, and an interface that we do not use": "onnxruntime/datasets onnxruntime/backend",
    "Swagger UI of 2019; ours is in app/swagger_ui": "flasgger/ui2 flasgger/ui3",
    "a faster YAML parser; openapi.yml is read once": "yaml/_yaml.*.so",
    "for compiling against numpy": "numpy/f2py numpy/distutils numpy/_core/include numpy/_core/lib",
    "parts of numpy that load when they are used, and are not": "numpy/random numpy/fft numpy/polynomial numpy/ma",
    "numpy's tests": "numpy/testing numpy/_core/_*_tests.*.so numpy/_core/_simd.*.so",
    "gevent's other event loop, and both once more for PyPy": "gevent/libuv gevent/_ffi gevent/libev/_corecffi.*.so",
    "resolvers of names that are chosen by GEVENT_RESOLVER": "gevent/resolver/cares.*.so gevent/resolver/dnspython.py",
    "tests": "**/tests gevent/testing jsonschema/benchmarks",
    "for type checkers and compilers": "**/*.pyi **/*.pxd",
    "greenlet's and zope.interface's sources": (
        "greenlet/*.[ch]pp greenlet/*.h greenlet/platform ../../../include/site/*/greenlet zope/interface/*.c"
    ),
    "commands that nobody runs in a container": "../../../bin/*onnx* ../../../bin/f2py ../../../bin/numpy-config",
}
# Modules that a start imports, of the standard library, too: without bytecode each start would compile them again.
STARTED = (
    "gunicorn.app.wsgiapp",
    "gunicorn.glogging",
    "gunicorn.workers.ggevent",
    "gevent.resolver.thread",
    "gevent.threadpool",
    "flask",
    "flasgger",
    "numpy.typing",
    "onnxruntime",
    "tokenizers",
    "orjson",
    "msgspec.json",
    "prometheus_client.multiprocess",
    "encodings.unicode_escape",  # by Jinja, for strings in a template
)

# As gunicorn.conf.py begins: it imports most of gevent.
PATCH = "from gevent import monkey; monkey.patch_all()"
# Valid by the source's content: its time may be rewritten on the way into a layer.
COMPILE = """
import py_compile, sys
for module in list(sys.modules.values()):
    if getattr(module, "__cached__", None):
        py_compile.compile(module.__file__, invalidation_mode=py_compile.PycInvalidationMode.CHECKED_HASH)
"""


def main() -> None:
    for reason, names in UNUSED.items():
        report(names, reason, [path for name in names.split() for path in files_of(name)])
    for reason, patterns in DEAD_WEIGHT.items():
        report(patterns, reason, matches(patterns))
    for path in sorted(PACKAGES.rglob("*"), reverse=True):
        if path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    # a new process: this one has imported a part of the standard library already
    subprocess.run([sys.executable, "-c", f"{PATCH}\nimport {', '.join(STARTED)}\n{COMPILE}"], check=True)
    # The same bytes whenever it is built.
    for folder in (Path(sys.prefix), Path(str(sys.pycache_prefix))):
        for path in [folder, *folder.rglob("*")]:
            os.utime(path, (0, 0), follow_symlinks=False)


def files_of(name: str) -> list[Path]:
    """Return a distribution's files, its commands included."""
    return [PACKAGES / file for file in distribution(name).files or []]


def matches(patterns: str) -> list[Path]:
    found = [path for pattern in patterns.split() for path in PACKAGES.glob(pattern)]
    if not found:
        sys.exit(f"Error: {patterns} is not there any more: take it off the list in {Path(__file__).name}.")
    return found


def report(names: str, reason: str, paths: list[Path]) -> None:
    """Remove the paths and say what they weighed."""
    size = sum(remove(path) for path in paths)
    print(f"- {size / 1e6:5.1f} MB  {names}: {reason}")


def remove(path: Path) -> int:
    """Remove a file or folder and return its bytes; 0 if it was removed with its folder."""
    if path.is_dir():
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        shutil.rmtree(path)
        return size
    size = path.stat().st_size if path.exists() else 0
    path.unlink(missing_ok=True)
    return size


if __name__ == "__main__":
    main()
