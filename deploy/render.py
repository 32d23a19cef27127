"""What deploy/rollout needs to know and to write; standard library only, since gcloud's image has nothing else.

render.py manifest SERVICE IMAGE ACCOUNT < list.json      service.yaml with these, the project, and traffic where it is
render.py candidate                      < service.json   "URL REVISION SERVICE_URL" of the new revision
render.py serving                        < service.json   a sentence: which revisions have the traffic

list.json is of `gcloud run services list --format json` (empty at the first deployment), service.json of `describe`.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

TEMPLATE = Path(__file__).parent.parent / "service.yaml"
TAG = "candidate"


def manifest(template: str, service: str, image: str, account: str, current: list[Any]) -> str:
    """service.yaml with another name, image, service account and traffic; everything else as it stands."""
    if not re.fullmatch(r"[\w.-]+@[\w.-]+", account):
        sys.exit(
            f"The service account is {account!r}; it must be a whole e-mail address, "
            "like embedding-api@PROJECT.iam.gserviceaccount.com."
        )
    text = _replace(r"^  name: .*$", f"  name: {service}", template)
    text = _replace(r"^( +- image:) .*$", rf"\1 {image}", text)
    text = _replace(r"^    spec:$", f"    spec:\n      serviceAccountName: {account}", text)
    found = re.search(r"@([\w-]+)\.iam\.gserviceaccount\.com$", account)
    text = _replace(r'^( +value:) "PROJECT"$', rf'\1 "{found[1] if found else ""}"', text)
    # JSON is YAML
    return _replace(r"^  traffic:\n(?:    .*\n)+\Z", f"  traffic: {json.dumps(traffic(current))}\n", text)


def _replace(pattern: str, new: str, text: str) -> str:
    text, count = re.subn(pattern, new, text, flags=re.MULTILINE)
    if count != 1:
        sys.exit(f"{TEMPLATE.name} has {count} places that match {pattern!r}; it must have exactly 1.")
    return text


def traffic(current: list[Any]) -> list[dict[str, Any]]:
    """Who serves keeps serving, by name; the new revision only gets a tag, and with it a URL of its own.

    The first deployment has nothing to keep: the new revision gets everything.
    """
    # status is what is served, spec what somebody asked for: they differ after a failed deployment.
    targets = [target for service in current for target in service.get("status", {}).get("traffic", [])]
    kept: list[dict[str, Any]] = []
    for target in targets:
        revision, tag = {"revisionName": target["revisionName"]}, target.get("tag")
        if target.get("percent"):
            kept.append({**revision, "percent": target["percent"]})
        if tag and tag != TAG:
            kept.append({**revision, "tag": tag})
    if not any("percent" in target for target in kept):
        kept.append({"latestRevision": True, "percent": 100})
    return [*kept, {"latestRevision": True, "tag": TAG}]


def candidate(service: Any) -> str:
    for target in service["status"]["traffic"]:
        if target.get("tag") == TAG:
            return f"{target['url']} {target['revisionName']} {service['status']['url']}"
    sys.exit(f"No revision of {service['metadata']['name']} has the tag {TAG}: was it deployed by deploy/rollout?")


def serving(service: Any) -> str:
    shares = [f"{t['revisionName']} ({t['percent']} %)" for t in service["status"]["traffic"] if t.get("percent")]
    return f"Traffic goes to {', '.join(shares)}."


def main(command: str, *arguments: str) -> str:
    given = json.load(sys.stdin)
    if command == "manifest":
        service, image, account = arguments
        return manifest(TEMPLATE.read_text(encoding="utf-8"), service, image, account, given)
    return {"candidate": candidate, "serving": serving}[command](given)


if __name__ == "__main__":
    print(main(*sys.argv[1:]).rstrip("\n"))
