"""A real Gunicorn and clients that mean harm: hostile bytes, floods, unread answers, spoilt files, signals."""

import http.client
import json
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
import requests

from app.server.connection import MAX_HEAD_BYTES
from tests.server.test_load import answer, clients, connect, post
from tests.support import ROOT
from tests.support.server import VARIABLES, Server, free_port

Start = Callable[..., Server]
# Longest time that a good client may wait, seconds: generous, for a busy machine.
PATIENCE = 5
HEALTH = b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
LARGE_ANSWER = ["a"] * 2048


@pytest.fixture(scope="module")
def server(start: Start, tiny_model: Path) -> Server:
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1).wait_until_ready()


def samples(server: Server) -> dict[str, float]:
    """The series of GET /metrics."""
    text = requests.get(f"{server.url}/metrics", timeout=PATIENCE).text
    return {(words := line.rsplit(" ", 1))[0]: float(words[1]) for line in text.splitlines() if line[0] != "#"}


def counted(server: Server) -> Counter[str]:
    """Answered requests by status, but for those for /metrics itself."""
    found: Counter[str] = Counter()
    for name, value in samples(server).items():
        if name.startswith("embedding_requests_total{") and 'route="/metrics"' not in name:
            found[name.split('status="')[1][:3]] += int(value)
    return found


def wait_until_idle(server: Server) -> None:
    """Wait until nothing is in flight but the scrape that says so."""
    until = time.monotonic() + 30
    while samples(server)["embedding_in_flight_requests"] != 1:
        assert time.monotonic() < until, "requests stay in flight"
        time.sleep(0.1)


@contextmanager
def good_clients(server: Server) -> Iterator[None]:
    """Poll /health and embed a text until the block is left; each answer is right, and comes within PATIENCE."""
    expected = requests.post(f"{server.url}/embed", json={"texts": ["cat"]}, timeout=PATIENCE).json()

    def poll(ask: Callable[[requests.Session], None]) -> None:
        with requests.Session() as session:
            for _ in range(5):
                ask(session)
                time.sleep(0.02)

    def health(session: requests.Session) -> None:
        assert session.get(f"{server.url}/health", timeout=PATIENCE).json() == {"ok": True}

    def embed(session: requests.Session) -> None:
        response = session.post(f"{server.url}/embed", json={"texts": ["cat"]}, timeout=PATIENCE)
        assert response.json() == expected

    with clients(1, lambda: poll(health)), clients(1, lambda: poll(embed)):
        yield


def send(connection: socket.socket, data: bytes) -> None:
    """Send what the server takes; it may have closed already."""
    with suppress(OSError):
        connection.sendall(data)


def read_all(connection: socket.socket) -> bytes:
    received = b""
    with suppress(ConnectionError):
        while data := connection.recv(1 << 20):
            received += data
    return received


def statuses(received: bytes) -> list[int]:
    """The statuses of answers one after the other."""
    found = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        found.append(int(head.split()[1]))
        length = head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]
        received = received[int(length) :]
    return found


HEADS = [
    HEALTH,
    b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 18\r\n\r\n"
    b'{"texts": ["cat"]}',
    CHUNKED + b'7;a="b"\r\n{"texts\r\nb\r\n": ["cat"]}\r\n0\r\na: b\r\n\r\n',
    b"GET /embed?q=%E7%8C%AB&normalize=1 HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01\x00\xf4\x01\x00\x00\xf0\x03\x03" + bytes(range(200)),
    b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\n" + HEALTH,
    b"\x00\x0d\x0a\x51\x55\x49\x54\x0a" + HEALTH,
]
SPICES = [b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b"\0", b"\xff", b";", b"%", b"?", b"/", b"HTTP/1.1", b"Host: b\r\n"]
SPICES += [b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"Expect: 100-continue\r\n", b" " * 5000]
SPICES += [
    b"Connection: upgrade, close\r\n",
    b"f" * 9000,
    b"X: " + b"\t" * 3000 + b"\r\n",
    b"0\r\n\r\n",
    b"-1",
    b"\xc3",
]


