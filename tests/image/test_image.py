"""The image: its files, and its behaviour in a running container. Not part of `make test`: `make image-check`."""

import json
import re
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from io import BytesIO
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
import yaml

from app import routes
from tests.image import container
from tests.support import ROOT, cyclonedx
from tests.support.server import Server, free_port

PLACES = ("/opt/venv", "/opt/bytecode", "/srv/app", "/srv/gunicorn.conf.py", "/srv/model", "/usr/local/bin/bulk")
TEXT = "深さ優先探索は、グラフを深く進めるだけ進む方法である。"
HEAVY = ("torch", "transformers", "sentence_transformers", "onnx", "huggingface_hub", "hf_xet", "pip", "build")
PRECISION = container.config()["Labels"]["embedding-api.model.precision"]
# Above the base, unpacked and packed, with a vocabulary of 250,000.
MAX_MEGABYTES = {"int8": (260, 121), "fp32": (610, 260)}[PRECISION]


class Container(Server):
    """A container of the image, serving."""

    def __init__(self, **environ: str) -> None:
        self.port = str(free_port())
        self.run(container.command(environ={"PORT": self.port, **environ}))


@pytest.fixture(scope="module")
def added() -> dict[str, list[Any]]:
    """Path -> [kind, bytes, mode, user, group] of what the image has above its base, or changes in it."""
    base = {row[0]: row[1:] for row in container.run_script("inside_files", image=container.BASE)}
    assert len(base) > 1000
    rows = [row for row in container.run_script("inside_files") if row[1] != "unreadable" or row[0] not in base]
    return {path: row for path, *row in rows if row != base.get(path)}


@pytest.fixture(scope="module")
def served() -> Iterator[Container]:
    server = Container(CACHE_SIZE="0")
    yield server.wait_until_ready()
    server.stop()


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The image's own model folder, copied out of it."""
    pack = "import sys, tarfile; tarfile.open(fileobj=sys.stdout.buffer, mode='w|').add('/srv/model', 'model')"
    folder = tmp_path_factory.mktemp("image")
    with tarfile.open(fileobj=BytesIO(container.run("python3", "-c", pack))) as archive:
        archive.extractall(folder, filter="data")
    return folder / "model"


@pytest.fixture(scope="module")
def whole(model_dir: Path) -> Iterator[Server]:
    """The same model, served with every package as it was installed, nothing cut."""
    server = Server({"MODEL_DIR": str(model_dir), "CACHE_SIZE": "0"})
    yield server.wait_until_ready()
    server.stop()


