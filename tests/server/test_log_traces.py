"""The log joins the trace of the client or of Google's front end."""

import pytest

from tests.support.http import ask
from tests.support.log import SPAN, TRACE, get_request, line_of
from tests.support.server import Server, Start

PROJECT = "my-project"


@pytest.fixture(scope="module")
def server(shared_server: Start) -> Server:
    """A server that knows its project."""
    return shared_server(GOOGLE_CLOUD_PROJECT=PROJECT)


@pytest.fixture(scope="module")
def no_project(shared_server: Start) -> Server:
    return shared_server()


TRACES = {
    "W3C": (f"traceparent: 00-{TRACE}-{SPAN}-01", SPAN),
    "W3C of later": (f"traceparent: 01-{TRACE}-{SPAN}-01-more", SPAN),
    "Google": (f"X-Cloud-Trace-Context: {TRACE}/2;o=1", "0000000000000002"),
    "Google's largest": (f"X-Cloud-Trace-Context: {TRACE}/{2**64 - 1}", "f" * 16),
    "both": (f"traceparent: 00-{TRACE}-{SPAN}-01\r\nX-Cloud-Trace-Context: {'a' * 32}/2", SPAN),
    "one is wrong": (f"traceparent: 00-{TRACE}-01\r\nX-Cloud-Trace-Context: {TRACE}/2", "0000000000000002"),
}
NO_TRACES = ["traceparent: x", f"traceparent: 00-{'g' * 32}-{SPAN}-01", f"X-Cloud-Trace-Context: {TRACE}x/2;o=1"]
NO_TRACES += ["X-Cloud-Trace-Context: ", f'X-Cloud-Trace-Context: "{TRACE}"', "traceparent: " + "0" * 5000]


@pytest.mark.parametrize("case", TRACES)
def test_a_trace(server: Server, no_project: Server, case: str) -> None:
    """Trace and span are those of the header, with the project's name where it is known."""
    headers, span = TRACES[case]
    for asked, trace in ((server, f"projects/{PROJECT}/traces/{TRACE}"), (no_project, TRACE)):
        line = line_of(asked, ask(asked, get_request("/embed?q=cat", f"{headers}\r\n")).headers["x-request-id"])
        assert line["logging.googleapis.com/trace"] == trace
        assert line["logging.googleapis.com/spanId"] == span


@pytest.mark.parametrize("header", NO_TRACES)
def test_a_malformed_trace(server: Server, header: str) -> None:
    """A malformed trace header has no effect."""
    answer = ask(server, get_request("/info", f"{header}\r\n"), is_last=True)
    assert answer.status == 200
    assert not [name for name in line_of(server, answer.headers["x-request-id"]) if name.startswith("logging.")]


@pytest.mark.parametrize(
    ("header", "trace", "span"),
    [
        (f"traceparent: 00-{'0' * 32}-{SPAN}-01", None, None),
        (f"traceparent: ff-{TRACE}-{SPAN}-01", None, None),
        (f"traceparent: 00-{TRACE}-{'0' * 16}-01", None, None),
        (f"traceparent: 00-{TRACE}-{SPAN}-01more", None, None),
        (f"X-Cloud-Trace-Context: {TRACE}", TRACE, None),
        (f"X-Cloud-Trace-Context: {TRACE}/0", TRACE, None),
        (f"X-Cloud-Trace-Context: {TRACE}/{2**64}", TRACE, None),
        (f"X-Cloud-Trace-Context: {TRACE.upper()}/2", TRACE, "0000000000000002"),
    ],
)
def test_impossible_traces_and_spans(no_project: Server, header: str, trace: str | None, span: str | None) -> None:
    """Zeros and too large numbers are not logged as ids.

    https://www.w3.org/TR/trace-context/#traceparent-header-field-values
    """
    line = line_of(no_project, ask(no_project, get_request("/info", f"{header}\r\n")).headers["x-request-id"])
    assert (line.get("logging.googleapis.com/trace"), line.get("logging.googleapis.com/spanId")) == (trace, span)
