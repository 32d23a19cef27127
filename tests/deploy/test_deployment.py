"""Deployments by the pipeline and by deploy/rollout.py alone: who gets traffic, and what a failure leaves."""

import json
import re
import subprocess
import time
from http.server import BaseHTTPRequestHandler

import pytest

from tests.support.pipeline import ACCOUNT, DIGEST, MOVE, OLD, PROJECT, ROLLOUT, SERVICE, Pipeline
from tests.support.schema import problems
from tests.support.server import Server, free_port
from tests.support.stand_ins import altered, answering, vectors


def test_first_deployment(pipeline: Pipeline) -> None:
    """In a new service the first revision gets all traffic, and a tag for its check."""
    assert pipeline.run()[0] == ""
    revision = pipeline.applied["spec"]["template"]["metadata"]["name"]
    built = (pipeline.folder / "built.txt").read_text().strip()
    assert re.fullmatch(rf"embedding-api-{built}-\w{{4}}", revision)
    assert pipeline.applied["spec"]["traffic"] == [
        {"revisionName": revision, "percent": 100},
        {"revisionName": revision, "tag": f"candidate-{revision[-4:]}"},
    ]
    wanted = json.loads(json.dumps(SERVICE))
    wanted["spec"]["traffic"] = pipeline.applied["spec"]["traffic"]
    wanted["spec"]["template"]["metadata"]["name"] = revision
    container = wanted["spec"]["template"]["spec"]["containers"][0]
    container["image"] = DIGEST
    project = next(variable for variable in container["env"] if variable["name"] == "GOOGLE_CLOUD_PROJECT")
    project["value"] = PROJECT
    wanted["spec"]["template"]["spec"]["serviceAccountName"] = ACCOUNT
    assert pipeline.applied == wanted
    assert problems("knative-service.json", pipeline.applied) == []


def test_next_deployment(pipeline: Pipeline) -> None:
    """The serving revision keeps the traffic by name until the new one has answered; other tags stay."""
    pipeline.serves(
        {"revisionName": OLD, "percent": 90},
        {"revisionName": "older", "percent": 10},
        {"revisionName": "older", "tag": "stable"},
        {"revisionName": OLD, "tag": "candidate"},
    )
    failed, output = pipeline.run()
    assert failed == "", output
    new = pipeline.applied["spec"]["template"]["metadata"]["name"]
    assert pipeline.applied["spec"]["traffic"] == [
        {"revisionName": OLD, "percent": 90},
        {"revisionName": "older", "percent": 10},
        {"revisionName": "older", "tag": "stable"},
        {"revisionName": OLD, "tag": "candidate"},
        {"revisionName": new, "tag": f"candidate-{new[-4:]}"},
    ]
    assert problems("knative-service.json", pipeline.applied) == []
    service = json.loads((pipeline.folder / "cloud_run.json").read_text())["embedding-api"]
    assert service["status"] == [{"revisionName": new, "percent": 100}, {"revisionName": "older", "tag": "stable"}]
    assert f"{new} (100 %) serves." in output


def test_a_service_of_another_name(pipeline: Pipeline) -> None:
    """_SERVICE names the service."""
    assert pipeline.run(_SERVICE="other")[0] == ""
    assert pipeline.applied["metadata"]["name"] == "other"


def test_a_newer_build_stays(pipeline: Pipeline) -> None:
    """A build that began before the serving one ends without a change, and the tag latest stays."""
    newer = "embedding-api-29991231-235959-0000"
    pipeline.serves({"revisionName": newer, "percent": 100})
    failed, output = pipeline.run()
    assert failed == "deploy"
    assert f"FAILED: {newer}, which serves, is of a newer build" in output
    assert f"Traffic goes to {newer} (100 %)." in output
    assert not pipeline.called("replace") and not pipeline.called("tags add")


