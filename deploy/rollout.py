#!/usr/bin/env python3
"""Rollout: deploys an image to Cloud Run, and moves the traffic only after the new revision has passed deploy/smoke.py.

python3 deploy/rollout.py SERVICE REGION IMAGE ACCOUNT [--built TIME] [--allow-stand-in] [--timeout SECONDS]

Steps: deploy service.yaml with the image as a revision without traffic, at a URL of its own (a tag); run
deploy/smoke.py on that URL; move all traffic to the newest build that passes; remove the tags.

Exit status 0: this image has all the traffic. 1: it has not; the last lines say which revision serves and what to do.
The first revision of a service gets all traffic before it is checked. Two deployments may run at the same time: the
newest build that passes gets the traffic. A deployment that is killed after its first change may leave an older
revision serving, but never an unchecked one.
"""

import argparse
import json
import os
import re
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import manifest

ROOT = Path(__file__).parent.parent
# Cloud Run's limit: 46 characters for a tag and a service's name together.
# https://cloud.google.com/run/docs/rollouts-rollbacks-traffic-migration#tags
SERVICE_CHARACTERS = 46 - len("candidate-1234")
BUILT = "%Y%m%d-%H%M%S"
TRIES, RETRY_SECONDS = 3, 5


class Failed(Exception):
    """The deployment has failed; the message is the reason."""


