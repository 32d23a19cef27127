"""KServe's own client, in an environment of its own, against a real server."""

from tests import clients
from tests.clients.common import TEXTS, check_vectors, native
from tests.support.server import Server


def test_kserve(server: Server, installed: None) -> None:
    """InferenceRESTClient finds server and model alive, and gets the bits of POST /embed, one text or many."""
    answer = clients.python(client="kserve", options={"url": server.url, "model": "tiny"}, texts=TEXTS)
    check_vectors(answer, native(server, TEXTS))


def test_an_error_of_kserve(server: Server, installed: None) -> None:
    """The client shows the sentence of an error."""
    answer = clients.python(client="kserve", options={"url": server.url, "model": "tiny"}, texts=["a"] * 9)
    assert answer["error"] == "HTTPStatusError"
    assert answer["message"].startswith("instances has 9 items, over the limit of 8 (MAX_TEXTS)"), answer
