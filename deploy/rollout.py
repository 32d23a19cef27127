#!/usr/bin/env python3
"""Deploy an image to Cloud Run; traffic moves only to a revision that has answered at its own URL.

python3 deploy/rollout.py SERVICE REGION IMAGE ACCOUNT [--built TIME] [--allow-stand-in] [--timeout SECONDS]

Exit status 0: this image has all the traffic. 1: it has not; the last lines say what serves and how to go on.
A service that serves nothing yet gives all traffic to its first revision, before that has answered.
Two deployments may run at once: the newest build that passes serves. One that is killed after its first change may
leave an older revision serving, but none that was not asked.
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
        self.answers: dict[str, bool] = {}  # revision -> whether it passed
        self.tags = {manifest.tag_of(self.revision)}  # tags that this deployment has set

    def run(self, image: str, account: str) -> None:
        """Deploy, ask, move the traffic. Raises Failed unless this image serves in the end."""
        revisions = self.ready_revisions()
        before = self.look()
        self.refuse_if_a_newer_build_serves(before, self.revision)
        template = (ROOT / "service.yaml").read_text(encoding="utf-8")
        text = manifest.render(template, self.service, self.revision, image, account, before)
        known, failure = revisions - set(manifest.tags(before).values()), ""
        try:
            try:
                self.replace(text)
            except Failed as error:
                # The change may be made all the same, and have put back what another deployment had moved.
                self.answers[self.revision], failure = False, str(error)
                self.take_the_tags_off()
            self.move_to_the_newest(manifest.generation(before), known)
        finally:
            self.take_the_tags_off()
        if failure or not self.answers.get(self.revision, True):
            raise Failed(failure or f"{self.revision} did not pass.")

    def move_to_the_newest(self, seen: int, known: set[str]) -> None:
        """Move the traffic to the newest build that passes, until no other deployment came in between.

        `seen` is the service's generation before the last change made here. A change by another deployment in
        between shows as a generation that is not the next one: what it moved may have been put back by mistake, so
        the revisions that are not in `known` are asked, too.
        """
        revisions, moved = {self.revision}, ""
        while True:
            if manifest.generation(self.look()) != seen + 1:
                revisions |= self.ready_revisions() - known
            elif moved:
                return
            chosen = next((revision for revision in sorted(revisions, reverse=True) if self.ask(revision)), "")
            if chosen == moved:
                return
            service = self.look()
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
        """Return whether the server of a revision passes at the URL of its tag; each is asked once."""
        if revision not in self.answers:
            self.answers[revision] = self.ask_once(revision) or (not self.has_tag(revision) and self.ask_once(revision))
        return self.answers[revision]

    def ask_once(self, revision: str) -> bool:
        tag, service = manifest.tag_of(revision), self.look()
        # Another deployment that began before this one does not know the tag, and takes it off.
        if manifest.tags(service).get(tag) != revision:
            self.tags.add(tag)
            self.update_traffic(f"--update-tags={tag}={revision}")
            service = self.look()
        url = manifest.url_of(service, tag)
        return bool(url) and self.passes(url, service["status"]["url"])

    def has_tag(self, revision: str) -> bool:
        return manifest.tags(self.look()).get(manifest.tag_of(revision)) == revision

    def refuse_if_a_newer_build_serves(self, service: Any, revision: str) -> None:
        for other in manifest.serving(service):
            if manifest.is_newer(other, revision):
                raise Failed(f"{other}, which serves, is of a newer build than {revision}: it stays.")

    def take_the_tags_off(self) -> None:
        """A tag on a revision that never got ready would keep the whole service from being ready."""
        try:
            if found := self.tags_that_are_set():
                self.update_traffic(*without(found))
        except Failed as error:
            # The service may not get ready for another reason, although the tags are off.
            with suppress(Failed):
                if not self.tags_that_are_set():
                    return
            print(f"The tags {', '.join(sorted(self.tags))} could not be taken off: {error}", file=sys.stderr)

    def tags_that_are_set(self) -> set[str]:
        targets = self.look().get("spec", {}).get("traffic", [])
        return self.tags & {target.get("tag") for target in targets}

    def report(self) -> tuple[bool, str]:
        """Read anew what serves: return whether this image has all the traffic, and sentences about it."""
        try:
            shares = manifest.serving(self.look())
        except Failed as error:
            return False, f"What serves now could not be read ({error}). {self.to_go_on()}"
        text = ", ".join(f"{revision} ({percent} %)" for revision, percent in shares.items())
        if shares != {self.revision: 100}:
            return False, f"{f'Traffic goes to {text}' if text else 'Nothing serves'}. {self.to_go_on()}"
        if not self.answers.get(self.revision, False):
            return False, f"{text} serves, unchecked: nothing served before. {self.to_go_on()}"
        return True, f"{text} serves."

    def to_go_on(self) -> str:
        where = f"{self.service} --region {self.region}"
        return (
            f"Logs: gcloud run services logs read {where}; to go on, repeat this deployment; to choose what serves: "
            f"gcloud run revisions list --service {where}, then "
            f"gcloud run services update-traffic {where} --to-revisions REVISION=100"
        )

    def look(self) -> Any:
        """The service; {} if it does not exist. Not describe, which fails then as for a missing permission."""
        found = json.loads(self.gcloud(*f"run services list --region {self.region} --format json".split()))
        return next((service for service in found if service["metadata"]["name"] == self.service), {})

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
        """May be done twice: gcloud reads and writes, and refuses where another deployment wrote in between."""
        self.gcloud("run", "services", "update-traffic", self.service, "--region", self.region, *options)


def without(tags: set[str]) -> list[str]:
    return [f"--remove-tags={','.join(sorted(tags))}"] if tags else []


def gcloud(*arguments: str) -> str:
    """Standard output of a command of gcloud, whose messages go where ours go. All but `replace` are tried again."""
    for left in reversed(range(1 if "replace" in arguments else TRIES)):
        done = subprocess.run(["gcloud", *arguments], stdout=subprocess.PIPE, text=True)
        if done.returncode == 0:
            return done.stdout
        if left:
            time.sleep(RETRY_SECONDS)
    raise Failed(f"this command ended with status {done.returncode}: gcloud {shlex.join(arguments)}")


def smoke(options: list[str], url: str, audience: str) -> bool:
    """Return whether deploy/smoke.py passes, with an identity token for a private service.

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
    parser = argparse.ArgumentParser(description="Deploy an image to Cloud Run; traffic moves once it has answered.")
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