class Rollout:
    """One deployment of one image.

    gcloud: runs a command of gcloud and returns its output; raises Failed.
    passes: checks the server at a URL, given the URL of the whole service; prints the reason of a failure.
    """

    def __init__(
        self,
        service: str,
        region: str,
        built: str,
        gcloud: Callable[..., str],
        passes: Callable[[str, str], bool],
    ) -> None:
        self.service, self.region, self.gcloud, self.passes = service, region, gcloud, passes
        self.revision = f"{service}-{built}-{secrets.token_hex(2)}"
        self.passed: dict[str, bool] = {}  # revision -> result of its check
        self.tags = {manifest.tag_of(self.revision)}  # tags that this deployment has set

    def run(self, image: str, account: str) -> None:
        """Deploy, check and move the traffic. Raises Failed unless this image serves in the end."""
        revisions = self.ready_revisions()
        before = self.read_service()
        self.refuse_older_build(before, self.revision)
        template = (ROOT / "service.yaml").read_text(encoding="utf-8")
        text = manifest.render(template, self.service, self.revision, image, account, before)
        known, failure = revisions - set(manifest.tags(before).values()), ""
        try:
            try:
                self.replace(text)
            except Failed as error:
                # The change may have been made all the same, and have undone a move of another deployment.
                self.passed[self.revision], failure = False, str(error)
                self.remove_tags()
            self.move_to_the_newest(manifest.generation(before), known)
        finally:
            self.remove_tags()
        if failure or not self.passed.get(self.revision, True):
            raise Failed(failure or f"{self.revision} did not pass.")

    def move_to_the_newest(self, seen: int, known: set[str]) -> None:
        """Move the traffic to the newest build that passes; repeat if another deployment changed the service meanwhile.

        seen: generation of the service before this deployment's last change. Another deployment's change in between
        shows as a generation that is not the next one. Its move may have been undone by mistake, so the revisions that
        are not in `known` are checked, too.
        """
        revisions, moved = {self.revision}, ""
        while True:
            if manifest.generation(self.read_service()) != seen + 1:
                revisions |= self.ready_revisions() - known
            elif moved:
                return
            chosen = next((revision for revision in sorted(revisions, reverse=True) if self.check(revision)), "")
            if chosen == moved:
                return
            service = self.read_service()
            self.refuse_older_build(service, chosen)
            seen, moved = manifest.generation(service), chosen
            # Includes the tags of older builds: those deployments were killed, or will be refused.
            done = {
                tag
                for tag, revision in manifest.tags(service).items()
                if tag in self.tags or (manifest.TAG.match(tag) and not manifest.is_newer(revision, chosen))
            }
            self.update_traffic(f"--to-revisions={chosen}=100", *without(done))

    def check(self, revision: str) -> bool:
        """Return whether a revision passes the check at the URL of its tag. Each revision is checked once."""
        if revision not in self.passed:
            self.passed[revision] = self.check_once(revision) or (
                not self.has_tag(revision) and self.check_once(revision)
            )
        return self.passed[revision]

    def check_once(self, revision: str) -> bool:
        tag, service = manifest.tag_of(revision), self.read_service()
        # A deployment that began before this one does not know the tag, and may have removed it.
        if manifest.tags(service).get(tag) != revision:
            self.tags.add(tag)
            self.update_traffic(f"--update-tags={tag}={revision}")
            service = self.read_service()
        url = manifest.url_of(service, tag)
        return bool(url) and self.passes(url, service["status"]["url"])

    def has_tag(self, revision: str) -> bool:
        return manifest.tags(self.read_service()).get(manifest.tag_of(revision)) == revision

    def refuse_older_build(self, service: Any, revision: str) -> None:
        for other in manifest.serving(service):
            if manifest.is_newer(other, revision):
                raise Failed(f"{other}, which serves, is of a newer build than {revision}: it stays.")

    def remove_tags(self) -> None:
        """Remove this deployment's tags: one on a revision that never got ready keeps the whole service from ready."""
        try:
            if found := self.tags_set():
                self.update_traffic(*without(found))
        except Failed as error:
            # The command may fail because the service is not ready for another reason, although the tags are removed.
            with suppress(Failed):
                if not self.tags_set():
                    return
            print(f"The tags {', '.join(sorted(self.tags))} could not be taken off: {error}", file=sys.stderr)

    def tags_set(self) -> set[str]:
        targets = self.read_service().get("spec", {}).get("traffic", [])
        return self.tags & {target.get("tag") for target in targets}

    def report(self) -> tuple[bool, str]:
        """Read the state again; return whether this image has all the traffic, and a description."""
        try:
            shares = manifest.serving(self.read_service())
        except Failed as error:
            return False, f"What serves now could not be read ({error}). {self.next_steps()}"
        text = ", ".join(f"{revision} ({percent} %)" for revision, percent in shares.items())
        if shares != {self.revision: 100}:
            return False, f"{f'Traffic goes to {text}' if text else 'Nothing serves'}. {self.next_steps()}"
        if not self.passed.get(self.revision, False):
            return False, f"{text} serves, unchecked: nothing served before. {self.next_steps()}"
        return True, f"{text} serves."

    def next_steps(self) -> str:
        where = f"{self.service} --region {self.region}"
        return (
            f"Logs: gcloud run services logs read {where}; to go on, repeat this deployment; to choose what serves: "
            f"gcloud run revisions list --service {where}, then "
            f"gcloud run services update-traffic {where} --to-revisions REVISION=100"
        )

    def read_service(self) -> Any:
        """Return the service, or {} if it does not exist. `describe` would fail then as without permission."""
        found = json.loads(self.gcloud(*f"run services list --region {self.region} --format json".split()))
        return next((service for service in found if service["metadata"]["name"] == self.service), {})

    def ready_revisions(self) -> set[str]:
        """Return the revisions made by this program that have passed their startup probe."""
        found = self.gcloud(
            *f"run revisions list --service {self.service} --region {self.region} --format json".split()
        )
        ready = {revision["metadata"]["name"] for revision in json.loads(found) if manifest.is_ready(revision)}
        return {name for name in ready if manifest.REVISION.search(name)}

    def replace(self, text: str) -> None:
        """Deploy the manifest, and wait until the new revision has passed its startup probe; else raise Failed."""
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            self.gcloud("run", "services", "replace", file.name, "--region", self.region)

    def update_traffic(self, *options: str) -> None:
        """Change the traffic. May be repeated: gcloud refuses it if another deployment wrote in between."""
        self.gcloud("run", "services", "update-traffic", self.service, "--region", self.region, *options)


def without(tags: set[str]) -> list[str]:
    return [f"--remove-tags={','.join(sorted(tags))}"] if tags else []


