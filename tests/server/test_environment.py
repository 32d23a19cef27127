"""A real server whose surroundings fail: unread logs, few open files, full memory, changed model files."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
import requests

from tests.support import ROOT
from tests.support.http import connect, embed_request, read_answer, run_in_threads
from tests.support.load import PATIENCE, memory
from tests.support.metrics import answered
from tests.support.server import GUNICORN, ShellServer, Start


def test_a_log_that_nobody_reads(tiny_model: Path, tmp_path: Path) -> None:
    """10,000 refusals with long paths don't block on a full log, take little memory, and the lost lines are counted."""
    os.mkfifo(tmp_path / "log")
    log = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    server = ShellServer(f"exec {GUNICORN} > {tmp_path}/log 2>&1", tiny_model)
    try:
        server.wait_until_ready()
        before = memory(server)

        def send_unknown_paths(_: int) -> None:
            with connect(server) as connection:
                for _ in range(1250):
                    connection.sendall(embed_request(["x" * 10_000]).replace(b"/embed", b"/" + b"a" * 6000))
                    assert read_answer(connection).status == 404

        run_in_threads(8, send_unknown_paths)
        assert memory(server) < before + 60
        assert answered(server)["404"] == 10_000
        output: list[bytes] = []
        os.set_blocking(log, True)

        def read_log() -> None:
            with open(log, "rb") as lines:
                output.extend(lines)

        reader = threading.Thread(target=read_log)
        reader.start()
        until = time.monotonic() + 20
        while not any(b'"dropped"' in line for line in output) and time.monotonic() < until:
            requests.get(f"{server.url}/embed?q=cat", timeout=PATIENCE)
            time.sleep(0.2)
        server.stop()
        reader.join()
    finally:
        server.kill()
    dropped = sum(json.loads(line)["dropped"] for line in output if b'"dropped"' in line)
    # other lines, such as those of /metrics and /readyz, may be dropped, too
    assert 10_000 <= dropped + sum(b'"status":404' in line for line in output) < 10_010


@pytest.mark.parametrize("limit", [16, 28, 40, 64, 100])
def test_few_open_files(tiny_model: Path, limit: int) -> None:
    """With too few open files the server ends and says so in one line; otherwise new connections close idle ones."""
    server = ShellServer(f"ulimit -n {limit}; exec {GUNICORN}", tiny_model)
    try:
        if limit < 64:
            output = server.output_of_failed_boot()
            assert server.process.returncode in (1, 3)
            assert sum("ulimit -n" in line for line in output.splitlines()) == 1
        else:
            server.wait_until_ready()
            # the session's connection has sent something, so it is not the first to be closed
            with ExitStack() as stack, requests.Session() as session:
                for _ in range(5):
                    assert session.get(f"{server.url}/embed?q=cat", timeout=PATIENCE).ok
                    for _ in range(60):
                        stack.enter_context(connect(server))
            output = server.stop()
        assert "Traceback" not in output
    finally:
        server.kill()


# Makes a /dev/shm of this size, for this server alone.
SMALL_MEMORY = """
mount -t tmpfs -o size={size} none /dev/shm && {before} || exit 77
exec {gunicorn}
"""


@pytest.mark.parametrize(
    ("size", "before"),
    [("20m", "true"), ("20m", "(head -c 30m /dev/zero > /dev/shm/full; true)"), ("1m", "true"), ("1m,ro", "true")],
)
def test_no_room_in_shared_memory(tiny_model: Path, size: str, before: str) -> None:
    """With a full, small or read-only /dev/shm the server serves, at worst without metrics, also when workers die."""
    script = SMALL_MEMORY.format(size=size, before=before, gunicorn=GUNICORN)
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no namespace of our own for mounts")
    server = ShellServer(script, tiny_model, "unshare", "-m", WEB_CONCURRENCY="2")
    try:
        server.wait_until_ready()
        shared = Path(f"/proc/{server.process.pid}/root/dev/shm")
        with suppress(OSError), (shared / "more").open("wb", 0) as file:
            while file.write(b"x" * 4096):
                pass
        for _ in range(3):
            killed = server.workers()[0]
            os.kill(killed, signal.SIGKILL)
            until = time.monotonic() + 20
            while killed in server.workers() or len(server.workers()) < 2:
                assert time.monotonic() < until
                time.sleep(0.05)
            for _ in range(10):
                assert requests.get(f"{server.url}/embed?q=cat", timeout=PATIENCE).ok
        assert requests.get(f"{server.url}/metrics", timeout=PATIENCE).ok
        assert "SIGBUS" not in server.stop()
    finally:
        server.kill()


