"""A real Gunicorn with gunicorn.conf.py: boot, boot failures, fork, kill, SIGTERM, hostile requests."""

import json
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import requests
from onnx import TensorProto, helper

from app.engine.model_folder import sha256
from tests.support.server import Server

Start = Callable[..., Server]


@pytest.fixture(scope="module")
def server(start: Start, tiny_model: Path) -> Server:
    """Two workers on the tiny model."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, WEB_CONCURRENCY=2, MAX_BODY_BYTES=100_000).wait_until_ready()
    while len(server.workers()) < 2:
        time.sleep(0.01)
    return server


def raw(server: Server, data: bytes) -> bytes:
    """Send bytes, read until the server closes."""
    with socket.create_connection(("127.0.0.1", int(server.port)), timeout=10) as connection:
        connection.sendall(data)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    return answer


def test_gunicorn_alone_serves(server: Server) -> None:
    """`gunicorn` without arguments answers, with the same bits from each of its workers."""
    assert len(server.workers()) == 2
    answers = {requests.get(f"{server.url}/embed?q=cat", timeout=10).text for _ in range(20)}
    assert len(answers) == 1


def test_utf8_in_the_url_as_curl_sends_it(server: Server) -> None:
    """curl 'host/embed?q=東京' sends UTF-8 without percent signs."""
    answer = raw(server, "GET /embed?q=東京 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n".encode())
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["text"] == "東京"


@pytest.mark.parametrize(
    ("request_bytes", "status", "code"),
    [
        (b"nonsense\r\n\r\n", 400, "bad_request"),
        (b"GET /embed?q=\x01 HTTP/1.1\r\n\r\n", 400, "bad_request"),
        (b"GET /embed?q=" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n", 414, "request_uri_too_long"),
        (b"GET / HTTP/1.1\r\nA: " + b"a" * 9000 + b"\r\n\r\n", 431, "request_header_fields_too_large"),
        (b"GET / HTTP/9.9\r\n\r\n", 400, "bad_request"),
        (b"POST /embed HTTP/1.1\r\nContent-Length: x\r\n\r\n", 400, "bad_request"),
    ],
)
def test_what_is_not_http_gets_json_too(server: Server, request_bytes: bytes, status: int, code: str) -> None:
    """Gunicorn's own refusals have the one error shape, and the next request works."""
    head, body = raw(server, request_bytes).split(b"\r\n\r\n", 1)
    assert head.startswith(b"HTTP/1.1 %d " % status)
    assert b"Content-Type: application/json" in head
    assert json.loads(body)["error"]["code"] == code
    assert requests.get(f"{server.url}/health", timeout=10).ok


def test_a_chunked_body_over_the_limit(server: Server) -> None:
    """413 without a Content-Length to warn, and the next request works."""

    def chunks() -> Any:
        for _ in range(200):
            yield b" " * 1000

    answer = requests.post(
        f"{server.url}/embed", data=chunks(), headers={"Content-Type": "application/json"}, timeout=10
    )
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_entity_too_large")
    assert requests.get(f"{server.url}/health", timeout=10).ok


def test_clients_that_hang_up(server: Server) -> None:
    """Half a request, or an answer not read, harms no worker."""
    workers = server.workers()
    body = json.dumps({"texts": ["cat"] * 500}).encode()
    head = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    for data in (head + body[:100], head + body):
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", int(server.port))) as connection:
                connection.sendall(data)
    assert requests.get(f"{server.url}/embed?q=cat", timeout=30).ok
    assert server.workers() == workers


@pytest.mark.parametrize(
    ("head", "body", "status", "message"),
    [
        (b"Content-Length: 100", b'{"texts": ["cat"]}', 400, "The body ends after 18 of 100 bytes (Content-Length)."),
        (b"Transfer-Encoding: chunked", b"ZZZ\r\n\r\n", 400, "The body cannot be read: "),
        (b"Transfer-Encoding: chunked", b"3\r\nabcXX\r\n\r\n", 400, "The body cannot be read: "),
    ],
)
def test_a_body_that_is_not_what_its_head_says(
    server: Server, head: bytes, body: bytes, status: int, message: str
) -> None:
    """A body cut short or wrongly chunked is refused, never taken for the whole."""
    request = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n" + head + b"\r\n\r\n" + body
    with socket.create_connection(("127.0.0.1", int(server.port)), timeout=10) as connection:
        connection.sendall(request)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["error"]["message"].startswith(message)


