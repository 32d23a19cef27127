"""deploy/rollout.py with a stand-in for Cloud Run: two at once, interrupted, killed, and failing at every call."""

import importlib.util
import itertools
import json
import random
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType

import greenlet
import pytest

from tests.support import ROOT, gcloud
from tests.support.cloud_run import CloudRun, Refused

SERVICE = "embedding-api"
ACCOUNT = "embedding-api@project.iam.gserviceaccount.com"
OLD, OLDER, NEWER = f"{SERVICE}-20261126-080000-0001", "20261127-080000", "20261127-080200"


@pytest.fixture(scope="module")
def rollout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The module deploy/rollout.py, imported with its own folder in the path."""
    spec = importlib.util.spec_from_file_location("rollout", ROOT / "deploy/rollout.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "deploy"))
        # a deployment that is killed leaves its manifest there
        patch.setattr("tempfile.tempdir", str(tmp_path_factory.mktemp("manifests")))
        spec.loader.exec_module(module)
        yield module


class Killed(BaseException):
    """Ends a deployment like kill -9: nothing runs after it, not even cleaning up."""


class World:
    """A Cloud Run that serves OLD, or nothing yet, with the checks that were made and their results."""

    def __init__(self, first: bool = False, never_ready: tuple[str, ...] = ()) -> None:
        self.cloud = CloudRun(never_ready=never_ready)
        self.asked: set[str] = set()
        if not first:
            target = {"revisionName": OLD, "percent": 100}
            self.cloud.services[SERVICE] = {
                "generation": 4,
                "images": {OLD: "old"},
                "spec": [target, {"revisionName": OLD, "tag": "stable"}],
                "status": [target, {"revisionName": OLD, "tag": "stable"}],
            }

    @property
    def serving(self) -> dict[str, int]:
        return self.cloud.serving(SERVICE)

    @property
    def tags(self) -> dict[str, str]:
        targets = self.cloud.services.get(SERVICE, {"spec": []})["spec"]
        return {target["tag"]: target["revisionName"] for target in targets if "tag" in target}

    def image(self) -> str:
        """Return the image that serves."""
        assert len(self.serving) == 1
        return str(self.cloud.services[SERVICE]["images"][next(iter(self.serving))])

    def nothing_unchecked_serves(self) -> bool:
        return set(self.serving) <= self.asked | {OLD}


class Run:
    """One deployment; each call waits until step() lets it through. Images that begin with "bad" do not pass."""

    def __init__(self, rollout: ModuleType, world: World, image: str, built: str) -> None:
        self.module, self.world, self.image = rollout, world, image
        self.fail_at = self.kill_at = -1
        self.calls: list[str] = []
        self.outcome = self.said = ""
        self.succeeded = False
        self.rollout = rollout.Rollout(SERVICE, "region", built, self.gcloud, self.passes)
        self.greenlet = greenlet.greenlet(self.run)

    def run(self) -> None:
        with suppress(Killed):
            self.deploy()

    def deploy(self) -> None:
        try:
            self.rollout.run(self.image, ACCOUNT)
            self.outcome = "served"
        except self.module.Failed as error:
            self.outcome = str(error)
        serves, self.said = self.rollout.report()
        self.truth = dict(self.world.serving)
        self.succeeded = serves and self.outcome == "served"

    def pause(self, call: str) -> bool:
        """Wait for the next step, then return whether this call fails."""
        self.calls.append(call)
        if self.greenlet.parent is not None:
            self.greenlet.parent.switch()
        if len(self.calls) - 1 == self.kill_at:
            raise Killed
        return len(self.calls) - 1 == self.fail_at

    def gcloud(self, *arguments: str) -> str:
        if self.pause(" ".join(arguments)):
            raise self.module.Failed("the stand-in fails")
        try:
            return self.world.cloud(*arguments)
        except Refused as error:
            raise self.module.Failed(str(error)) from None

    def passes(self, url: str, _: str) -> bool:
        if self.pause(f"ask {url}"):
            return False
        revision, image = self.world.cloud.image_at(SERVICE, url)
        passed = bool(revision) and not image.startswith("bad")
        if passed:
            self.world.asked.add(revision)
        return passed

    def step(self, times: int = 1000) -> "Run":
        for _ in range(times):
            if not self.greenlet.dead:
                self.greenlet.switch()
        return self

    def said_the_truth(self) -> bool:
        """Check that messages are true when printed, and that the exit status is 0 only if the run's image serves."""
        if "could not be read" in self.said:
            return not self.succeeded
        shares = {name: int(percent) for name, percent in re.findall(r"(\S+) \((\d+) %\)", self.said)}
        return shares == self.truth and (not self.succeeded or self.truth == {self.rollout.revision: 100})


