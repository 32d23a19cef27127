"""The pipeline of cloudbuild.yaml in a folder of its own, with stand-ins for docker and gcloud."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.support import ROOT

BUILD = yaml.safe_load((ROOT / "cloudbuild.yaml").read_text())
STEPS = {step["id"]: step for step in BUILD["steps"]}
SCRIPTS = "\n".join(step["script"] for step in BUILD["steps"])
SERVICE = yaml.safe_load((ROOT / "service.yaml").read_text())
POD = SERVICE["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
# Substitutions of every build, and those of builds that a trigger starts.
ALWAYS = {"PROJECT_ID": "project", "BUILD_ID": "build-1"}
TRIGGERED = {"COMMIT_SHA": "c0ffee", "REPO_FULL_NAME": "owner/name"}
DIGEST = "asia-northeast1-docker.pkg.dev/project/embedding-api/embedding-api@sha256:0123"
IMAGE = DIGEST.partition("@")[0]
PROJECT = "project"
ACCOUNT = f"embedding-api@{PROJECT}.iam.gserviceaccount.com"
ROLLOUT = ["python3", "deploy/rollout.py", "embedding-api", "asia-northeast1", DIGEST, ACCOUNT]
OLD = "embedding-api-00001-abc"
# Calls of gcloud that move traffic.
MOVE = "gcloud run services update-traffic .*--to-revisions"

# Program in place of docker and gcloud. It records the call, fails if FAIL matches it, and otherwise answers plausibly;
# tests/support/cloud_run.py answers `gcloud run`.
STUB = f"""
import json, os, re, runpy, sys
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
call = " ".join([name, *arguments])
with open(os.environ["CALLS"], "a") as calls:
    calls.write(call + "\\n")
if re.search(os.environ["FAIL"] or "$^", call):
    sys.exit(f"the stand-in fails: {{call}}")
if arguments[:3] == ["run", "services", "replace"]:
    with open(arguments[3]) as manifest, open("applied.yaml", "w") as applied:
        applied.write(manifest.read())
if name == "gcloud" and arguments[0] != "artifacts":
    runpy.run_path({str(ROOT / "tests/support/cloud_run.py")!r}, run_name="__main__")
elif "inspect" in arguments:
    print(os.environ["BYTES"] if "{{{{.Size}}}}" in arguments else os.environ["DIGEST"])
elif arguments[:2] == ["run", "--rm"]:
    given = arguments[arguments.index("python") + 2 :]
    os.execv(sys.executable, [sys.executable, "-", os.environ["SERVER"], *given[1:]])
elif arguments[0] == "logs":
    print("the log of the container")
"""


class Pipeline:
    """A checkout in a folder of its own, with stand-ins for docker, gcloud and the audit in PATH."""

    def __init__(self, folder: Path, server: str) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "deploy", folder / "deploy", ignore=shutil.ignore_patterns("__pycache__"))
        rollout = folder / "deploy/rollout.py"
        rollout.write_text(rollout.read_text().replace("RETRY_SECONDS = 3, 5", "RETRY_SECONDS = 3, 0"))
        shutil.copy(ROOT / "service.yaml", folder)
        (folder / "requirements").mkdir()
        (folder / "requirements/audit").write_text('docker audit "$@"\n')
        (folder / "bin").mkdir()
        for name in ("docker", "gcloud"):
            stub = folder / "bin" / name
            stub.write_text(f"#!{sys.executable}\n{STUB}")
            stub.chmod(0o755)
        (folder / "bin/python3").symlink_to(sys.executable)
        self.environ = {
            "PATH": f"{folder / 'bin'}:{os.defpath}",
            "CALLS": str(folder / "calls"),
            "FAIL": "",
            "BYTES": "400000000",
            "DIGEST": DIGEST,
            "SERVER": server,
            "CLOUD_RUN": str(folder / "cloud_run.json"),
        }
        (folder / "cloud_run.json").write_text("{}")

    def serves(self, *targets: dict[str, Any]) -> None:
        """Let Cloud Run have a service with these targets of its traffic."""
        images = {target["revisionName"]: "old" for target in targets}
        service = {"generation": 7, "images": images, "spec": list(targets), "status": list(targets)}
        (self.folder / "cloud_run.json").write_text(json.dumps({"embedding-api": service}))

    def run(self, triggered: bool = True, **environ: str) -> tuple[str, str]:
        """Run the steps in their order until one fails: its id ("" if all went well) and all output."""
        values = {**BUILD["substitutions"], **ALWAYS, **(TRIGGERED if triggered else {}), **environ}
        for line in BUILD["options"]["env"]:
            name, _, value = line.partition("=")
            values[name] = re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], value)
        # Cloud Build may pass an empty substitution or leave it out; the scripts must support both.
        values = {name: value for name, value in values.items() if value}
        output = ""
        for step in BUILD["steps"]:
            script = self.folder / "script"
            script.write_text(step["script"])
            script.chmod(0o755)
            done = self.call([str(script)], **values)
            output += done.stdout
            if done.returncode != 0:
                return str(step["id"]), output
        return "", output

    def call(self, command: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**self.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def applied(self) -> Any:
        return yaml.safe_load((self.folder / "applied.yaml").read_text())

    def called(self, *words: str) -> bool:
        return any(all(word in call for word in words) for call in self.calls)