def test_interrupted(pipeline: Pipeline) -> None:
    """SIGTERM ends a deployment with its tag removed and a message about the serving revision."""
    pipeline.serves({"revisionName": OLD, "percent": 100})
    command = [*ROLLOUT, "--timeout", "60"]
    environ = {**pipeline.environ, "SERVER": f"http://127.0.0.1:{free_port()}"}
    with subprocess.Popen(command, cwd=pipeline.folder, env=environ, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 60
        while not pipeline.called("print-identity-token") and time.monotonic() < until:
            time.sleep(0.05)
        process.terminate()
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "FAILED: interrupted by SIGTERM." in said
    assert f"Traffic goes to {OLD} (100 %)." in said
    service = json.loads((pipeline.folder / "cloud_run.json").read_text())["embedding-api"]
    assert service["spec"] == [{"revisionName": OLD, "percent": 100}]


def test_a_candidate_that_does_not_answer_gets_no_traffic(pipeline: Pipeline) -> None:
    """The old revision keeps the traffic if the new one does not answer in time."""
    pipeline.serves({"revisionName": OLD, "percent": 100})
    run = pipeline.call([*ROLLOUT, "--timeout", "0.5"], SERVER=f"http://127.0.0.1:{free_port()}")
    assert run.returncode == 1
    assert "did not pass." in run.stdout
    assert f"Traffic goes to {OLD} (100 %)." in run.stdout
    assert not re.search(MOVE, "\n".join(pipeline.calls))


def test_a_candidate_that_answers_wrongly_gets_no_traffic(pipeline: Pipeline, server: Server) -> None:
    """The old revision keeps the traffic if the new one fails the smoke test."""
    pipeline.serves({"revisionName": OLD, "percent": 100})
    with altered(server, vectors(lambda given: [given[0]] * 3)) as url:
        run = pipeline.call(ROLLOUT, SERVER=url)
    assert run.returncode == 1
    assert "the same vector for different texts" in run.stdout
    assert not re.search(MOVE, "\n".join(pipeline.calls))


@pytest.mark.parametrize(
    ("fail", "token", "reasons"),
    [("", "Bearer token", 0), ("--audiences", "Bearer token", 1), ("print-identity-token", None, 2)],
)
def test_a_candidate_is_asked_with_a_token_if_there_is_one(
    pipeline: Pipeline, server: Server, fail: str, token: str | None, reasons: int
) -> None:
    """Service accounts get a token for the service's URL, users one without an audience; a public service needs none.

    The reason why there is none is printed only if the check fails.
    """
    seen: list[str | None] = []

    def refuse(request: BaseHTTPRequestHandler) -> None:
        seen.append(request.headers.get("Authorization"))
        request.send_error(404)

    with answering(refuse) as url:
        run = pipeline.call([*ROLLOUT, "--timeout", "0"], FAIL=fail, SERVER=url)
    assert seen == [token]
    assert run.stdout.count("the stand-in fails: gcloud auth print-identity-token") == reasons
    assert ("What gcloud said when it was asked for an identity token:\n" in run.stdout) == bool(reasons)
    passed = pipeline.call(ROLLOUT, FAIL=fail)
    assert passed.returncode == 0, passed.stdout
    assert "asked for an identity token" not in passed.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (ROLLOUT[:-1], "the following arguments are required: account"),
        ([*ROLLOUT[:-1], "embedding-api"], "The service account is 'embedding-api'; it must be a whole e-mail address"),
        ([*ROLLOUT[:-1], "--allow-stand-in"], "the following arguments are required: account"),
    ],
)
def test_nothing_is_deployed_without_an_account(pipeline: Pipeline, arguments: list[str], says: str) -> None:
    """Without an account nothing is deployed: it would run as the default account, which has many rights."""
    run = pipeline.call(arguments)
    assert run.returncode != 0
    assert says in run.stdout
    assert not pipeline.called("services replace")


def test_the_manifest_needs_its_places(pipeline: Pipeline) -> None:
    """A service.yaml without the line to replace stops the deployment before anything is applied."""
    path = pipeline.folder / "service.yaml"
    path.write_text(path.read_text().replace("- image:", "-  # moved\n          image:"))
    run = pipeline.call(ROLLOUT)
    assert run.returncode == 1
    assert "service.yaml has 0 places that match" in run.stdout
    assert not pipeline.called("replace")
