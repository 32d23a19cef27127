"""What is written down is what is there: README in both languages, openapi.yml, the locks."""

import ast
import graphlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from app import routes
from app.routes import bigquery, native, openai, options, tei
from app.routes.body import TextList
from app.settings import Settings
from build import verify
from build.source import DEFAULT_MODEL
from tests.support import ROOT

OPENAPI = yaml.safe_load((ROOT / "app/openapi.yml").read_text())
READMES = ["README.md", "README.ja.md"]
# Settings whose default the README puts in words, since it depends on the CPU or is empty.
IN_WORDS = {"CPUS", "WEB_CONCURRENCY", "API_KEY", "CORS_ORIGINS", "GOOGLE_CLOUD_PROJECT"}


def rows(readme: str) -> dict[str, str]:
    """First cell of every table row (without backquotes) -> second cell."""
    lines = (ROOT / readme).read_text().splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if line.startswith("| ")]
    return {row[0].strip("`"): row[1].strip("`") for row in cells if len(row) > 1}


@pytest.mark.parametrize("readme", READMES)
def test_settings(readme: str) -> None:
    """Every setting is in the README with its default, and no other."""
    table = {name: value for name, value in rows(readme).items() if re.fullmatch(r"[A-Z_]+", name)}
    settings = {field.name.upper(): field.default for field in fields(Settings)}
    assert set(table) == set(settings)
    for name in set(settings) - IN_WORDS:
        assert table[name].rstrip("/") == str(settings[name]), name


@pytest.mark.parametrize("readme", READMES)
def test_options(readme: str) -> None:
    """Every option of /embed is in the README and in openapi.yml, with its default."""
    table, parameters = rows(readme), OPENAPI["components"]["parameters"]
    schema = OPENAPI["components"]["schemas"]["Texts"]["properties"]
    assert set(options.OPTIONS) == set(parameters) == set(schema) - {"texts"}
    for name in ("normalize", "truncate", "encoding_format"):
        default = getattr(options.Options(), name)
        assert table[name] == (str(default).lower() if isinstance(default, bool) else default)
        assert parameters[name]["schema"]["default"] == schema[name]["default"] == default
    assert set(options.OPTIONS) <= set(table)


# The greatest token id is the model's; openapi.yml has none.
ID_TYPES: Any = tei.ids_types(2**40)
EMBED: Any = tei.Embed
DECODE: Any = tei.Decode
SCHEMAS = OPENAPI["components"]["schemas"]
BODIES: dict[str, list[Any]] = {
    "Texts": [native.Texts],
    "Inputs": [EMBED[str | TextList], *(EMBED[ids] for ids in ID_TYPES)],
    "Comparison": [tei.Comparison],
    "/tokenize": [tei.Tokenize],
    "/decode": [DECODE[ids] for ids in ID_TYPES],
    "OpenaiInput": [openai.Input],
    "Calls": [bigquery.Calls],
}


def alternatives(schema: dict[str, Any], root: dict[str, Any]) -> Iterator[Any]:
    """The types that a schema of OpenAPI or JSON Schema allows, with their limits, in a form that can be compared."""
    while "$ref" in schema:
        path, schema = schema["$ref"].split("/")[1:], root
        for name in path:
            schema = schema[name]
    if schema.get("nullable"):
        yield "null"
    kind = "string" if "enum" in schema else schema.get("type")
    if several := schema.get("oneOf", schema.get("anyOf")):
        for one in several:
            yield from alternatives(one, root)
    elif kind == "null":
        yield "null"
    elif kind == "object":
        properties = {
            (name, name in schema.get("required", ()), frozenset(alternatives(inner, root)))
            for name, inner in schema["properties"].items()
        }
        yield "object", schema.get("additionalProperties", True), frozenset(properties)
    elif kind == "array":
        (items,) = schema.get("prefixItems", [schema["items"]])
        yield "array", schema.get("minItems"), schema.get("maxItems"), frozenset(alternatives(items, root))
    else:
        limits = [schema.get(name) for name in ("minimum", "maximum", "maxLength")]
        yield kind, frozenset(schema.get("enum", ())), *(None if limit == 2**40 - 1 else limit for limit in limits)


def members(schemas: list[tuple[dict[str, Any], dict[str, Any]]]) -> dict[str, Any]:
    """Field -> whether it is required and what it may be, in one of several objects; and what other fields may be."""
    found: dict[str, Any] = {}
    for schema, root in schemas:
        ((kind, others, properties),) = alternatives(schema, root)
        assert kind == "object"
        found["other fields"] = others
        for name, is_required, allowed in properties:
            found[name] = (is_required, allowed | found.get(name, (None, frozenset()))[1])
    return found


