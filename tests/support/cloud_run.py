"""A stand-in for `gcloud run services`: revisions, tags, traffic and generations, as Cloud Run keeps them.

What it follows: a revision's name is in the template, and is taken once; `replace` puts the whole of spec.traffic in
place of what was there, whoever wrote that; `update-traffic` changes what is there; each change makes a new
generation; a target that is not ready leaves status.traffic as it was, and the command fails.

As a program (tests/support/pipeline.py puts it into PATH as gcloud) it keeps its state in the file that
CLOUD_RUN names.
"""

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import yaml

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
HOST = "service.example"


class Refused(Exception):
    """A command that ends with status 1; the message is what gcloud would print."""


class CloudRun:
    """One region. `never_ready`: images whose revisions do not pass their startup probe."""

    def __init__(self, state: dict[str, Any] | None = None, never_ready: tuple[str, ...] = ()) -> None:
        self.services: dict[str, Any] = state or {}
        self.never_ready = never_ready

    def __call__(self, *arguments: str) -> str:
        """Return the output of `gcloud ARGUMENTS`. Raises Refused."""
        if arguments[:2] == ("auth", "print-identity-token"):
            return "token\n"
        parser = argparse.ArgumentParser()
        for option in ("region", "format", "service", "to-revisions", "update-tags", "remove-tags"):
            parser.add_argument(f"--{option}", default="")
        parser.add_argument("name", nargs="?", default="")
        options = parser.parse_args(arguments[3:])
        command = " ".join(arguments[:3])
        if command == "run services list":
            return json.dumps([self.state(name) for name in self.services])
        if command == "run revisions list":
            names = self.services.get(options.service, {"images": ()})["images"]
            return json.dumps([self.revision(options.service, name) for name in names])
        if command == "run services replace":
            self.replace(yaml.load(Path(options.name).read_text(), LOADER))
        elif command == "run services update-traffic":
            self.update_traffic(options)
        else:
            raise Refused(f"no such command here: {command}")
        return ""

    def state(self, name: str) -> Any:
        service = self.services[name]
        return {
            "metadata": {"name": name, "generation": service["generation"]},
            "spec": {"traffic": service["spec"]},
            "status": {
                "url": f"https://{HOST}",
                "traffic": [
                    {**target, **({"url": f"https://{target['tag']}---{HOST}"} if "tag" in target else {})}
                    for target in service["status"]
                ],
            },
        }

    def revision(self, service: str, name: str) -> Any:
        ready = str(self.is_ready(service, name))
        return {"metadata": {"name": name}, "status": {"conditions": [{"type": "Ready", "status": ready}]}}

    def is_ready(self, service: str, revision: str) -> bool:
        return self.services[service]["images"][revision] not in self.never_ready

    def replace(self, document: Any) -> None:
        name, template = document["metadata"]["name"], document["spec"]["template"]
        service = self.services.setdefault(name, {"generation": 0, "images": {}, "spec": [], "status": []})
        revision = template["metadata"]["name"]
        if revision in service["images"]:
            raise Refused(f"Revision named '{revision}' with different configuration already exists.")
        service["images"][revision] = template["spec"]["containers"][0]["image"]
        self.change(name, document["spec"]["traffic"])

    def update_traffic(self, options: argparse.Namespace) -> None:
        targets = self.services[options.name]["spec"]
        if options.to_revisions:
            shares = [share.split("=") for share in options.to_revisions.split(",")]
            targets = [target for target in targets if "tag" in target]
            targets = [{"revisionName": name, "percent": int(percent)} for name, percent in shares] + targets
        for tag in filter(None, options.remove_tags.split(",")):
            targets = [target for target in targets if target.get("tag") != tag]
        for tag, name in (pair.split("=") for pair in filter(None, options.update_tags.split(","))):
            targets = [target for target in targets if target.get("tag") != tag]
            targets.append({"revisionName": name, "tag": tag})
        self.change(options.name, targets)

    def change(self, name: str, targets: list[dict[str, Any]]) -> None:
        service = self.services[name]
        service["generation"] += 1
        service["spec"] = targets
        for target in targets:
            if target["revisionName"] not in service["images"]:
                raise Refused(f"Revision {target['revisionName']} not found.")
            if not self.is_ready(name, target["revisionName"]):
                raise Refused(f"Revision '{target['revisionName']}' is not ready and cannot serve traffic.")
        service["status"] = targets

    def image_at(self, name: str, url: str) -> tuple[str, str]:
        """Return revision and image at a tag's URL; "" for both if nothing has the tag."""
        tag = url.removeprefix("https://").partition("---")[0]
        found = [target["revisionName"] for target in self.services[name]["status"] if target.get("tag") == tag]
        return (found[0], self.services[name]["images"][found[0]]) if found else ("", "")

    def serving(self, name: str) -> dict[str, int]:
        if name not in self.services:
            return {}
        return {t["revisionName"]: t["percent"] for t in self.services[name]["status"] if t.get("percent")}


def main(arguments: list[str]) -> int:
    path = Path(os.environ["CLOUD_RUN"])
    run = CloudRun(json.loads(path.read_text()), tuple(os.environ.get("NEVER_READY", "").split()))
    try:
        # The server that stands for every revision answers here.
        print(re.sub(rf"https://[\w-]+---{HOST}", os.environ["SERVER"], run(*arguments)), end="")
    except Refused as error:
        print(f"ERROR: (gcloud) {error}", file=sys.stderr)
        return 1
    finally:
        # a deployment that is interrupted kills its gcloud, perhaps while it writes
        part = path.with_suffix(".part")
        part.write_text(json.dumps(run.services))
        part.replace(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
