"""Runs in a container: what is installed in it, and the model's files with their hashes, as JSON."""

import hashlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

MODEL = Path("/srv/model")
# Not the model's own: what the build says about it.
DESCRIPTIONS = ("manifest.json", "report.json", "report_error.svg", "report_similarity.svg")
DPKG = ["dpkg-query", "--show", "--showformat", "${db:Status-Status}\t${Package}\t${Version}\t${Architecture}\n"]
# The environment's Python, and the base image's, which has packages of its own.
PYTHONS = (sys.executable, os.path.join(sys.base_prefix, "bin/python3"))
DISTRIBUTIONS = """
import json
from importlib.metadata import distributions
print(json.dumps([[found.name, found.version] for found in distributions()]))
"""


def output(*command: str) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def model_files() -> dict[str, str]:
    files = [path for path in MODEL.rglob("*") if path.is_file() and path.name not in DESCRIPTIONS]
    return {path.relative_to(MODEL).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


debian = [line.split("\t") for line in output(*DPKG).splitlines()]
python = {tuple(found) for program in PYTHONS for found in json.loads(output(program, "-c", DISTRIBUTIONS))}
manifest = json.loads((MODEL / "manifest.json").read_text())
installed = {
    "debian": sorted(package for status, *package in debian if status == "installed"),
    "python": sorted(python),
    "version": platform.python_version(),
    "model": [manifest["model"], manifest["revision"]],
    "files": model_files(),
}
print(json.dumps(installed))