def gcloud(*arguments: str) -> str:
    """Run gcloud and return its standard output; its messages go to stderr. All but `replace` are retried."""
    for left in reversed(range(1 if "replace" in arguments else TRIES)):
        done = subprocess.run(["gcloud", *arguments], stdout=subprocess.PIPE, text=True)
        if done.returncode == 0:
            return done.stdout
        if left:
            time.sleep(RETRY_SECONDS)
    raise Failed(f"this command ended with status {done.returncode}: gcloud {shlex.join(arguments)}")


def smoke(options: list[str], url: str, audience: str) -> bool:
    """Return whether deploy/smoke.py passes, with an identity token for a private service.

    Service accounts must name the token's audience, users cannot. A public service needs no token, so the reason why
    there is none is printed only if the check fails.
    """
    token, refusals = "", ""
    for audiences in ([f"--audiences={audience}"], []):
        done = subprocess.run(["gcloud", "auth", "print-identity-token", *audiences], capture_output=True, text=True)
        if done.returncode == 0:
            token = done.stdout.strip()
            break
        refusals += done.stderr
    # Not /readyz: Cloud Run's front end reserves some paths that end in z. The startup probe has used it already.
    command = [sys.executable, str(Path(__file__).parent / "smoke.py"), url, "--ready-path", "/health", *options]
    passed = subprocess.run(command, env={**os.environ, "SMOKE_TOKEN": token}).returncode == 0
    if refusals and not passed:
        print(f"What gcloud said when it was asked for an identity token:\n{refusals}", file=sys.stderr, flush=True)
    return passed


def service_name(text: str) -> str:
    if not re.fullmatch(rf"[a-z]([a-z0-9-]{{0,{SERVICE_CHARACTERS - 2}}}[a-z0-9])?", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no name: at most {SERVICE_CHARACTERS} lower-case letters, digits and hyphens, "
            "beginning with a letter and not ending with a hyphen"
        )
    return text


def image_with_digest(text: str) -> str:
    if not re.fullmatch(r"[\w.:/-]+@sha256:[0-9a-f]+", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} has no digest: it must be like REPOSITORY@sha256:…; with a tag Cloud Run may see nothing new"
        )
    return text


def build_time(text: str) -> str:
    try:
        time.strptime(text, BUILT)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time like 20261231-235959, in UTC") from None
    return text


def interrupt(number: int, _: Any) -> None:
    raise Failed(f"interrupted by {signal.Signals(number).name}.")


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Deploy an image to Cloud Run; traffic moves after it has passed a check."
    )
    parser.add_argument("service", type=service_name)
    parser.add_argument("region")
    parser.add_argument("image", type=image_with_digest, help="with its digest, like REPOSITORY@sha256:…")
    parser.add_argument("account", help="e-mail address of the service account that the server runs as")
    parser.add_argument(
        "--built",
        type=build_time,
        default=time.strftime(BUILT, time.gmtime()),
        metavar="TIME",
        help="when the build began, like 20261231-235959 in UTC; what a newer build serves stays (now)",
    )
    parser.add_argument("--allow-stand-in", action="store_true", help="accept the offline model")
    parser.add_argument("--timeout", type=float, default=120, help="seconds to wait for the first answer (%(default)g)")
    options = parser.parse_args()
    if not shutil.which("gcloud"):
        parser.error("there is no gcloud in PATH: https://docs.cloud.google.com/sdk/docs/install")
    flags = ["--timeout", str(options.timeout), *(["--allow-stand-in"] if options.allow_stand_in else [])]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    rollout = Rollout(
        options.service, options.region, options.built, gcloud, lambda url, audience: smoke(flags, url, audience)
    )
    failed = False
    try:
        rollout.run(options.image, options.account)
    except Failed as error:
        print(f"FAILED: {error}", file=sys.stderr)
        failed = True
    serves, text = rollout.report()
    print(text, file=sys.stdout if serves and not failed else sys.stderr)
    return 0 if serves and not failed else 1


if __name__ == "__main__":
    sys.exit(main())