def test_slow_clients_do_not_hold_threads_for_ever(start: Start, tiny_model: Path) -> None:
    """Clients stop in the middle of a request: the server lets go of them and answers others."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64).wait_until_ready()
    slow = [socket.create_connection(("127.0.0.1", int(server.port)), timeout=60) for _ in range(3)]
    for connection in slow:
        connection.sendall(b"GET /health HTTP/1.1\r\nX")
    assert requests.get(f"{server.url}/health", timeout=60).ok
    for connection in slow:
        connection.close()


def test_a_killed_worker_is_replaced_and_serves(server: Server) -> None:
    """kill -9 of every worker: new ones come, ready, with the same vectors."""
    before = requests.get(f"{server.url}/embed?q=cat", timeout=10).text
    killed = server.workers()
    for pid in killed:
        os.kill(pid, signal.SIGKILL)
    while set(server.workers()) & set(killed) or len(server.workers()) < 2:
        time.sleep(0.01)
    assert server.wait_until_ready()
    assert requests.get(f"{server.url}/embed?q=cat", timeout=10).text == before


def test_many_clients_at_once(server: Server) -> None:
    """Batches and single texts, from 16 clients: every answer is right."""
    expected = requests.get(f"{server.url}/embed?q=cat", timeout=10).json()["vector"]
    wrong: list[Any] = []

    def client(number: int) -> None:
        with requests.Session() as session:
            for i in range(10):
                texts = ["cat"] + [f"{number} {i} {j}" for j in range(number)]
                answer = session.post(f"{server.url}/embed", json={"texts": texts}, timeout=30).json()
                if answer["vectors"][0] != expected or answer["count"] != len(texts):
                    wrong.append(answer)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_sigterm_finishes_what_was_begun(start: Start, tiny_model: Path) -> None:
    """A request under way is answered, kept-alive connections get 503 from /readyz, the exit code is 0."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, WEB_CONCURRENCY=1).wait_until_ready()
    with requests.Session() as session, socket.create_connection(("127.0.0.1", int(server.port))) as slow:
        assert session.get(f"{server.url}/readyz", timeout=10).ok
        body = b'{"texts": ["cat"]}'
        slow.sendall(
            b"POST /embed HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % len(body)
        )
        time.sleep(0.3)  # the worker has the head and waits for the body
        server.process.terminate()
        while (answer := session.get(f"{server.url}/readyz", timeout=10)).ok:
            pass  # the signal is on its way
        assert answer.json() == {"ok": False, "reason": "The server is shutting down."}
        slow.sendall(body)
        received = b""
        while chunk := slow.recv(65536):
            received += chunk
    assert received.startswith(b"HTTP/1.1 200 OK")
    output = server.wait(10)
    assert server.process.returncode == 0, output
    assert "SIGABRT" not in output and "Traceback" not in output


def boot_failure(server: Server) -> str:
    """The one line that says why; the rest of Gunicorn's output must not be a stack trace."""
    output = server.output_of_failed_boot()
    assert server.process.returncode not in (0, None)
    assert "Traceback" not in output
    assert output.count("Booting worker") <= 1, "a crash loop"
    reasons = [line for line in output.splitlines() if "Error: " in line or '"CRITICAL"' in line]
    assert len(reasons) == 1, output
    return reasons[0]


def test_no_model_folder(start: Start, tmp_path: Path) -> None:
    """It says `make model`."""
    reason = boot_failure(start(MODEL_DIR=tmp_path / "none"))
    assert reason == f"Error: Model folder not found: {tmp_path}/none – run `make model` (or set MODEL_DIR)."