def test_one(rollout: ModuleType) -> None:
    """A new revision is checked at its own URL, then gets all traffic; its tag is removed, other tags stay."""
    world = World()
    run = Run(rollout, world, "good", NEWER).step()
    assert run.outcome == "served"
    assert run.said == f"{run.rollout.revision} (100 %) serves."
    assert re.fullmatch(rf"{SERVICE}-{NEWER}-[0-9a-f]{{4}}", run.rollout.revision)
    assert world.tags == {"stable": OLD}
    assert world.asked == {run.rollout.revision}
    assert run.succeeded
    kinds = [" ".join(call.split()[:3]) for call in run.calls]
    look, replace, move = "run services list", "run services replace", "run services update-traffic"
    wanted = ["run revisions list", look, replace, look, look, "ask", look, move, look, look, look]
    assert [kind if not kind.startswith("ask") else "ask" for kind in kinds] == wanted


@pytest.mark.parametrize("first", [False, True])
def test_one_that_does_not_pass(rollout: ModuleType, first: bool) -> None:
    """An image that fails its check gets no traffic; only a first revision serves unchecked, as its message says."""
    world = World(first)
    run = Run(rollout, world, "bad", NEWER).step()
    assert run.outcome == f"{run.rollout.revision} did not pass."
    assert world.serving == {run.rollout.revision if first else OLD: 100}
    assert ("serves, unchecked: nothing served before" in run.said) == first
    assert not run.succeeded
    assert "gcloud run services logs read embedding-api --region region" in run.said
    assert "candidate" not in str(world.tags)


@pytest.mark.parametrize("first", [False, True])
def test_one_that_never_gets_ready(rollout: ModuleType, first: bool) -> None:
    """A revision that never gets ready gets no traffic."""
    world = World(first, never_ready=("dead",))
    run = Run(rollout, world, "dead", NEWER).step()
    assert "is not ready" in run.outcome
    assert run.said.startswith("Nothing serves." if first else f"Traffic goes to {OLD} (100 %).")
    if not first:
        # The tag is off, so the next one is not kept from serving by it.
        assert world.tags == {"stable": OLD}
    assert Run(rollout, world, "good", "20261127-090000").step().outcome == "served"


def test_an_older_build_does_not_replace_a_newer_one(rollout: ModuleType) -> None:
    """An older build changes nothing: it makes no revision."""
    world = World()
    Run(rollout, world, "new", NEWER).step()
    before = json.dumps(world.cloud.services)
    run = Run(rollout, world, "old", OLDER).step()
    assert "is of a newer build" in run.outcome
    assert json.dumps(world.cloud.services) == before
    assert run.said_the_truth()


def test_a_service_of_a_similar_name(rollout: ModuleType) -> None:
    """The traffic of another service stays."""
    world = World()
    world.cloud.services = {f"{SERVICE}-2": world.cloud.services[SERVICE]}
    other = json.dumps(world.cloud.services[f"{SERVICE}-2"])
    assert Run(rollout, world, "good", NEWER).step().succeeded
    assert json.dumps(world.cloud.services[f"{SERVICE}-2"]) == other


def test_gcloud_knows_what_is_run_and_what_is_said(rollout: ModuleType) -> None:
    """gcloud has every command that a deployment runs beside another one, and every one that its messages recommend."""
    world = World()
    runs = [Run(rollout, world, "bad a", OLDER), Run(rollout, world, "b", NEWER)]
    runs[0].step(3)
    runs[1].step()
    runs[0].step()
    calls = [call for run in runs for call in run.calls if not call.startswith("ask")]
    said = re.findall(r"gcloud (run [^;,]*)", runs[0].rollout.next_steps())
    assert len(said) == 3 and any("--update-tags" in call for call in calls)
    assert [problem for command in [*calls, *said] for problem in gcloud.problems(command.split())] == []


# More than a deployment makes beside another.
CALLS = 20
IMAGES = ["good", "bad", "dead"]  # passes; does not pass; never gets ready


def outcome_of(world: World, runs: list[Run], images: list[str]) -> None:
    """Check the final state: the images are those of the runs, the newest last."""
    case = [(run.image, run.outcome, run.said, run.calls) for run in runs], world.serving
    assert all(run.said_the_truth() for run in runs), case
    assert world.nothing_unchecked_serves(), case
    passing = [image for image in images if image.startswith("good")]
    assert world.image() == (passing[-1] if passing else "old"), case
    if len(world.tags) > 1:
        # One that failed had put back a tag that the other had taken off: it goes with the next move.
        assert len(passing) < len(images), case
        Run(runs[0].module, world, "good c", "20261127-090000").step()
    assert world.tags == {"stable": OLD}, case


