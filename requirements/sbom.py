"""List what is in the image as one CycloneDX file: Debian's packages, Python, its packages, and the model.

    python requirements/sbom.py --version 0.1.0 --precision int8 --manifest manifest.json PYTHON.json… >sbom.cdx.json

The Dockerfile runs it with the image's Python. PYTHON.json: what cyclonedx-py writes about one environment.
The same inputs give the same bytes: no time, no random serial number. Standard library only.
"""

import argparse
import json
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

IMAGE, SPEC_VERSION = "embedding-api", "1.5"
Json = dict[str, Any]


class InputError(Exception):
    """A file that the list is made of has other content than expected."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--version", required=True, help="version of the image")
    parser.add_argument("--precision", required=True, help="model file in the image: int8 or fp32")
    parser.add_argument("--manifest", required=True, type=Path, help="manifest.json of the model folder")
    parser.add_argument("--root", default=Path("/"), type=Path, help="root folder of the image")
    parser.add_argument("python", nargs="+", type=Path, help="cyclonedx-py's file about one environment")
    options = parser.parse_args()
    try:
        found = [*debian(options.root), cpython(platform.python_version()), model(options.manifest, options.precision)]
        print(json.dumps(document(options.version, found, options.python), indent=1, sort_keys=True))
    except InputError as error:
        sys.exit(f"Error: {error}")
    except OSError as error:
        sys.exit(f"Error: {error.filename} cannot be read: {error.strerror}.")


def document(version: str, found: list[Json], paths: list[Path]) -> Json:
    """Return the whole file. A package that two environments hold in one version is listed once."""
    needs: dict[str, set[str]] = {}
    for path in paths:
        bom = read_json(path)
        if (bom.get("bomFormat"), bom.get("specVersion")) != ("CycloneDX", SPEC_VERSION):
            raise InputError(f"{path} is not a CycloneDX {SPEC_VERSION} file.")
        found += bom.get("components", ())
        for entry in bom.get("dependencies", ()):
            needs.setdefault(entry["ref"], set()).update(entry.get("dependsOn", ()))
    components = {component["bom-ref"]: component for component in found}
    needs = {**dict.fromkeys(components, set()), **needs, IMAGE: set(components)}
    image = {"type": "container", "bom-ref": IMAGE, "name": IMAGE, "version": version}
    return {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "version": 1,
        "metadata": {"component": image, "tools": bom["metadata"]["tools"]},
        "components": [components[ref] for ref in sorted(components)],
        "dependencies": [{"ref": ref, "dependsOn": sorted(needs[ref])} for ref in sorted(needs)],
    }


def debian(root: Path) -> Iterator[Json]:
    """Yield the operating system and each of its installed packages."""
    path = root / "etc/os-release"
    lines = [line.partition("=") for line in path.read_text(encoding="utf-8").splitlines()]
    system = {name: value.strip("\"'") for name, _, value in lines}
    name, version, title = (field(system, key, path) for key in ("ID", "VERSION_ID", "PRETTY_NAME"))
    distro = f"{name}-{version}"
    yield {"type": "operating-system", "bom-ref": distro, "name": name, "version": version, "description": title}
    path = root / "var/lib/dpkg/status"
    for paragraph in path.read_text(encoding="utf-8").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        if fields.get("Status", "").split()[-1:] == ["installed"]:
            yield debian_package(fields, name, distro, path)


def debian_package(fields: Mapping[str, str], namespace: str, distro: str, path: Path) -> Json:
    """Return one package. Its source, which Debian's advisories name, is the qualifier `upstream`, as Syft has it."""
    name, version, arch = (field(fields, key, path) for key in ("Package", "Version", "Architecture"))
    qualifiers = {"arch": arch, "distro": distro}
    if "Source" in fields:
        source, _, source_version = fields["Source"].rstrip(")").partition(" (")
        qualifiers["upstream"] = f"{source}@{source_version}" if source_version else source
    purl = f"pkg:deb/{namespace}/{quote(name)}@{quote(version, safe=':')}?{urlencode(qualifiers, safe=':')}"
    return {"type": "library", "bom-ref": purl, "purl": purl, "name": name, "version": version}


def cpython(version: str) -> Json:
    """Return Python itself: the base image compiles it, so it is not a package of Debian's."""
    purl, cpe = f"pkg:generic/python@{version}", f"cpe:2.3:a:python:python:{version}:*:*:*:*:*:*:*"
    return {"type": "application", "bom-ref": purl, "purl": purl, "cpe": cpe, "name": "python", "version": version}


def model(path: Path, precision: str) -> Json:
    """Return the model and those of its files that are in the image."""
    name, revision, files = (field(read_json(path), key, path) for key in ("model", "revision", "files"))
    # the Dockerfile leaves it out where its pieces are prepared
    left_out = {"tokenizer/tokenizer.json"} if "tokenizer/pieces.npy" in files else set()
    tokenizer = {file for file in files if file.startswith("tokenizer/")} - left_out
    shipped = sorted([f"model_{precision}.onnx", f"model_{precision}.onnx.data", *tokenizer])
    hashes = {file: [{"alg": "SHA-256", "content": field(files, file, path)}] for file in shipped}
    parts = [{"type": "file", "name": file, "hashes": hashes[file]} for file in shipped]
    found = {"type": "machine-learning-model", "bom-ref": "model", "name": name, "components": parts}
    if revision is None:  # from a folder, or the stand-in
        return found
    purl = f"pkg:huggingface/{quote(name)}@{quote(revision)}"
    return {**found, "bom-ref": purl, "purl": purl, "version": revision}


def field(content: Mapping[str, Any], name: str, path: Path) -> Any:
    if name not in content:
        raise InputError(f"{path} has no {name}.")
    return content[name]


def read_json(path: Path) -> Json:
    try:
        return dict(json.loads(path.read_bytes()))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} is not a JSON object: {error}.") from None


if __name__ == "__main__":
    main()
