"""requirements/audit with stand-ins for pip and pip-audit: the meaning of its exit status."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT

# Stands in for python3 in PATH: makes an environment with stand-ins for pip and pip-audit.
VENV = """#!/bin/sh
mkdir -p "$3/bin"
printf '#!/bin/sh\\nexit $INSTALL\\n' >"$3/bin/python"
printf '#!/bin/sh\\necho "options: $*"\\necho "$SAYS" >&2\\nexit $ENDS\\n' >"$3/bin/pip-audit"
chmod +x "$3/bin/python" "$3/bin/pip-audit"
exit $VENV
"""
NONE = "No known vulnerabilities found"


@pytest.mark.parametrize(
    ("says", "ends", "status"),
    [
        (NONE, 0, 0),
        ("No known vulnerabilities found, 1 ignored", 0, 0),
        ("Found 1 known vulnerability in 1 package", 1, 1),
        ("Found 12 known vulnerabilities, ignored 1 in 3 packages", 1, 1),
        ("ERROR:pip_audit._cli:flask: Dependency not found on PyPI and could not be audited: flask (3.1.2)", 1, 2),
        ("pip_audit._service.interface.ServiceError: 503 Server Error", 1, 2),
        ("pip-audit: error: unrecognized arguments: --ignore", 2, 2),
        (NONE, 137, 2),
    ],
)
def test_audit(tmp_path: Path, says: str, ends: int, status: int) -> None:
    """Exit status 1 means known vulnerabilities only; 2 means that the check could not be made."""
    run = audit(tmp_path, SAYS=says, ENDS=str(ends))
    assert run.returncode == status
    assert says in run.stderr
    assert ("not everything, was checked" in run.stderr) == (status == 2)
    assert re.fullmatch("options: .*--strict .*-r runtime.txt --ignore-vuln GHSA-1\n", run.stdout)


@pytest.mark.parametrize("fail", ["VENV", "INSTALL"])
def test_audit_without_its_tool(tmp_path: Path, fail: str) -> None:
    """Without pip-audit the exit status is 2."""
    run = audit(tmp_path, **{fail: "1"})
    assert run.returncode == 2
    assert "pip-audit could not be installed; nothing, or not everything, was checked" in run.stderr
    assert run.stdout == ""


def audit(folder: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    (folder / "python3").write_text(VENV)
    (folder / "python3").chmod(0o755)
    known = {"PATH": f"{folder}:{os.defpath}", "VENV": "0", "INSTALL": "0", "ENDS": "0", "SAYS": NONE}
    command = ["sh", str(ROOT / "requirements/audit"), "--ignore-vuln", "GHSA-1"]
    return subprocess.run(command, env={**known, **environ}, capture_output=True, text=True)
