"""Manifest: fills in service.yaml for one deployment, and reads the state of a Cloud Run service.

It uses the standard library only: gcloud's image has nothing else. A service is an item of
`gcloud run services list --format json`; `{}` stands for a service that does not exist yet.
"""

import json
import re
import sys
from typing import Any

# Name of a revision made by deploy/rollout.py: the service, the build's time in UTC, and four random digits.
REVISION = re.compile(r"-(\d{8}-\d{6})-([0-9a-f]{4})$")
TAG = re.compile(r"candidate(-[0-9a-f]{4})?$")


def render(template: str, service: str, revision: str, image: str, account: str, current: Any) -> str:
    """Return the manifest: the template with these names and the account's project, and the present traffic.

    The new revision gets a tag, and with it a URL of its own, but no traffic; in a new service it gets all traffic.
    Raises SystemExit if the account is not an e-mail address, or a place in the template is missing.
    """
    if not re.fullmatch(r"[\w.-]+@[\w.-]+", account):
        sys.exit(
            f"The service account is {account!r}; it must be a whole e-mail address, "
            "like embedding-api@PROJECT.iam.gserviceaccount.com."
        )
    text = _replace(r"^  name: .*$", f"  name: {service}", template)
    text = _replace(r"^  template:\n    metadata:$", f"  template:\n    metadata:\n      name: {revision}", text)
    text = _replace(r"^( +- image:) .*$", rf"\1 {image}", text)
    text = _replace(r"^    spec:$", f"    spec:\n      serviceAccountName: {account}", text)
    project = re.search(r"@([\w-]+)\.iam\.gserviceaccount\.com$", account)
    text = _replace(r'^( +value:) "PROJECT"$', rf'\1 "{project[1] if project else ""}"', text)
    # JSON is YAML
    targets = json.dumps(traffic(current, revision))
    return _replace(r"^  traffic:\n(?:    .*\n)+\Z", f"  traffic: {targets}\n", text)


def _replace(pattern: str, new: str, text: str) -> str:
    text, count = re.subn(pattern, new, text, flags=re.MULTILINE)
    if count != 1:
        sys.exit(f"service.yaml has {count} places that match {pattern!r}; it must have exactly 1.")
    return text


def traffic(current: Any, revision: str) -> list[dict[str, Any]]:
    """Return `spec.traffic`: present shares and tags, by revision name, and the tag of the new revision."""
    targets: list[dict[str, Any]] = [
        {"revisionName": name, "percent": percent} for name, percent in serving(current).items()
    ] or [{"revisionName": revision, "percent": 100}]
    targets += [{"revisionName": name, "tag": tag} for tag, name in tags(current).items()]
    return [*targets, {"revisionName": revision, "tag": tag_of(revision)}]


def serving(service: Any) -> dict[str, int]:
    """Return the percentage of the traffic of each revision."""
    shares: dict[str, int] = {}
    for target in _targets(service):
        if target.get("percent"):
            shares[target["revisionName"]] = shares.get(target["revisionName"], 0) + target["percent"]
    return shares


def tags(service: Any) -> dict[str, str]:
    """Return the revision of each tag."""
    return {target["tag"]: target["revisionName"] for target in _targets(service) if target.get("tag")}


def url_of(service: Any, tag: str) -> str:
    """Return the URL of the revision with this tag, or "" if no revision has it."""
    return next((str(target["url"]) for target in _targets(service) if target.get("tag") == tag), "")


def generation(service: Any) -> int:
    """Return the number of requested changes of the service; 0 if it does not exist."""
    return int(service["metadata"]["generation"]) if service else 0


def is_ready(revision: Any) -> bool:
    """Return whether a revision, of `gcloud run revisions list`, has passed its startup probe."""
    conditions = revision.get("status", {}).get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def tag_of(revision: str) -> str:
    """Return the tag under which a revision is checked. Each revision has its own: no other deployment moves it."""
    found = REVISION.search(revision)
    return f"candidate-{found[2]}" if found else "candidate"


def is_newer(revision: str, other: str) -> bool:
    """Return whether a revision's build began after another's; False if one was not made by deploy/rollout.py."""
    found = REVISION.search(revision), REVISION.search(other)
    return bool(found[0] and found[1] and found[0][1] > found[1][1])


def _targets(service: Any) -> list[dict[str, Any]]:
    # status is what is served, spec what was requested; they differ after a failed deployment.
    return list(service.get("status", {}).get("traffic", []))
