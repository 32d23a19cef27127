"""deploy/rollout.py against a stand-in for Cloud Run: two at once, cut off, killed and failing at every call."""

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from types import ModuleType

import greenlet
import pytest

from tests.cloud_run import CloudRun, Refused
from tests.conftest import ROOT

SERVICE = "embedding-api"
ACCOUNT = "embedding-api@project.iam.gserviceaccount.com"
OLD, OLDER, NEWER = f"{SERVICE}-20261126-080000-0001", "20261127-080000", "20261127-080200"


@pytest.fixture(scope="module")
def rollout() -> Iterator[ModuleType]:
    """deploy/rollout.py, which finds its neighbour as a program does: in its own folder."""
    sys.path.insert(0, str(ROOT / "deploy"))
    spec = importlib.util.spec_from_file_location("rollout", ROOT / "deploy/rollout.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(ROOT / "deploy"))


class Killed(BaseException):
    """As kill -9: nothing more is done, not even what cleans up."""


class World:
    """A Cloud Run that serves OLD, or nothing yet, and what was asked of it and passed."""

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
        """The image that serves."""
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
        try:
            self.said = self.rollout.report()
        finally:
            self.truth = dict(self.world.serving)

    def pause(self, call: str) -> bool:
        """Wait; then whether this call fails."""
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
        shares = {name: int(percent) for name, percent in re.findall(r"(\S+) \((\d+) %\)", self.said)}
        if self.outcome == "served":
            # A newer build may have taken over between its last look and what it says.
            return shares == self.truth and all(name >= self.rollout.revision for name in shares)
        unchecked = "serves, unchecked: nothing served before" in self.said
        return shares == self.truth and (self.truth == {self.rollout.revision: 100}) == unchecked


def test_one(rollout: ModuleType) -> None:
    """Asked by its own URL, then all the traffic; the tag goes, somebody's own stays."""
    world = World()
    run = Run(rollout, world, "good", NEWER).step()
    assert run.outcome == "served"
    assert run.said == f"{run.rollout.revision} (100 %) serves."
    assert re.fullmatch(rf"{SERVICE}-{NEWER}-[0-9a-f]{{4}}", run.rollout.revision)
    assert world.tags == {"stable": OLD}
    assert world.asked == {run.rollout.revision}
    kinds = [" ".join(call.split()[:3]) for call in run.calls]
    describe = "run services describe"
    replace, move = "run services replace", "run services update-traffic"
    look = ["run revisions list", "run services list"]
    wanted = [*look, replace, describe, describe, "ask", describe, move, describe, *look[1:] * 2]
    assert [kind if not kind.startswith("ask") else "ask" for kind in kinds] == wanted


@pytest.mark.parametrize("first", [False, True])
def test_one_that_does_not_pass(rollout: ModuleType, first: bool) -> None:
    """It gets nothing; what served goes on, and only a first one serves unchecked, which is said."""
    world = World(first)
    run = Run(rollout, world, "bad", NEWER).step()
    assert run.outcome == f"{run.rollout.revision} did not pass."
    assert world.serving == {run.rollout.revision if first else OLD: 100}
    assert ("serves, unchecked: nothing served before" in run.said) == first
    assert "gcloud run services logs read embedding-api --region region" in run.said
    assert "candidate" not in str(world.tags)


@pytest.mark.parametrize("first", [False, True])
def test_one_that_never_gets_ready(rollout: ModuleType, first: bool) -> None:
    world = World(first, never_ready=("dead",))
    run = Run(rollout, world, "dead", NEWER).step()
    assert "is not ready" in run.outcome
    assert run.said.startswith("Nothing serves." if first else f"Traffic goes to {OLD} (100 %).")
    if not first:
        # The tag is off, so the next one is not kept from serving by it.
        assert world.tags == {"stable": OLD}
    assert Run(rollout, world, "good", "20261127-090000").step().outcome == "served"


def test_an_older_build_does_not_replace_a_newer_one(rollout: ModuleType) -> None:
    """Nothing is changed at all: not even a revision is made."""
    world = World()
    Run(rollout, world, "new", NEWER).step()
    before = json.dumps(world.cloud.services)
    run = Run(rollout, world, "old", OLDER).step()
    assert "is of a newer build" in run.outcome
    assert json.dumps(world.cloud.services) == before
    assert run.said_the_truth()


CALLS = 12


@pytest.mark.parametrize(("older", "newer"), [("a", "b"), ("bad a", "b"), ("a", "bad b"), ("bad a", "bad b")])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("swapped", [False, True])
def test_two_at_once(rollout: ModuleType, older: str, newer: str, first: bool, swapped: bool) -> None:
    """Each goes any number of steps before the other one goes on: in the end the newest that passes serves."""
    for here in range(CALLS):
        for there in range(CALLS + 4):
            world = World(first)
            runs = [Run(rollout, world, older, OLDER), Run(rollout, world, newer, NEWER)]
            one, other = reversed(runs) if swapped else runs
            one.step(here)
            other.step(there)
            one.step()
            other.step()
            passing = [image for image in (newer, older) if not image.startswith("bad")]
            case = (here, there, [run.outcome for run in runs], world.serving)
            assert all(run.said_the_truth() for run in runs), (case, [(run.said, run.truth, run.calls) for run in runs])
            if passing and not (first and world.image().startswith("bad")):
                assert world.image() == passing[0], case
            if not first:
                assert (runs[1].outcome == "served") == (not newer.startswith("bad")), case
                assert world.nothing_unchecked_serves(), case
                if not passing:
                    assert world.serving == {OLD: 100}, case
                if len(world.tags) > 1:
                    # One that failed had put back a tag that the other had taken off: it goes with the next move.
                    assert len(passing) < 2, case
                    Run(rollout, world, "c", "20261127-090000").step()
                assert world.tags == {"stable": OLD}, case


@pytest.mark.parametrize("image", ["a", "bad a"])
@pytest.mark.parametrize("at", range(CALLS))
def test_killed_at_every_call(rollout: ModuleType, image: str, at: int) -> None:
    """Nothing unchecked serves, and the next deployment clears up."""
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
    world = World()
    run = Run(rollout, world, image, NEWER)
    run.fail_at = at
    run.step()
    assert world.nothing_unchecked_serves()
    assert run.outcome
    if "could not be read" in run.said:
        assert "See: gcloud run services describe" in run.said
    elif run.outcome == "served" or world.serving == {OLD: 100}:
        assert run.said_the_truth()
    else:
        # It was moved, and what came after failed: the sentence is true all the same.
        assert world.serving == {run.rollout.revision: 100}
        assert run.said == f"{run.rollout.revision} (100 %) serves."


@pytest.mark.parametrize("at", range(CALLS))
def test_killed_beside_another(rollout: ModuleType, at: int) -> None:
    """One dies at any call while another is at any of its own: never anything unchecked."""
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
        (["Service", "region", "image", ACCOUNT], "'Service' is no name: at most 32 lower-case letters"),
        (["s" * 33, "region", "image", ACCOUNT], "is no name: at most 32"),
        (["s", "region", "image", ACCOUNT, "--built", "yesterday"], "'yesterday' is no time like 20261231-235959"),
        (["s", "region", "image"], "the following arguments are required: account"),
    ],
)
def test_what_it_was_called_with(
    rollout: ModuleType,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    says: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["rollout.py", *arguments])
    with pytest.raises(SystemExit):
        rollout.main()
    assert says in capsys.readouterr().err
