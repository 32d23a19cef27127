"""Runs in a container: each part of the image -> [bytes, bytes packed with gzip, as layers travel], as JSON."""

import gzip
import json
import tarfile
from pathlib import Path

PACKAGES = next(Path("/opt/venv/lib").glob("python3.*/site-packages"))
BIG = {"onnxruntime": "onnxruntime", "numpy with OpenBLAS": "numpy numpy.libs", "tokenizers": "tokenizers"}


class Counter:
    """A file that only counts what is written to it."""

    count = 0

    def write(self, data: bytes) -> int:
        self.count += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is kept."""


def sizes(*paths: Path) -> list[int]:
    files = [file for path in paths for file in [path, *path.rglob("*")] if file.is_file() and not file.is_symlink()]
    packed = Counter()
    with gzip.GzipFile(fileobj=packed, mode="wb", compresslevel=6) as stream, tarfile.open(
        fileobj=stream, mode="w|"
    ) as archive:
        for file in files:
            archive.add(file)
    return [sum(file.stat().st_size for file in files), packed.count]


packages = {path.name: path for path in PACKAGES.iterdir()}
big = {name: [packages.pop(part) for part in parts.split()] for name, parts in BIG.items()}
parts = {
    "model": sizes(*Path("/srv/model").glob("*.onnx*")),
    "tokenizer, manifest, report": sizes(*(path for path in Path("/srv/model").iterdir() if ".onnx" not in path.name)),
    **{name: sizes(*paths) for name, paths in big.items()},
    "other packages": sizes(*packages.values(), *Path("/opt/venv/bin").iterdir()),
    "bytecode, the standard library's, too": sizes(Path("/opt/bytecode")),
    "app, with Swagger UI": sizes(Path("/srv/app"), Path("/srv/gunicorn.conf.py")),
}
print(json.dumps(parts))