@pytest.mark.parametrize("name", BODIES)
def test_bodies(name: str) -> None:
    """Every field of a body is documented with its types and limits, and whether it may be null or missing."""
    if name.startswith("/"):
        schema = OPENAPI["paths"][name]["post"]["requestBody"]["content"]["application/json"]["schema"]
    else:
        schema = SCHEMAS[name]
    types = [msgspec.json.schema(type_) for type_ in BODIES[name]]
    assert members([(schema, OPENAPI)]) == members([(type_, type_) for type_ in types])


def test_the_query() -> None:
    """The parameters of GET /embed are the options."""
    type_ = msgspec.json.schema(options.OptionFields)
    parameters = {name: parameter["schema"] for name, parameter in OPENAPI["components"]["parameters"].items()}
    documented = {name: (False, {*alternatives(schema, OPENAPI), "null"}) for name, schema in parameters.items()}
    assert documented | {"other fields": True} == members([(type_, type_)])


def test_every_body_is_compared() -> None:
    """No schema of a request is left out of the comparison."""
    used = set()
    for path, methods in OPENAPI["paths"].items():
        for operation in methods.values():
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                found = schema.get("oneOf", [schema])
                used |= {one["$ref"].rsplit("/", 1)[1] if "$ref" in one else path for one in found}
    assert used == set(BODIES)


@pytest.mark.parametrize("readme", READMES)
def test_routes(readme: str) -> None:
    """Every route of openapi.yml is in the README."""
    text = (ROOT / readme).read_text()
    for path, methods in OPENAPI["paths"].items():
        for method in methods:
            assert f"`{method.upper()} {path}" in text, path


def test_version() -> None:
    """GET / and openapi.yml tell the same version."""
    assert OPENAPI["info"]["version"] == routes.VERSION


def test_the_images_arguments() -> None:
    """The Dockerfile's defaults are those of `make` and `python -m build`; the README names every argument."""
    text = (ROOT / "Dockerfile").read_text()
    defaults = dict(re.findall(r"^ARG (\w+)=(.*)$", text, re.M))
    assert (defaults["MODEL"], defaults["REVISION"]) == (DEFAULT_MODEL, "")
    assert f"TORCH_INDEX ?= {defaults['TORCH_INDEX']}\n" in (ROOT / "Makefile").read_text()
    assert defaults["VERSION"] == routes.VERSION
    for readme in READMES:
        named = re.findall(r"`([A-Z]\w*)=`", (ROOT / readme).read_text())
        assert set(named) == set(defaults) - {"VERSION"}


