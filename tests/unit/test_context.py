"""RequestContext: the facts of one request, and its log line."""

import json
import subprocess
import sys

import pytest

from app.context import RequestContext
from tests.support import ROOT

SEVERITIES = """
from app import logs
from app.context import RequestContext
logs.configure("json", "info", "")
for status in (200, 304, 400, 404, 429, 499, 500, 501, 503):
    context = RequestContext()
    context.finish(status, 0)
    logs.log_request(context)
"""


def test_severity() -> None:
    """Faults of the server are errors, load is a warning, and faults of the client are logged like successes."""
    run = subprocess.run([sys.executable, "-c", SEVERITIES], cwd=ROOT, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in run.stderr.splitlines()]
    severities = {line["httpRequest"]["status"]: line["severity"] for line in lines}
    warnings = {status for status, severity in severities.items() if severity == "WARNING"}
    assert warnings == {429, 503}
    assert {severities[status] for status in (200, 304, 400, 404, 499, 501)} == {"INFO"}
    assert severities[500] == "ERROR"


@pytest.mark.parametrize("length", ["\xb2", "9" * 5000, "-1", "+1", "1_0", " 1", "", "x"])
def test_malformed_lengths(length: str) -> None:
    """A Content-Length that nobody has checked yet counts as 0 if it is malformed."""
    context = RequestContext()
    context.read_environ({"REQUEST_METHOD": "POST", "CONTENT_LENGTH": length})
    assert context.request_bytes == 0
