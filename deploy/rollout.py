#!/usr/bin/env python3
"""Deploy an image to Cloud Run; traffic moves only to a revision that has answered at its own URL.

python3 deploy/rollout.py SERVICE REGION IMAGE ACCOUNT [--built TIME] [--allow-stand-in] [--timeout SECONDS]

Exit status 0: this image has all the traffic. 1: it has not; the last lines say what serves and how to go on.
Two deployments may run at once, and each may end at any moment: the newest build that passes serves.
"""

import argparse
import json
import os
import re
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import manifest

ROOT = Path(__file__).parent.parent
# Of Cloud Run: a tag and a service's name, 46 characters together.
# https://cloud.google.com/run/docs/rollouts-rollbacks-traffic-migration#tags
SERVICE_CHARACTERS = 46 - len("candidate-1234")
BUILT = "%Y%m%d-%H%M%S"


class Failed(Exception):
    """A deployment that ends; the message says why."""


class Rollout:
    """One deployment of one image.

    gcloud: runs a command of gcloud, gives its output; raises Failed.
    passes: asks the server at a URL, given the URL of the whole service; prints why where it does not pass.
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
        self.answers: dict[str, bool] = {}  # of the revisions that were asked
        self.tags = {manifest.tag_of(self.revision)}  # that were put on here

    def run(self, image: str, account: str) -> None:
        """Deploy, ask, move the traffic. Raises Failed unless this image serves in the end."""
        revisions = self.ready_revisions()
        before = self.look()
        self.refuse_if_a_newer_build_serves(before, self.revision)
        template = (ROOT / "service.yaml").read_text(encoding="utf-8")
        text = manifest.render(template, self.service, self.revision, image, account, before)
        known = revisions - set(manifest.tags(before).values())
        try:
            self.replace(text)
            after = self.move_to_the_newest(manifest.generation(before), known)
            if self.answers.get(self.revision) is False:
                raise Failed(f"{self.revision} did not pass.")
            if manifest.serving(after) != {self.revision: 100}:
                raise Failed(f"a newer build passed, or somebody moved the traffic away from {self.revision}.")
        finally:
            self.take_the_tags_off()

    def move_to_the_newest(self, seen: int, known: set[str]) -> Any:
        """Move the traffic to the newest build that passes, until nobody came in between; gives the service after it.

        `seen` is the service's generation before the last change made here. A change by another deployment in
        between shows as a generation that is not the next one: what it moved may have been put back by mistake, so
        the revisions that are not in `known` are asked, too.
        """
        revisions, moved = {self.revision}, ""
        while True:
            service = self.describe()
            if manifest.generation(service) != seen + 1:
                revisions |= self.ready_revisions() - known
            elif moved:
                return service
            chosen = next((revision for revision in sorted(revisions, reverse=True) if self.ask(revision)), "")
            if chosen == moved:
                return service
            service = self.describe()
            self.refuse_if_a_newer_build_serves(service, chosen)
            seen, moved = manifest.generation(service), chosen
            # Older builds' tags, too: those deployments were killed, or will be refused.
            done = {
                tag
                for tag, revision in manifest.tags(service).items()
                if tag in self.tags or (manifest.TAG.match(tag) and not manifest.is_newer(revision, chosen))
            }
            self.update_traffic(f"--to-revisions={chosen}=100", *without(done))

    def ask(self, revision: str) -> bool:
        """Whether the server of this revision passes at the URL of its tag; remembered."""
        if revision not in self.answers:
            self.answers[revision] = self.ask_once(revision) or (not self.has_tag(revision) and self.ask_once(revision))
        return self.answers[revision]

    def ask_once(self, revision: str) -> bool:
        tag, service = manifest.tag_of(revision), self.describe()
        # Another deployment that began before this one does not know the tag, and takes it off.
        if manifest.tags(service).get(tag) != revision:
            self.tags.add(tag)
            self.update_traffic(f"--update-tags={tag}={revision}")
            service = self.describe()
        url = manifest.url_of(service, tag)
        return bool(url) and self.passes(url, service["status"]["url"])

    def has_tag(self, revision: str) -> bool:
        return manifest.tags(self.describe()).get(manifest.tag_of(revision)) == revision

    def refuse_if_a_newer_build_serves(self, service: Any, revision: str) -> None:
        for other in manifest.serving(service):
            if manifest.is_newer(other, revision):
                raise Failed(f"{other}, which serves, is of a newer build than {revision}: it stays.")

    def take_the_tags_off(self) -> None:
        """A tag on a revision that never got ready would keep the whole service from being ready."""
        try:
            targets = self.look().get("spec", {}).get("traffic", [])
            if found := self.tags & {target.get("tag") for target in targets}:
                self.update_traffic(*without(found))
        except Failed as error:
            print(f"The tags {', '.join(self.tags)} could not be taken off: {error}", file=sys.stderr)

    def report(self) -> str:
        """What serves now, as sentences; read anew, whatever was meant to happen."""
        go_on = f"gcloud run services describe {self.service} --region {self.region}"
        try:
            shares = manifest.serving(self.look())
        except Failed as error:
            return f"What serves now could not be read ({error}). See: {go_on}"
        if not shares:
            return f"Nothing serves. {self.to_go_on()}"
        text = ", ".join(f"{revision} ({percent} %)" for revision, percent in shares.items())
        if shares == {self.revision: 100}:
            checked = self.answers.get(self.revision, False)
            return (
                f"{text} serves." if checked else f"{text} serves, unchecked: nothing served before. {self.to_go_on()}"
            )
        return f"Traffic goes to {text}. {self.to_go_on()}"

    def to_go_on(self) -> str:
        where = f"{self.service} --region {self.region}"
        return (
            f"Logs: gcloud run services logs read {where}; to go on, repeat this deployment; "
            f"to choose what serves: gcloud run services update-traffic {where} --to-revisions REVISION=100"
        )

    def look(self) -> Any:
        """The service; {} if it does not exist. Not describe, which fails as it does for a missing permission."""
        found = self.gcloud(
            *f"run services list --region {self.region} --filter metadata.name={self.service} --format json".split()
        )
        return next(iter(json.loads(found)), {})

    def describe(self) -> Any:
        return json.loads(
            self.gcloud(*f"run services describe {self.service} --region {self.region} --format json".split())
        )

    def ready_revisions(self) -> set[str]:
        """Revisions of this program that have passed their startup probe."""
        found = self.gcloud(
            *f"run revisions list --service {self.service} --region {self.region} --format json".split()
        )
        ready = {revision["metadata"]["name"] for revision in json.loads(found) if manifest.is_ready(revision)}
        return {name for name in ready if manifest.REVISION.search(name)}

    def replace(self, text: str) -> None:
        """Returns when the new revision has passed its startup probe; fails if it does not."""
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            self.gcloud("run", "services", "replace", file.name, "--region", self.region)

    def update_traffic(self, *options: str) -> None:
        self.gcloud("run", "services", "update-traffic", self.service, "--region", self.region, *options)


def without(tags: set[str]) -> list[str]:
    return [f"--remove-tags={','.join(sorted(tags))}"] if tags else []


def gcloud(*arguments: str) -> str:
    """Standard output of a command of gcloud, whose messages go where ours go."""
    done = subprocess.run(["gcloud", *arguments], stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise Failed(f"this command ended with status {done.returncode}: gcloud {shlex.join(arguments)}")
    return done.stdout


def smoke(options: list[str], url: str, audience: str) -> bool:
    """Whether deploy/smoke.py passes, with an identity token for a private service.

    Service accounts name the token's audience, users cannot; a public service needs no token. Why there is none
    matters only where the check fails.
    """
    token, refusals = "", ""
    for audiences in ([f"--audiences={audience}"], []):
        done = subprocess.run(["gcloud", "auth", "print-identity-token", *audiences], capture_output=True, text=True)
        if done.returncode == 0:
            token = done.stdout.strip()
            break
        refusals += done.stderr
    # Not /readyz: Cloud Run's front end keeps some paths that end in z to itself. The startup probe has asked for it.
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


def build_time(text: str) -> str:
    try:
        time.strptime(text, BUILT)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no time like 20261231-235959, in UTC") from None
    return text


def interrupt(number: int, _: Any) -> None:
    raise Failed(f"interrupted by {signal.Signals(number).name}.")


def main() -> int:
    parser = argparse.ArgumentParser(description="Deploy an image to Cloud Run; traffic moves once it has answered.")
    parser.add_argument("service", type=service_name)
    parser.add_argument("region")
    parser.add_argument("image", help="with its digest, REPOSITORY@sha256:…: with a tag Cloud Run may see nothing new")
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
    flags = ["--timeout", str(options.timeout), *(["--allow-stand-in"] if options.allow_stand_in else [])]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    rollout = Rollout(
        options.service, options.region, options.built, gcloud, lambda url, audience: smoke(flags, url, audience)
    )
    try:
        rollout.run(options.image, options.account)
        status = 0
    except Failed as error:
        print(f"FAILED: {error}", file=sys.stderr)
        status = 1
    print(rollout.report(), file=sys.stderr if status else sys.stdout)
    return status


if __name__ == "__main__":
    sys.exit(main())