@pytest.mark.parametrize(("older", "newer"), [*itertools.product(IMAGES, IMAGES)])
@pytest.mark.parametrize("swapped", [False, True])
def test_two_at_once(rollout: ModuleType, older: str, newer: str, swapped: bool) -> None:
    """Two deployments, interleaved at any step: in the end the newest image that passes serves."""
    for here, there in itertools.product(range(CALLS), range(CALLS)):
        world = World(never_ready=("dead a", "dead b"))
        runs = [Run(rollout, world, f"{older} a", OLDER), Run(rollout, world, f"{newer} b", NEWER)]
        one, other = reversed(runs) if swapped else runs
        is_new = len(one.step(here).calls) >= here and len(other.step(there).calls) >= there  # it makes so many calls
        # To the end in any case: a greenlet that is collected in the middle goes on in the middle of another case.
        one.step()
        other.step()
        if is_new:
            outcome_of(world, runs, [run.image for run in runs])


def test_two_at_once_step_by_step(rollout: ModuleType) -> None:
    """Two deployments, interleaved at random: in the end the newest image that passes serves."""
    for seed in range(500):
        chance = random.Random(seed)
        world = World(never_ready=("dead a", "dead b"))
        runs = [
            Run(rollout, world, f"{chance.choice(IMAGES)} {name}", built)
            for name, built in (("a", OLDER), ("b", NEWER))
        ]
        while not all(run.greenlet.dead for run in runs):
            chance.choice(runs).step(chance.randint(1, 4))
        outcome_of(world, runs, [run.image for run in runs])


@pytest.mark.parametrize(("older", "newer"), [("good a", "good b"), ("bad a", "good b"), ("good a", "bad b")])
def test_two_at_once_where_nothing_served(rollout: ModuleType, older: str, newer: str) -> None:
    """A first revision serves before its check; the messages are true, and the newest good image serves in the end."""
    for here, there in itertools.product(range(CALLS), range(CALLS)):
        world = World(first=True)
        runs = [Run(rollout, world, older, OLDER), Run(rollout, world, newer, NEWER)]
        runs[0].step(here)
        runs[1].step(there)
        for run in runs:
            run.step()
        assert all(run.said_the_truth() for run in runs)
        if newer.startswith("good"):
            assert world.image() == newer


@pytest.mark.parametrize("image", ["a", "bad a"])
@pytest.mark.parametrize("at", range(CALLS))
def test_killed_at_every_call(rollout: ModuleType, image: str, at: int) -> None:
    """After a killed deployment nothing unchecked serves, and the next deployment removes its remains."""
    world = World()
    run = Run(rollout, world, image, OLDER)
    run.kill_at = at
    run.step()
    assert world.nothing_unchecked_serves()
    assert Run(rollout, world, "b", NEWER).step().outcome == "served"
    assert world.image() == "b"
    assert world.tags == {"stable": OLD}


@pytest.mark.parametrize("image", ["a", "bad a"])
@pytest.mark.parametrize("at", range(CALLS))
def test_failing_at_every_call(rollout: ModuleType, image: str, at: int) -> None:
    """A deployment whose calls fail leaves no unchecked revision serving, and says what serves."""
    world = World()
    run = Run(rollout, world, image, NEWER)
    run.fail_at = at
    run.step()
    assert world.nothing_unchecked_serves()
    assert run.said_the_truth()
    assert "gcloud run services logs read" in run.said or world.serving == {run.rollout.revision: 100}


@pytest.mark.parametrize("at", range(CALLS))
def test_killed_beside_another(rollout: ModuleType, at: int) -> None:
    """One deployment is killed at any call while another is at any of its own: nothing unchecked ever serves."""
    for there in range(CALLS):
        for killed, alive in [(OLDER, NEWER), (NEWER, OLDER)]:
            world = World()
            one, other = Run(rollout, world, "a", killed), Run(rollout, world, "b", alive)
            one.kill_at = at
            other.step(there)
            one.step()
            other.step()
            assert world.nothing_unchecked_serves(), (there, killed)
            assert other.said_the_truth(), (there, killed, other.said)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["s", "region", "image:latest", ACCOUNT], "'image:latest' has no digest: it must be like REPOSITORY@sha256:"),
        (["s", "region", "image@sha256:0123", ACCOUNT], "there is no gcloud in PATH"),
        (["Service", "region", "image@sha256:0123", ACCOUNT], "'Service' is no name: at most 32 lower-case letters"),
        (["s" * 33, "region", "image@sha256:0123", ACCOUNT], "is no name: at most 32"),
        (
            ["s", "region", "image@sha256:0123", ACCOUNT, "--built", "yesterday"],
            "'yesterday' is no time like 20261231-235959",
        ),
        (["s", "region", "image@sha256:0123"], "the following arguments are required: account"),
    ],
)
def test_what_it_was_called_with(
    rollout: ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    says: str,
) -> None:
    """Wrong arguments are refused at once, with the reason."""
    monkeypatch.setattr(sys, "argv", ["rollout.py", *arguments])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit):
        rollout.main()
    assert says in capsys.readouterr().err
