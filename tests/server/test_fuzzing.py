"""Malformed bytes at a real server: whatever arrives, every answer is HTTP, and the server works on."""

import random
import socket
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.http import connect, parse_answers, read_all
from tests.support.load import HEALTH, good_clients
from tests.support.metrics import answered, wait_until_idle
from tests.support.server import Server, Start

CHUNKED = b"POST /embed HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def server(start: Start, tiny_model: Path) -> Server:
    return start(MODEL_DIR=tiny_model, MAX_LENGTH=64, CPUS=1).wait_until_ready()


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
INSERTED = [
    b"\r\n",
    b"\n",
    b"\r",
    b" ",
    b"\t",
    b":",
    b"\0",
    b"\xff",
    b";",
    b"%",
    b"?",
    b"/",
    b"HTTP/1.1",
    b"Host: b\r\n",
]
INSERTED += [b"Transfer-Encoding: chunked\r\n", b"Content-Length: 5\r\n", b"Expect: 100-continue\r\n", b" " * 5000]
INSERTED += [
    b"Connection: upgrade, close\r\n",
    b"f" * 9000,
    b"X: " + b"\t" * 3000 + b"\r\n",
    b"0\r\n\r\n",
    b"-1",
    b"\xc3",
]


def mutated(source: random.Random) -> bytes:
    """Return one request or several with some bytes changed, cut out or put in."""
    data = b"".join(source.choices(HEADS, k=source.choice([1, 1, 1, 2, 5])))
    for _ in range(source.randint(1, 6)):
        at = source.randrange(len(data))
        to = at + source.choice([0, 0, 1, 3, 20])
        data = data[:at] + source.choice([*INSERTED, bytes([source.randrange(256)]), b""]) + data[to:]
        data = data or b"\r"
    return data


def test_fuzzed_requests(server: Server) -> None:
    """3,000 mutated requests, sent whole or in pieces, all get an answer in HTTP, and none is a 5xx but 501."""
    workers, source = server.workers(), random.Random(7)
    before = answered(server)
    found: Counter[int] = Counter()
    with good_clients(server):
        for _ in range(3000):
            data = mutated(source)
            with connect(server) as connection:
                cut = source.randrange(len(data)) if source.random() < 0.3 else 0
                with suppress(OSError):  # the server may have closed already
                    connection.sendall(data[:cut])
                    connection.sendall(data[cut:])
                connection.shutdown(socket.SHUT_WR)
                received = read_all(connection).replace(b"HTTP/1.1 100 Continue\r\n\r\n", b"")
                found.update(answer.status for answer in parse_answers(received))
    assert server.workers() == workers
    assert found[200] > 100 and found[400] > 1000
    assert max(found) in (417, 431, 501), found
    wait_until_idle(server)
    more = answered(server) - before
    # answers to the good clients are among those with 200
    assert {status: count for status, count in more.items() if status not in ("200", "499")} == {
        str(status): count for status, count in found.items() if status != 200
    }
    assert "Traceback" not in server.output


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
def test_connection_handling(server: Server, request_bytes: bytes, expected: list[int]) -> None:
    """A missing Host, two Connection options, and a head that ends early are answered, closed and counted once."""
    before = answered(server)
    with connect(server) as connection:
        connection.sendall(request_bytes)
        connection.shutdown(socket.SHUT_WR)
        assert [answer.status for answer in parse_answers(read_all(connection))] == expected
    wait_until_idle(server)
    assert answered(server) - before == Counter(str(status) for status in expected)