def mutated(source: random.Random) -> bytes:
    """A request, or several, with some bytes changed, cut out or put in."""
    data = b"".join(source.choices(HEADS, k=source.choice([1, 1, 1, 2, 5])))
    for _ in range(source.randint(1, 6)):
        at = source.randrange(len(data))
        to = at + source.choice([0, 0, 1, 3, 20])
        data = data[:at] + source.choice([*SPICES, bytes([source.randrange(256)]), b""]) + data[to:]
        data = data or b"\r"
    return data


def test_fuzzed_requests(server: Server) -> None:
    """3,000 of them, whole or cut, at once or in pieces: every answer is HTTP, none is a fault of the server's."""
    workers, source = server.workers(), random.Random(7)
    before = counted(server)
    found: Counter[int] = Counter()
    with good_clients(server):
        for _ in range(3000):
            data = mutated(source)
            with connect(server) as connection:
                cut = source.randrange(len(data)) if source.random() < 0.3 else 0
                send(connection, data[:cut])
                send(connection, data[cut:])
                connection.shutdown(socket.SHUT_WR)
                received = read_all(connection).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
                found.update(statuses(received))
    assert server.workers() == workers
    assert found[200] > 100 and found[400] > 1000
    assert max(found) in (417, 431, 501), found
    wait_until_idle(server)
    more = counted(server) - before
    # the good clients' are among those with 200; whoever reads no answer gets none counted twice
    assert {status: count for status, count in more.items() if status not in ("200", "499")} == {
        str(status): count for status, count in found.items() if status != 200
    }
    assert "Traceback" not in server.output


def drip(data: bytes, bytes_at_once: int = 1) -> Callable[[socket.socket], None]:
    """Send data in packets of a byte, thousands a second."""

    def run(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(data), bytes_at_once):
            connection.sendall(data[start : start + bytes_at_once])
            time.sleep(0.0002)

    return run


def flood(data: bytes) -> Callable[[socket.socket], None]:
    return lambda connection: connection.sendall(data)


