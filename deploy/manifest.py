"""service.yaml for one deployment, and what the state of a service says.

Standard library only: gcloud's image has nothing else.

A service is an item of `gcloud run services list --format json`; `{}` stands for one that does not exist yet.
"""

import json
import re
import sys
from typing import Any

# A revision of deploy/rollout.py: the service, the time of its build in UTC, and four random digits.
REVISION = re.compile(r"-(\d{8}-\d{6})-([0-9a-f]{4})$")
TAG = re.compile(r"candidate(-[0-9a-f]{4})?$")


def render(template: str, service: str, revision: str, image: str, account: str, current: Any) -> str:
    """Text of a manifest: `template` with these names, the account's project, and traffic where it is.

    The new revision only gets a tag, and with it a URL of its own; in a service that serves nothing yet it gets all
    traffic. Raises SystemExit where the account is no e-mail address, or the template lacks a place.
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
    """`spec.traffic` of a deployment: shares and tags stay where they are, by name; `revision` gets its tag."""
    targets: list[dict[str, Any]] = [
        {"revisionName": name, "percent": percent} for name, percent in serving(current).items()
    ] or [{"revisionName": revision, "percent": 100}]
    targets += [{"revisionName": name, "tag": tag} for tag, name in tags(current).items()]
    return [*targets, {"revisionName": revision, "tag": tag_of(revision)}]


def serving(service: Any) -> dict[str, int]:
    """Percent of the traffic by revision."""
    shares: dict[str, int] = {}
    for target in _targets(service):
        if target.get("percent"):
            shares[target["revisionName"]] = shares.get(target["revisionName"], 0) + target["percent"]
    return shares


def tags(service: Any) -> dict[str, str]:
    """Revision by tag."""
    return {target["tag"]: target["revisionName"] for target in _targets(service) if target.get("tag")}


def url_of(service: Any, tag: str) -> str:
    """The URL at which the revision with this tag answers; "" if none has it."""
    return next((str(target["url"]) for target in _targets(service) if target.get("tag") == tag), "")


def generation(service: Any) -> int:
    """Number of changes that were asked of the service: 0 for one that does not exist."""
    return int(service["metadata"]["generation"]) if service else 0


def is_ready(revision: Any) -> bool:
    """Return whether a revision, of `gcloud run revisions list`, has passed its startup probe."""
    conditions = revision.get("status", {}).get("conditions", [])
    return any(condition["type"] == "Ready" and condition["status"] == "True" for condition in conditions)


def tag_of(revision: str) -> str:
    """The tag under which a revision is asked; each has its own, so that no other deployment can move it."""
    found = REVISION.search(revision)
    return f"candidate-{found[2]}" if found else "candidate"


def is_newer(revision: str, other: str) -> bool:
    """Return whether a revision's build began after another's; false where one is not of deploy/rollout.py."""
    found = REVISION.search(revision), REVISION.search(other)
    return bool(found[0] and found[1] and found[0][1] > found[1][1])


def _targets(service: Any) -> list[dict[str, Any]]:
    # status is what is served, spec what somebody asked for: they differ after a failed deployment.
    return list(service.get("status", {}).get("traffic", []))
