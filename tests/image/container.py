"""Containers of the image, by docker or by the program that CONTAINER_RUN names.

That one is called as PROGRAM [-e NAME=VALUE]… IMAGE [-- COMMAND…] and must do what `docker run`
does here: the host's network, a root that only root could write to, mounted read-only.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

IMAGE = os.environ.get("IMAGE") or "embedding-api"
BASE = os.environ.get("PYTHON_IMAGE") or "docker.io/library/python:3.11-slim"
PROGRAM = os.environ.get("CONTAINER_RUN")
DOCKER = ["docker", "run", "--rm", "--network=host", "--read-only", "--tmpfs=/tmp"]
# Command of a container with no network but its own loopback.
ALONE = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "-"]


def command(
    *inside: str, image: str = IMAGE, network: bool = True, environ: Mapping[str, str] | None = None
) -> list[str]:
    """Return the command line that runs `inside`, or the image's own command, in a new container."""
    variables = [word for name, value in (environ or {}).items() for word in ("-e", f"{name}={value}")]
    if PROGRAM is None:
        docker = DOCKER if network else [word.replace("=host", "=none") for word in DOCKER]
        return [*docker, *variables, image, *inside]
    return [*([] if network else ALONE), PROGRAM, *variables, image, *(["--", *inside] if inside else [])]


def run(*inside: str, **options: Any) -> bytes:
    """Return the output of a command in a container."""
    return subprocess.run(command(*inside, **options), stdout=subprocess.PIPE, check=True).stdout


def run_script(name: str, **options: Any) -> Any:
    """Run a script of this folder in a container and return the JSON that it prints."""
    script = (Path(__file__).parent / f"{name}.py").read_text()
    return json.loads(run("python3", "-c", script, **options))


def config() -> dict[str, Any]:
    """Return the image's configuration: User, Env, Cmd, Labels, …"""
    if PROGRAM is None:
        shown = subprocess.run(["docker", "image", "inspect", IMAGE], stdout=subprocess.PIPE, check=True).stdout
        return dict(json.loads(shown)[0]["Config"])
    environ = {**os.environ, "STORAGE_DRIVER": "vfs"}
    inspect = ["buildah", "inspect", "--type=image", IMAGE]
    shown = subprocess.run(inspect, env=environ, stdout=subprocess.PIPE, check=True).stdout
    return dict(json.loads(shown)["Docker"]["config"])