TRAILER = b"a: " + b"b" * 8000 + b"\r\n"
BLANKS = b"a: " + b" " * 7900 + b"\r\n"
DIGITS = b"".join(b"1\r\n%d\r\n" % (n % 10) for n in range(100_000))
SLOW_TO_READ = {
    "a head byte by byte": drip(HEALTH[:-2] + b"a: " + b" " * 8000),
    "headers of spaces, without an end": drip(HEALTH[:-2] + BLANKS * 7 + b" " * 8000),
    "a head that is too long": flood(HEALTH[:-2] + b"a: b\r\n" * (MAX_HEAD_BYTES // 6 + 1)),
    "a body byte by byte": drip(post([], length=60_000) + b" " * 8000),
    "trailers without an end": drip(CHUNKED + b"1\r\n[\r\n0\r\n" + TRAILER * 99, 8000),
    "a trailer byte by byte": drip(CHUNKED + b"1\r\n[\r\n0\r\n" + TRAILER),
    "a chunk extension without an end": drip(CHUNKED + b"1;a=" + b'"' + b"\\a" * 4000),
    "a chunk size without an end": flood(CHUNKED + b"0" * 100_000),
    "chunks of one byte": flood(CHUNKED + b"1\r\n[\r\n" + DIGITS),
    "a pipeline": flood(HEALTH * 3000),
    "more than its length allows": flood(post([], length=10**11) + b" " * 20_000_000),
}


@pytest.mark.parametrize("case", SLOW_TO_READ)
def test_what_is_slow_to_read(server: Server, case: str) -> None:
    """10 clients at once keep nobody from being served, and nothing of them stays."""

    def client() -> None:
        with connect(server) as connection, suppress(OSError):
            reader = threading.Thread(target=read_all, args=(connection,))
            reader.start()
            with suppress(OSError):
                SLOW_TO_READ[case](connection)
            connection.shutdown(socket.SHUT_RDWR)
            reader.join()

    with good_clients(server):
        threads = [threading.Thread(target=client) for _ in range(10)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    wait_until_idle(server)


def test_a_pipeline_holds_up_nobody(server: Server) -> None:
    """Another client is answered before all of 20,000 requests that were sent in one go."""
    received: list[bytes] = []
    with connect(server) as pipeline, connect(server) as other:
        reader = threading.Thread(target=lambda: received.append(read_all(pipeline)))
        reader.start()
        pipeline.sendall(HEALTH * 20_000)
        for _ in range(10):
            other.sendall(HEALTH)
            assert answer(other)[0] == 200
        assert not received
        pipeline.shutdown(socket.SHUT_WR)
        reader.join()
    assert statuses(received[0]) == [200] * 20_000


def test_too_many_connections(start: Start, tiny_model: Path) -> None:
    """Those go first that never sent a byte, then idle ones, half heads, half bodies; none that is served."""
    config = ROOT / "gunicorn.conf.py"
    server = start(
        MODEL_DIR=tiny_model,
        MAX_LENGTH=64,
        CPUS=1,
        MAX_TEXTS=50_000,
        REQUEST_DEADLINE=600,
        GUNICORN_CMD_ARGS=f"--config {config} --worker-connections 43",
    ).wait_until_ready()

    def closed(connections: list[socket.socket]) -> int:
        count = 0
        for connection in connections:
            connection.settimeout(0)
            with suppress(BlockingIOError):
                try:
                    count += not connection.recv(1, socket.MSG_PEEK)
                except ConnectionError:
                    count += 1
        return count

    with ExitStack() as stack:
        kinds: dict[str, list[socket.socket]] = {}
        for kind, data in {
            "served": post([f"{n}" for n in range(30_000)]),
            "body": post([], length=99),
            "head": HEALTH[:20],
            "idle": HEALTH,
            "new": b"",
        }.items():
            kinds[kind] = [stack.enter_context(connect(server)) for _ in range(3 if kind == "served" else 10)]
            for connection in kinds[kind]:
                connection.sendall(data)
                if kind == "idle":
                    assert answer(connection)[0] == 200
        time.sleep(1)
        order = ["new", "idle", "head", "body"]
        for going, kind in enumerate(order):
            for _ in range(10):
                # a half body at once, so that it is not the next to go
                connection = stack.enter_context(connect(server))
                connection.sendall(post([], length=99))
                time.sleep(0.05)
            until = time.monotonic() + 10
            while closed(kinds[kind]) < 10 and time.monotonic() < until:
                time.sleep(0.05)
            gone = {name: closed(connections) for name, connections in kinds.items()}
            assert gone == {name: 10 * (name in order[: going + 1]) for name in kinds}
        for connection in kinds["served"]:
            connection.settimeout(60)
            status, _, content = answer(connection)
            assert (status, content.get("count")) == (200, 30_000), content
    wait_until_idle(server)
    assert "Traceback" not in server.output


def test_thousands_of_connections(server: Server) -> None:
    """Idle ones beyond all limits, half heads and dripping bodies: good clients are served, and all are let go."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    idle = min(4000, hard - 1500)
    before = counted(server)
    with ExitStack() as stack, good_clients(server):
        heads = [stack.enter_context(connect(server)) for _ in range(500)]
        for connection in heads:
            connection.sendall(HEALTH[:-9])
        bodies = [stack.enter_context(connect(server)) for _ in range(200)]
        for connection in bodies:
            connection.sendall(post(["cat"])[:-9])
        for number in range(idle):
            stack.enter_context(
                socket.create_connection(("127.0.0.1", int(server.port)), 30, (f"127.0.0.{2 + number % 8}", 0))
            )
        for connection in [*heads, *bodies]:
            connection.sendall((HEALTH if connection in heads else post(["cat"]))[-9:])
            assert answer(connection)[0] == 200
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    wait_until_idle(server)
    assert set(counted(server) - before) <= {"200"}


def memory(server: Server) -> float:
    """Memory of all processes, MB; what they share is counted once."""
    total = 0
    for pid in [server.process.pid, *server.workers()]:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


ASSET = b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: a\r\n\r\n"
NEVER_READ = {
    "equal texts": post(LARGE_ANSWER),
    "cached texts": post([str(n) for n in range(2048)]),
    "tokens": post(["a b " * 25_000]).replace(b"/embed", b"/tokenize").replace(b'"texts": ', b'"inputs":'),
    "assets": ASSET * 8,
}


@pytest.mark.parametrize("case", NEVER_READ)
def test_answers_that_nobody_reads(server: Server, case: str) -> None:
    """100 of them cost no answer's memory each, and nobody's time; who reads slowly gets all of it."""
    with connect(server) as first:  # whose texts are in the cache from now on
        first.sendall(NEVER_READ[case])
        http.client.HTTPResponse(first).begin()
    before = memory(server)
    with ExitStack() as stack, good_clients(server):
        for _ in range(100):
            connection = stack.enter_context(connect(server))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(NEVER_READ[case])
        with connect(server) as honest:
            honest.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            honest.sendall(post(LARGE_ANSWER, head="Connection: close\r\n"))
            received = b""
            while data := honest.recv(20_000):
                received += data
                time.sleep(0.02)
        assert statuses(received) == [200]
        assert memory(server) < before + 200
    wait_until_idle(server)


GUNICORN = str(Path(sys.executable).parent / "gunicorn")


class Shell(Server):
    """A server that a shell starts, in what it prepares."""

    def __init__(self, script: str, model: Path, *before: str, **environ: str) -> None:
        self.port = str(free_port())
        clean = {name: value for name, value in os.environ.items() if name.upper() not in VARIABLES}
        environ |= {"PORT": self.port, "MODEL_DIR": str(model), "MAX_LENGTH": "64"}
        self.run([*before, "bash", "-c", script], {**clean, **environ})


def test_a_log_that_nobody_reads(tiny_model: Path, tmp_path: Path) -> None:
    """10,000 refusals with long paths wait for nobody, take little memory, and the lost lines are counted."""
    os.mkfifo(tmp_path / "log")
    log = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK)
    server = Shell(f"exec {GUNICORN} > {tmp_path}/log 2>&1", tiny_model)
    try:
        server.wait_until_ready()
        before = memory(server)

        def refused() -> None:
            with connect(server) as connection:
                for _ in range(1250):
                    connection.sendall(post(["x" * 10_000]).replace(b"/embed", b"/" + b"a" * 6000))
                    assert answer(connection)[0] == 404

        threads = [threading.Thread(target=refused) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert memory(server) < before + 60
        assert counted(server)["404"] == 10_000
        output: list[bytes] = []
        os.set_blocking(log, True)

        def read() -> None:
            with open(log, "rb") as lines:
                output.extend(lines)

        reader = threading.Thread(target=read)
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
    # what is dropped may also be other lines, such as those of /metrics and /readyz
    assert 10_000 <= dropped + sum(b'"status":404' in line for line in output) < 10_010


@pytest.mark.parametrize("limit", [16, 28, 40, 64, 100])
def test_few_open_files(tiny_model: Path, limit: int) -> None:
    """With too few it ends and one line says so; otherwise connections over the limit close idle ones."""
    server = Shell(f"ulimit -n {limit}; exec {GUNICORN}", tiny_model)
    try:
        if limit < 64:
            output = server.output_of_failed_boot()
            assert server.process.returncode in (1, 3)
            assert sum("ulimit -n" in line for line in output.splitlines()) == 1
        else:
            server.wait_until_ready()
            # Its connection has sent something, and so is not the next to go.
            with ExitStack() as stack, requests.Session() as session:
                for _ in range(5):
                    assert session.get(f"{server.url}/embed?q=cat", timeout=PATIENCE).ok
                    for _ in range(60):
                        stack.enter_context(connect(server))
            output = server.stop()
        assert "Traceback" not in output
    finally:
        server.kill()


SPOIL = """
mount -t tmpfs -o size={size} none /dev/shm && {before} || exit 77
exec {gunicorn}
"""


@pytest.mark.parametrize(
    ("size", "before"),
    [("20m", "true"), ("20m", "(head -c 30m /dev/zero > /dev/shm/full; true)"), ("1m", "true"), ("1m,ro", "true")],
)
def test_no_room_in_shared_memory(tiny_model: Path, size: str, before: str) -> None:
    """Full, small or read-only at the start, or filled later and workers die: it serves, at worst without metrics."""
    script = SPOIL.format(size=size, before=before, gunicorn=GUNICORN)
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no namespace of our own for mounts")
    server = Shell(script, tiny_model, "unshare", "-m", WEB_CONCURRENCY="2")
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
    """/readyz says so, texts get 503 and no wrong vector, and the file put back heals it."""
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


@pytest.mark.parametrize(
    ("request_bytes", "expected"),
    [
        (b"GET /health HTTP/1.1\r\nAccept: */*\r\n\r\n", [400]),
        (HEALTH[:-2] + b"Connection: close, keep-alive\r\n\r\n" + HEALTH, [200]),
        (HEALTH[:-2] + b"Connection: keep-alive\r\nConnection: TE, close\r\n\r\n" + HEALTH, [200]),
        (HEALTH[:20], [400]),
        (HEALTH + HEALTH[:-2], [200, 400]),
        (b"\r\n" + HEALTH, [200]),
        (b"", []),
    ],
)
def test_small_print_of_http(server: Server, request_bytes: bytes, expected: list[int]) -> None:
    """No Host, two wishes for the connection, a head that ends too early: answered, closed and counted once."""
    before = counted(server)
    with connect(server) as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        assert statuses(read_all(connection)) == expected
    wait_until_idle(server)
    assert counted(server) - before == Counter(str(status) for status in expected)


def test_a_path_that_reverses_what_is_shown(start: Start, tiny_model: Path) -> None:
    """Characters that change a line's direction are escaped in the text log."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, LOG_FORMAT="text").wait_until_ready()
    for character in "\u202e\u2067\u200f\u061c":
        assert requests.get(f"{server.url}/a{character}b", timeout=PATIENCE).status_code == 404
    output = server.stop()
    assert not set("\u202e\u2067\u200f\u061c") & set(output)
    assert "/a\\u202eb 404" in output


def test_the_end_with_everything_open(start: Start, tiny_model: Path) -> None:
    """SIGTERM beside idle connections, halves, and 500 requests in the queue: all are answered, within 8 seconds."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1, CACHE_SIZE=0).wait_until_ready()
    with ExitStack() as stack:
        idle, heads, bodies, queued = (
            [stack.enter_context(connect(server)) for _ in range(count)] for count in (100, 100, 100, 500)
        )
        for connection in idle:
            connection.sendall(HEALTH)
            assert answer(connection)[0] == 200
        for connection in heads:
            connection.sendall(HEALTH[:-9])
        for connection in bodies:
            connection.sendall(post(["cat"])[:-9])
        for number, connection in enumerate(queued):
            connection.sendall(post([f"{number} {n}" for n in range(50)]))
        time.sleep(0.5)
        began = time.monotonic()
        server.process.terminate()
        found = Counter(answer(connection)[0] for connection in queued)
        assert set(found) <= {200, 503}, found
        assert {answer(connection)[0] for connection in bodies} <= {400, 503}
        for connection in idle:
            assert connection.recv(1) == b""
        output = server.wait(30)
        assert time.monotonic() - began < 8
    assert server.process.returncode == 0
    assert "Traceback" not in output and "SIGABRT" not in output


@pytest.mark.parametrize("number", ["SIGHUP", "SIGTTIN", "SIGTTOU", "SIGSTOP"])
def test_signals_under_load(start: Start, tiny_model: Path, number: str) -> None:
    """A reload, a worker more or less, and a pause lose no request."""
    server = start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=2, WEB_CONCURRENCY=2).wait_until_ready()
    ended = threading.Event()
    answered: Counter[int] = Counter()
    lost: list[Exception] = []

    def client() -> None:
        while not ended.is_set():
            try:
                with connect(server) as connection:
                    connection.sendall(post([str(n) for n in range(50)], head="Connection: close\r\n"))
                    answered[answer(connection)[0]] += 1
            except Exception as error:
                lost.append(error)

    threads = [threading.Thread(target=client) for _ in range(8)]
    for thread in threads:
        thread.start()
    for _ in range(3):
        time.sleep(0.5)
        if number == "SIGSTOP":
            worker = server.workers()[0]
            os.kill(worker, signal.SIGSTOP)
            time.sleep(1)
            os.kill(worker, signal.SIGCONT)
        else:
            os.kill(server.process.pid, signal.Signals[number])
    time.sleep(2)
    ended.set()
    for thread in threads:
        thread.join()
    assert (lost, set(answered)) == ([], {200})
    output = server.stop()
    assert server.process.returncode == 0 and "Traceback" not in output