@pytest.fixture
def copy(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder to damage."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def test_no_tokenizer(start: Start, copy: Path) -> None:
    """It names the file."""
    shutil.rmtree(copy / "tokenizer")
    reason = boot_failure(start(MODEL_DIR=copy, MAX_LENGTH=64))
    assert reason.startswith(f"Error: Tokenizer file not found: {copy}/tokenizer/tokenizer.json – run `make model`")


def test_no_manifest(start: Start, copy: Path) -> None:
    """A folder without a seal is not served."""
    (copy / "manifest.json").unlink()
    reason = boot_failure(start(MODEL_DIR=copy))
    assert reason.startswith(f"Error: {copy}/manifest.json not found: the model folder is not complete")


@pytest.mark.parametrize("name", ["model_int8.onnx", "tokenizer/tokenizer.json"])
def test_another_file_than_the_manifests(start: Start, copy: Path, name: str) -> None:
    """One more byte in a file is found by its hash."""
    with (copy / name).open("ab") as file:
        file.write(b" ")
    reason = boot_failure(start(MODEL_DIR=copy))
    assert reason.startswith(f"Error: {copy / name} is not the file of its manifest.json (sha256 ")


def test_a_broken_manifest(start: Start, copy: Path) -> None:
    """Half a manifest is one clear line, too."""
    (copy / "manifest.json").write_text((copy / "manifest.json").read_text()[:100])
    assert f"Error: {copy}/manifest.json cannot be read" in boot_failure(start(MODEL_DIR=copy))


@pytest.mark.parametrize(
    "change",
    [{"max_positions": None}, {"default_prompt_name": "nope"}, {"golden": None}, {"format": 99}, {"files": None}],
)
def test_a_manifest_that_makes_no_sense(start: Start, copy: Path, change: dict[str, Any]) -> None:
    """A field of the wrong kind is found at the start, not by the first request."""
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | change))
    assert f"Error: {copy}/manifest.json " in boot_failure(start(MODEL_DIR=copy, MAX_LENGTH=64))


def test_a_model_replaced_under_a_running_server(start: Start, copy: Path) -> None:
    """A new worker does not serve another file than the others: the server ends and says why."""
    server = start(MODEL_DIR=copy, MAX_LENGTH=64, WEB_CONCURRENCY=1).wait_until_ready()
    other = copy / "other"
    other.write_bytes((copy / "model_int8.onnx").read_bytes() + b" ")
    other.replace(copy / "model_int8.onnx")
    os.kill(server.workers()[0], signal.SIGKILL)
    assert f"{copy}/model_int8.onnx is not the file of its manifest.json" in server.output_of_failed_boot()
    assert server.process.returncode == 3


def test_a_model_path_that_the_manifest_does_not_know(start: Start, copy: Path) -> None:
    """It lists the ones that it knows."""
    shutil.copy(copy / "model_int8.onnx", copy / "mine.onnx")
    reason = boot_failure(start(MODEL_DIR=copy, MODEL_PATH="mine.onnx"))
    assert "does not know mine.onnx, only model_fp32.onnx, model_int8.onnx" in reason


def test_a_manifest_of_another_dimension(start: Start, copy: Path) -> None:
    """A model whose output is not what the manifest says stops the server."""
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["golden"]["vectors"] = dict.fromkeys(manifest["golden"]["vectors"], [1.0] * 384)
    (copy / "manifest.json").write_text(json.dumps(manifest | {"dimension": 384}))
    assert "needed is input_ids (seq,) int64 in, embedding (384,) float32 out" in boot_failure(
        start(MODEL_DIR=copy, MAX_LENGTH=64)
    )


def test_a_model_with_other_inputs(start: Start, copy: Path) -> None:
    """An ordinary batched export under the right name and hash is not taken."""
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "seq"])
    out = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, ["batch", "seq"])
    node = helper.make_node("Cast", ["input_ids"], ["embedding"], to=TensorProto.FLOAT)
    model = helper.make_model(helper.make_graph([node], "g", [ids], [out]), opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 8
    onnx.save(model, copy / "model_int8.onnx")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["model_int8.onnx"] = sha256(copy / "model_int8.onnx")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "takes [('input_ids', 'tensor(int64)', 2)]" in boot_failure(start(MODEL_DIR=copy, MAX_LENGTH=64))


def test_a_malformed_variable(start: Start) -> None:
    """It names the variable and the value."""
    reason = boot_failure(start(MAX_LENGTH="long"))
    assert reason == "Error: MAX_LENGTH is 'long'; it must be a whole number of at least 3."


def test_a_max_length_over_the_model(start: Start, tiny_model: Path) -> None:
    """More tokens than the model has positions for."""
    reason = boot_failure(start(MODEL_DIR=tiny_model, MAX_LENGTH="512"))
    assert reason == "Error: MAX_LENGTH is 512, over the model's 128 positions; set it to 128 or less."


def test_a_busy_port(start: Start, tiny_model: Path, server: Server) -> None:
    """It names the port and what to do."""
    reason = boot_failure(start(MODEL_DIR=tiny_model, MAX_LENGTH=64, PORT=server.port))
    assert reason == f"Error: Port {server.port} cannot be used (Address already in use): set PORT to a free one."