def test_the_images_build_sees_only_what_it_copies() -> None:
    """What .dockerignore lets in is what the Dockerfile copies, so that an edit of anything else rebuilds nothing."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")][0] == "*"
    let_in = {path for line in lines if line.startswith("!") for path in ROOT.glob(line[1:])}
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    copied = {ROOT / name for copy in copies for name in copy.split()}
    assert [path for path in copied if not {path, *path.parents} & let_in] == []
    assert let_in - copied <= set(ROOT.glob("requirements/*.txt"))


def test_the_two_readmes_have_the_same_parts() -> None:
    """As many sections, tables and commands in Japanese as in English; the same measured figures."""
    english, japanese = ((ROOT / readme).read_text() for readme in READMES)
    for pattern in (r"^## ", r"^\| ---", r"^```"):
        assert len(re.findall(pattern, english, re.M)) == len(re.findall(pattern, japanese, re.M)), pattern
    for name in ("bench", "image"):
        figures = [
            re.findall(r"\d[\d.,]*", text.split(f"<!-- {name} -->")[1].split(f"<!-- /{name} -->")[0])
            for text in (english, japanese)
        ]
        assert figures[0] == figures[1]
        assert len(figures[0]) > 10


def test_the_readmes_tell_the_gate() -> None:
    """The figures of build/verify.py, in the order of the table."""
    gate = [verify.INT8_COSINE["mean"], verify.INT8_COSINE["p1"], verify.FP32_MIN_COSINE, verify.INT8_COSINE["min"]]
    gate += [verify.INT8_PAIRWISE_DIFFERENCE, verify.INT8_RETRIEVAL_LOSS, verify.INT8_NEIGHBOURS]
    for readme in READMES:
        table = (ROOT / readme).read_text().split("\n| | FP32 | INT8 |\n")[1].split("\n\n")[0]
        cells = [cell for row in table.splitlines()[1:] for cell in row.strip("| ").split("|")[1:]]
        assert [float(cell) for cell in cells if cell.strip()] == gate, readme


def test_pictures_are_there() -> None:
    """Every image and every file that a document links to is in the repository."""
    for document in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / link).exists(), (document, link)


@pytest.mark.parametrize("name", ["runtime", "build", "test", "sdist", "audit", "clients"])
def test_locks(name: str) -> None:
    """Every package of the .in file is pinned in the .txt file, and every pin has hashes."""
    wanted = [line.split()[0] for line in lines(f"{name}.in") if not line.startswith(("-", "torch="))]
    locked = (ROOT / f"requirements/{name}.txt").read_text()
    pins = re.findall(r"^([a-z0-9.-]+)==\S+(?: ;[^\\\n]*)? \\\n    --hash=sha256:", locked, re.M)
    assert {re.split("[=<>;]", package)[0].lower() for package in wanted} <= set(pins)
    assert len(pins) == len(re.findall(r"^[a-z0-9]", locked, re.M))
    assert "torch" not in pins


def lines(name: str) -> list[str]:
    text = (ROOT / "requirements" / name).read_text()
    return [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_app_never_imports_what_only_the_build_has() -> None:
    """The whole server, imported, has brought nothing of build/, torch, transformers, onnx or the hub along."""
    heavy = {"build", "torch", "transformers", "sentence_transformers", "onnx", "matplotlib", "huggingface_hub"}
    code = "import sys, app.server.worker, app; print(*{name.split('.')[0] for name in sys.modules})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert heavy & set(run.stdout.split()) == set()


def imports(path: Path) -> set[str]:
    """The modules that a file imports, at its top or within a function; of a package's parts, each part."""
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
    """The file of one of our modules; None if it is no module of ours."""
    path = ROOT / name.replace(".", "/")
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def of(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


APP = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.glob("app/**/*.py"))
}


def test_the_build_imports_the_engine_only() -> None:
    """The engine needs nothing else of app/: an edit of the server or of a route proves no model anew."""
    used = {name for path in ROOT.glob("build/**/*.py") for name in imports(path) if of(name, "app")}
    assert used and [name for name in used if not of(name, "app.engine")] == []


def test_the_engine_knows_no_server() -> None:
    """It imports its own parts, app.errors and numerical packages: neither Flask, nor Gunicorn, nor gevent."""
    allowed = {*sys.stdlib_module_names, "numpy", "onnxruntime", "tokenizers", "msgspec"}
    for module, path in APP.items():
        if of(module, "app.engine"):
            for name in imports(path):
                assert of(name, "app.engine", "app.errors", *allowed), (module, name)
                assert not of(name, "http"), module


def test_the_errors_are_pure() -> None:
    assert [name for name in imports(APP["app.errors"]) if name.split(".")[0] not in sys.stdlib_module_names] == []


def test_the_engine_runs_without_the_rest(tmp_path: Path) -> None:
    """app/engine/ and app/errors.py are all that the Dockerfile copies for the proof; they need no server's package."""
    shutil.copytree(ROOT / "app/engine", tmp_path / "app/engine", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "app/errors.py", tmp_path / "app")
    hide = "import sys; sys.modules.update(dict.fromkeys(['flask', 'gunicorn', 'gevent', 'orjson']))"
    subprocess.run([sys.executable, "-c", f"{hide}; import app.engine.encoder"], cwd=tmp_path, check=True)
    assert re.findall(r"^COPY (app/.+) app/\S*$", (ROOT / "Dockerfile").read_text(), re.M) == [
        "app/engine",
        "app/errors.py",
    ]


def test_only_the_server_knows_gunicorn_and_gevent() -> None:
    """They are in app/server/ and gunicorn.conf.py alone, but for Gunicorn's logger, which app/logs.py extends."""
    for module, path in APP.items():
        used = {name for name in imports(path) if of(name, "gunicorn", "gevent", "greenlet")}
        allowed = {"gunicorn.glogging"} if module == "app.logs" else set()
        assert used <= allowed or of(module, "app.server"), module


def test_imports_have_no_circle() -> None:
    """Within app/ each module imports what is below it only."""
    below = {module: {name for name in imports(path) if name in APP} - {module} for module, path in APP.items()}
    tuple(graphlib.TopologicalSorter(below).static_order())