@pytest.mark.parametrize("how", ["in place", "replaced", "removed"])
def test_model_files_that_change(start: Start, tiny_model: Path, tmp_path: Path, how: str) -> None:
    """With a changed model file /readyz says so and texts get 503, until the file is put back."""
    model = shutil.copytree(tiny_model, tmp_path / "model")
    config = tmp_path / "config.py"
    config.write_text(
        f"exec(open({str(ROOT / 'gunicorn.conf.py')!r}).read())\n"
        "from app.server import worker\n"
        "worker.MODEL_CHECK_SECONDS = 0.2\n"
    )
    server = start(MODEL_DIR=model, MAX_LENGTH=64, GUNICORN_CMD_ARGS=f"--config {config}", CACHE_SIZE=0)
    server.wait_until_ready()
    url = f"{server.url}/embed?q=cat"
    expected = requests.get(url, timeout=PATIENCE).json()
    file = model / "model_int8.onnx"
    content = file.read_bytes()

    def wait_for(status: int) -> requests.Response:
        until = time.monotonic() + 20
        while (response := requests.get(f"{server.url}/readyz", timeout=PATIENCE)).status_code != status:
            assert time.monotonic() < until
            time.sleep(0.05)
        return response

    if how == "in place":
        file.write_bytes(bytes(len(content)))
    else:
        file.unlink()
        if how == "replaced":
            file.write_bytes(content[::-1])
    assert str(file) in wait_for(503).json()["reason"]
    refused = requests.get(url, timeout=PATIENCE)
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
    assert requests.get(f"{server.url}/health", timeout=PATIENCE).ok
    file.write_bytes(content)
    wait_for(200)
    assert requests.get(url, timeout=PATIENCE).json() == expected


@pytest.mark.skipif(not Path("/proc/net/if_inet6").is_file(), reason="this machine has no IPv6")
def test_addresses(start: Start, tiny_model: Path) -> None:
    """The server listens on IPv6 and IPv4, and logs each client's address as it is; HOST chooses one address."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64).wait_until_ready()
    for host in ("127.0.0.1", "[::1]"):
        assert requests.get(f"http://{host}:{server.port}/embed?q=cat", timeout=PATIENCE).ok
    lines = [json.loads(line) for line in server.stop().splitlines()]
    remotes = [line["httpRequest"]["remoteIp"] for line in lines if "q=cat" in str(line) or "/embed" in str(line)]
    assert remotes == ["127.0.0.1", "::1"]
    only = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, HOST="127.0.0.1").wait_until_ready()
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://[::1]:{only.port}/health", timeout=PATIENCE)
    other = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, HOST="[::1]")
    until = time.monotonic() + PATIENCE
    while True:
        try:
            assert requests.get(f"http://[::1]:{other.port}/health", timeout=PATIENCE).ok
            break
        except requests.ConnectionError:
            assert time.monotonic() < until
            time.sleep(0.1)


@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("192.0.2.1", "HOST is 192.0.2.1, which is no address of this machine."),
        ("nas.local", "HOST is 'nas.local'; it must be an IP address of this machine, like 127.0.0.1 or ::1."),
    ],
)
def test_a_wrong_address(start: Start, tiny_model: Path, host: str, message: str) -> None:
    """An address that is not this machine's stops the start with one line."""
    output = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, HOST=host).output_of_failed_boot()
    assert output.splitlines()[-1] == f"Error: {message}" and "Traceback" not in output


def test_variables_of_other_servers(start: Start, tiny_model: Path) -> None:
    """A variable of another server that has no effect is named at the start, with what to use instead."""
    variables = {"MAX_CLIENT_BATCH_SIZE": 32, "INFINITY_QUEUE_SIZE": 9, "THREADS": 4, "MODEL_ID": ""}
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, **variables).wait_until_ready()
    lines = [json.loads(line) for line in server.stop().splitlines()]
    assert [line["message"] for line in lines if line["severity"] == "WARNING"] == [
        "THREADS is set, which has no effect here: CPUS sets how many texts are computed at once.",
        "MAX_CLIENT_BATCH_SIZE is set, which has no effect here: MAX_TEXTS limits the texts of a request.",
        "INFINITY_QUEUE_SIZE is set, which has no effect here: MAX_QUEUE limits the requests that wait.",
    ]