def test_the_files(added: dict[str, list[Any]]) -> None:
    """Above its base the image has the environment, bytecode, app/, gunicorn.conf.py and the served model files."""
    # Folders alone are where a builder mounted something.
    assert {path for path, (kind, *_) in added.items() if not path.startswith(PLACES) and kind != "folder"} == set()
    model = {path.removeprefix("/srv/model/") for path, (kind, *_) in added.items() if path.startswith("/srv/model/")}
    served = {f"model_{PRECISION}.onnx", f"model_{PRECISION}.onnx.data", "tokenizer", "manifest.json", "report.json"}
    served |= {"tokenizer/cl100k_base.npy", "report_error.svg", "report_similarity.svg"}
    tokenizers = {"tokenizer/tokenizer.json"}, {"tokenizer/characters.json", "tokenizer/pieces.npy"}
    assert model in [served | files for files in tokenizers]
    app = {path.removeprefix("/srv/") for path, (kind, *_) in added.items() if path.startswith("/srv/app/")}
    tracked = subprocess.run(["git", "ls-files", "app"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {path for path in app if (ROOT / path).is_file()} >= set(tracked.split())
    assert {path for path in app if not (ROOT / path).exists()} == set()


def test_nothing_heavy_and_nothing_left_behind(added: dict[str, list[Any]]) -> None:
    """The image has no PyTorch, hub client, pip, compilers, tests, caches, or bytecode beside sources."""
    for path in map(PurePosixPath, added):
        for folder, name in pairwise(path.parts):
            if folder == "site-packages":
                assert re.split(r"[-.]", name)[0] not in HEAVY, path
        if "licenses" not in path.parts:
            assert not {"tests", "__pycache__", ".cache", ".git", "include"} & set(path.parts[5:]), path
        if not path.is_relative_to("/opt/bytecode"):
            assert path.suffix not in (".pyc", ".a", ".h", ".hpp", ".cpp", ".pyi", ".pxd", ".map", ".whl"), path
        assert path.name not in ("gcc", "cc", "git", "curl", "pip", "pip3"), path


def test_the_files_are_roots_and_the_server_only_reads_them(added: dict[str, list[Any]]) -> None:
    """All files belong to root, are readable by all and writable by nobody else, and are not setuid."""
    for path, (kind, _, mode, user, group) in added.items():
        assert (user, group) == (0, 0), path
        if kind != "link":
            assert mode & 0o6022 == 0, (path, oct(mode))
            assert mode & 0o004, (path, oct(mode))


def test_nothing_becomes_another_user() -> None:
    """No file of the image or its base is setuid or setgid."""
    find = "find / -xdev -type f -perm /6000 2>/dev/null; true"  # some folders are root's alone
    assert container.run("sh", "-c", find).decode().split() == []


def test_the_size() -> None:
    """Above its base the image has at most 260 MB, packed 121 MB (with FP32 more)."""
    totals = [sum(column) / 1e6 for column in zip(*container.run_script("inside_sizes").values(), strict=True)]
    assert totals[0] <= MAX_MEGABYTES[0]
    assert totals[1] <= MAX_MEGABYTES[1]


def test_the_configuration() -> None:
    """The image has a numeric user, labels, a health check, and no secret in its environment."""
    config = container.config()
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", config["User"])
    assert config["Cmd"] == ["gunicorn"]
    assert not config.get("Entrypoint")
    labels = config["Labels"]
    names = ["source", "revision", "version", "licenses", "title", "description", "base.name"]
    assert set(labels) >= {f"org.opencontainers.image.{name}" for name in names}
    assert labels["org.opencontainers.image.version"] == routes.VERSION
    assert labels["embedding-api.model.id"]
    assert set(labels) >= {"embedding-api.model.revision", "embedding-api.model.precision"}
    assert not [item for item in config["Env"] if re.match("(?!GPG_KEY)[A-Z_]*(TOKEN|KEY|SECRET|PASSWORD)", item)]
    assert not [item for item in config["Env"] if re.match("PIP_|HF_|TORCH_INDEX|[A-Za-z]*_(PROXY|proxy)", item)]


@pytest.fixture(scope="module")
def sbom() -> dict[str, Any]:
    """The list that `make sbom` wrote."""
    path = ROOT / "sbom.cdx.json"
    if not path.is_file():
        pytest.fail(f"There is no {path.name}: run `make sbom` with the variables that `make image` was given.")
    return dict(json.loads(path.read_text()))


@pytest.fixture(scope="module")
def installed() -> dict[str, Any]:
    """Packages and model files in a container of the image, as its own tools report them."""
    return dict(container.run_script("inside_packages"))


def test_the_sbom_is_a_cyclonedx_file(sbom: dict[str, Any]) -> None:
    """The SBOM is valid CycloneDX 1.5, with the version of the image's label."""
    assert cyclonedx.problems(sbom) == []
    labels = container.config()["Labels"]
    assert sbom["metadata"]["component"]["version"] == labels["org.opencontainers.image.version"]


def test_the_sbom_has_every_package(sbom: dict[str, Any], installed: dict[str, Any]) -> None:
    """The SBOM has every Debian and Python package of the image with its version, and no other."""
    listed = [(urlsplit(part["purl"]), part) for part in sbom["components"] if "purl" in part]
    debian = [
        [part["name"], part["version"], parse_qs(purl.query)["arch"][0]]
        for purl, part in listed
        if purl.path.startswith("deb/debian/")
    ]
    assert len(debian) > 50
    assert sorted(debian) == installed["debian"]
    python = [[part["name"], part["version"]] for purl, part in listed if purl.path.startswith("pypi/")]
    assert len(python) > 20
    assert sorted(python) == installed["python"]
    assert f"pkg:generic/python@{installed['version']}" in [part.get("purl") for part in sbom["components"]]


def test_the_sbom_has_the_model(sbom: dict[str, Any], installed: dict[str, Any]) -> None:
    """The SBOM has the model's id and revision, and each of its files with its hash."""
    [model] = [part for part in sbom["components"] if part["type"] == "machine-learning-model"]
    assert [model["name"], model.get("version")] == installed["model"]
    assert {part["name"]: part["hashes"][0]["content"] for part in model["components"]} == installed["files"]


def test_what_is_imported() -> None:
    """A start finds bytecode for every module, and a server that used every route has imported nothing heavy."""
    paths = [path for path, methods in openapi()["paths"].items() if "get" in methods]
    code = f"""
from gevent import monkey
monkey.patch_all()
import _imp, importlib.util, json, os, sys
def is_fast(module):
    if not getattr(module, "__cached__", None):
        return True
    if not os.path.exists(module.__cached__):
        return False
    with open(module.__cached__, "rb") as bytecode, open(module.__file__, "rb") as source:
        head = bytecode.read(16)
        return head[4:] == bytes([3, 0, 0, 0]) + importlib.util.source_hash(source.read())
import gunicorn.app.wsgiapp, app.server.worker
from app import create_app
server = create_app()
print(json.dumps(sorted(name for name, module in sys.modules.items() if not is_fast(module))))
client = server.test_client()
for path in {paths!r}:
    client.get(path, query_string={{"q": "a"}})
client.post("/embed", json={{"texts": ["a"]}})
client.post("/embed", data="{{")
print(json.dumps(sorted(sys.modules)))
"""
    slow, modules = map(json.loads, container.run("python", "-c", code).splitlines())
    assert {name.split(".")[0] for name in modules} & set(HEAVY) == set()
    assert slow == []


def openapi() -> dict[str, Any]:
    return dict(yaml.safe_load((ROOT / "app/openapi.yml").read_text()))


# The measured speed in GET /info differs from server to server; Ollama's time and Cohere's id from answer to answer.
MEASURED = re.compile(rb'"max_client_batch_size":\d+|"total_duration":\d+|"id":"[0-9a-f-]{36}"')
# Headers whose values differ from answer to answer; the order of the methods in Allow is not fixed.
CHANGING = ("Allow", "Date", "X-Request-Id", "Server-Timing")
REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/", {}),
    ("GET", "/", {"headers": {"Accept": "text/html"}}),
    *[("GET", f"/page/{name}", {}) for name in ("page.js", "page.css", "icon.svg", "report_error.svg")],
    ("GET", "/health", {}),
    ("GET", "/healthz", {}),
    ("GET", "/readyz", {}),
    ("GET", "/docs", {}),
    ("GET", "/openapi.json", {}),
    *[("GET", f"/docs/assets/{path.name}", {}) for path in sorted((ROOT / "app/swagger_ui").glob("*.[cjp]*"))],
    ("GET", "/info", {}),
    ("GET", "/v1/models", {}),
    ("GET", "/v1/models/{model}", {}),
    ("POST", "/", {"json": {"inputs": {"source_sentence": "深さ", "sentences": ["幅", "a b"]}}}),
    ("POST", "/v1/embeddings", {"json": {"input": ["深さ優先探索", "a"], "dimensions": 5}}),
    ("POST", "/similarity", {"json": {"inputs": {"source_sentence": "深さ", "sentences": []}}}),
    ("POST", "/tokenize", {"json": {"inputs": ["深さ優先探索", "a b", "🙂\u0301é"]}}),
    ("POST", "/decode", {"json": {"ids": [[5, 6, 7], [10**9]]}}),
    ("POST", "/decode", {"json": {"ids": list(range(1000)), "skip_special_tokens": False}}),
    ("POST", "/v1/embeddings", {"json": {"input": [[15339, 1917], [14276, 109, 47653]]}}),
    ("POST", "/api/embed", {"json": {"model": "m", "input": ["深さ優先探索", "a"]}}),
    ("POST", "/api/embeddings", {"json": {"prompt": "深さ優先探索"}}),
    ("POST", "/api/show", {"json": {"model": "m"}}),
    ("GET", "/api/tags", {}),
    ("GET", "/api/version", {}),
    ("POST", "/v2/embed", {"json": {"texts": ["深さ", "a"], "embedding_types": ["int8", "ubinary", "base64"]}}),
    ("POST", "/vectors", {"data": '{"text": "深さ優先探索", "config": {"task_type": "query"}}'.encode()}),
    ("GET", "/meta", {}),
    ("POST", "/v1/models/{model}:predict", {"json": {"instances": ["深さ", {"content": "a"}]}}),
    ("POST", "/bigquery", {"json": {"calls": [["深さ優先探索"], [None]], "userDefinedContext": {"normalize": "true"}}}),
    ("GET", "/embed?q=ベルマンフォード", {}),
    ("GET", "/embed?q=a&normalize=true&dimensions=7&encoding_format=base64&prompt=query:%20", {}),
    ("GET", "/embed", {}),
    ("GET", "/nothing", {}),
    ("DELETE", "/embed", {}),
    ("POST", "/embed", {"json": {"texts": ["動的計画法", "グラフ理論", "深さ優先探索", "", "a " * 3000, "🙂\u0301é"]}}),
    ("POST", "/embed", {"json": {"texts": ["a", "b"], "normalize": True, "dimensions": 5, "prompt_name": "document"}}),
    ("POST", "/embed", {"json": {"texts": ["a"], "encoding_format": "base64"}}),
    ("POST", "/embed", {"json": {"texts": ["a " * 3000], "truncate": False}}),
    ("POST", "/embed", {"json": {"texts": ["a"], "prompt_name": "nobody"}}),
    ("POST", "/embed", {"json": {"texts": []}}),
    ("POST", "/embed", {"json": {"texts": ["a"] * 2049}}),
    ("POST", "/embed", {"data": b"{", "headers": {"Content-Type": "application/json"}}),
    ("POST", "/embed", {"data": b'{"texts": ["\xff"]}', "headers": {"Content-Type": "application/json"}}),
    ("POST", "/embed", {"data": b"texts=a"}),
    ("POST", "/embed", {"data": b" " * 9_000_000, "headers": {"Content-Type": "application/json"}}),
]


@pytest.mark.parametrize(("method", "path", "body"), REQUESTS, ids=lambda value: str(value)[:40])
def test_nothing_is_missing(served: Container, whole: Server, method: str, path: str, body: dict[str, Any]) -> None:
    """The image answers like a server with complete packages: status, headers and every bit of the body."""
    answers = [requests.request(method, f"{server.url}{path}", timeout=60, **body) for server in (served, whole)]
    assert answers[0].status_code == answers[1].status_code
    contents = [MEASURED.sub(b"", answer.content) for answer in answers]
    assert contents[0] == contents[1]
    # Assets have the files' times, and a JavaScript's type as the system names it; a measured number may be longer.
    if "/assets/" not in path and path not in ("/info", "/api/embed"):
        kept = [{name: "" if name in CHANGING else value for name, value in a.headers.items()} for a in answers]
        assert kept[0] == kept[1]


def test_the_same_series(served: Container, whole: Server) -> None:
    """/metrics has the same series as with complete packages."""
    series = [
        {line.rsplit(" ", 1)[0] for line in requests.get(f"{server.url}/metrics", timeout=60).text.splitlines()}
        for server in (served, whole)
    ]
    assert len(series[0]) > 500
    assert series[0] == series[1]


def test_every_route_is_among_them() -> None:
    """Every route is among the compared requests."""
    asked = {(method.lower(), path.split("?")[0]) for method, path, _ in [*REQUESTS, ("GET", "/metrics", {})]}
    assert asked >= {(method, path) for path, methods in openapi()["paths"].items() for method in methods}


def test_the_smoke_check_of_a_deployment(served: Container) -> None:
    """deploy/smoke.py passes on the image."""
    command = ["python3", "-c", (ROOT / "deploy/smoke.py").read_text(), served.url, "--allow-stand-in"]
    container.run(*command)


def test_the_bulk_command(served: Container) -> None:
    """`bulk` works in any folder that it may write to, with the image's model, and gives the server's numbers."""
    lines = json.dumps({"id": 7, "text": TEXT})
    script = f"cd /tmp && echo '{lines}' >texts.jsonl && bulk texts.jsonl vectors.jsonl --id id && cat vectors.jsonl"
    row = json.loads(container.run("sh", "-c", script))
    expected = requests.get(f"{served.url}/embed", params={"q": TEXT}, timeout=30).json()["vector"]
    assert row == {"id": 7, "vector": expected}
    parquet = container.run("sh", "-c", "cd /tmp && echo >t.jsonl && bulk t.jsonl v.parquet 2>&1; true").decode()
    assert "--build-arg PARQUET=yes" in parquet


def test_the_health_check(served: Container) -> None:
    """HEALTHCHECK passes on a ready server and fails without one."""
    kind, *check = container.config()["Healthcheck"]["Test"]
    assert kind == "CMD"
    container.run(*check, environ={"PORT": served.port})
    for port in (str(free_port()), "abc"):
        with pytest.raises(subprocess.CalledProcessError):
            container.run(*check, environ={"PORT": port})


def test_a_read_only_root_and_no_network() -> None:
    """The image works without a network or a home, with only /tmp and /dev/shm writable."""
    code = """
import os, subprocess, sys, tempfile, time, urllib.request
assert os.getuid() != 0
for folder in ("/", "/srv", "/srv/model", "/opt", "/var/tmp", os.path.expanduser("~")):
    try:
        tempfile.TemporaryFile(dir=folder).close()
        sys.exit(f"{folder} can be written to")
    except OSError:
        pass
server = subprocess.Popen(["gunicorn"])
for _ in range(200):
    try:
        print(urllib.request.urlopen(f"http://127.0.0.1:{os.environ['PORT']}/embed?q=a").status)
        break
    except OSError:
        time.sleep(0.05)
server.terminate()
sys.exit(server.wait())
"""
    assert container.run("python", "-c", code, network=False, environ={"PORT": str(free_port())}) == b"200\n"


def test_sigterm_loses_nothing() -> None:
    """A request in progress at SIGTERM is answered; the container exits with 0 within 8 seconds."""
    server = Container(CACHE_SIZE="0")
    server.wait_until_ready()
    start = time.monotonic()
    requests.post(f"{server.url}/embed", json={"texts": [TEXT] + [f"{n} {TEXT}" for n in range(49)]}, timeout=30)
    count = int(50 * 3 / (time.monotonic() - start))  # some three seconds of work
    texts = [f"{n} {TEXT}" for n in range(min(count, 2048))]
    answers: list[requests.Response] = []
    request = threading.Thread(
        target=lambda: answers.append(requests.post(f"{server.url}/embed", json={"texts": texts}, timeout=30))
    )
    request.start()
    time.sleep(0.5)
    assert not answers
    start = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    output = server.wait(30)
    request.join()
    assert [answer.status_code for answer in answers] == [200], output
    assert len(answers[0].json()["vectors"]) == len(texts)
    assert server.process.returncode == 0
    assert time.monotonic() - start < 8 + 2  # Gunicorn's grace, and what the engine needs to clear up


def test_sigterm_during_the_start() -> None:
    """SIGTERM during the start stops the container, although Gunicorn is its first process."""
    code = """
import os, signal, time
assert os.getpid() == 1
if os.fork() == 0:
    while not int(open("/proc/1/status").read().split("SigCgt:")[1].split()[0], 16) >> signal.SIGTERM - 1 & 1:
        time.sleep(0.005)  # until it has a handler
    os.kill(1, signal.SIGTERM)
    os._exit(0)
os.execvp("gunicorn", ["gunicorn"])
"""
    command = container.command("python", "-c", code, environ={"PORT": str(free_port())})
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=60)
    assert run.returncode == 0, run.stdout
    assert "Listening at" not in run.stdout


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"MODEL_PATH": "model_other.onnx"}, "Model file not found: model/model_other.onnx"),
        ({"TOKENIZER_PATH": "/nowhere"}, "Tokenizer file not found: /nowhere/"),
        ({"MAX_LENGTH": "many"}, "MAX_LENGTH is 'many'; it must be a whole number of at least 3, or model."),
    ],
)
def test_a_failed_start(environ: dict[str, str], message: str) -> None:
    """A failed start gives one line with the reason, no stack trace, and a non-zero exit code."""
    server = Container(**environ)
    output = server.output_of_failed_boot()
    assert message in output
    assert "Traceback" not in output
    assert server.process.returncode != 0


def test_the_port_is_from_the_environment(served: Container) -> None:
    """The server listens on PORT; the documented default is 8080."""
    assert f"PORT={served.port}" not in container.config()["Env"]
    assert "8080/tcp" in container.config()["ExposedPorts"]
    assert requests.get(f"http://127.0.0.1:{served.port}/health", timeout=10).ok
