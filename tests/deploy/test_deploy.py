"""The way to Cloud Run, as far as it can be walked here: the files against their schemas and against what they
name, and the pipeline's own scripts with stand-ins for docker and gcloud."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import Settings
from build import verify
from tests.support import ROOT
from tests.support.schema import problems
from tests.support.server import Server, free_port
from tests.support.stand_ins import altered, answering, model, quality, vectors

BUILD = yaml.safe_load((ROOT / "cloudbuild.yaml").read_text())
STEPS = {step["id"]: step for step in BUILD["steps"]}
SCRIPTS = "\n".join(step["script"] for step in BUILD["steps"])
SERVICE = yaml.safe_load((ROOT / "service.yaml").read_text())
POD = SERVICE["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
# Substitutions of every build, and those of builds that a trigger starts.
ALWAYS = {"PROJECT_ID": "project", "BUILD_ID": "build-1"}
TRIGGERED = {"COMMIT_SHA": "c0ffee", "REPO_FULL_NAME": "owner/name"}
DIGEST = "asia-northeast1-docker.pkg.dev/project/embedding-api/embedding-api@sha256:0123"
IMAGE = DIGEST.partition("@")[0]
PROJECT = "project"
ACCOUNT = f"embedding-api@{PROJECT}.iam.gserviceaccount.com"
ROLLOUT = ["python3", "deploy/rollout.py", "embedding-api", "asia-northeast1", DIGEST, ACCOUNT]
OLD = "embedding-api-00001-abc"


def test_schemas() -> None:
    """Cloud Build and Knative know every field, of the right type."""
    assert problems("cloudbuild.json", BUILD) == []
    assert problems("knative-service.json", SERVICE) == []


def test_the_schemas_refuse_what_is_misspelt() -> None:
    document = json.loads(json.dumps(SERVICE).replace("containerConcurrency", "concurrency"))
    assert "concurrency" in problems("knative-service.json", document)[0]
    document = json.loads(json.dumps(BUILD).replace("waitFor", "waitfor"))
    assert "waitfor" in problems("cloudbuild.json", document)[0]


def test_service_names_what_there_is() -> None:
    """Variables are settings, probes ask routes, and Cloud Run's own PORT is left to it."""
    variables = {variable["name"]: variable["value"] for variable in CONTAINER["env"]}
    assert set(variables) <= {field.name.upper() for field in fields(Settings)} - {"PORT"}
    settings = Settings.from_env(variables)
    assert settings.max_queue > POD["containerConcurrency"]
    assert settings.request_deadline < POD["timeoutSeconds"]
    assert [port["containerPort"] for port in CONTAINER["ports"]] == [settings.port]
    routes = yaml.safe_load((ROOT / "app/openapi.yml").read_text())["paths"]
    for probe in ("startupProbe", "livenessProbe"):
        assert "get" in routes[CONTAINER[probe]["httpGet"]["path"]]
        # Cloud Run refuses the other way round
        assert CONTAINER[probe]["timeoutSeconds"] <= CONTAINER[probe]["periodSeconds"]


def test_substitutions() -> None:
    """Every substitution in use is declared or Cloud Build's own, and every declared one is used."""
    names = "\n".join([SCRIPTS, *BUILD["options"]["env"], *(step["name"] for step in BUILD["steps"])])
    used = set(re.findall(r"\$\{?(_?[A-Z][A-Z_]+)", names))
    declared = set(BUILD["substitutions"])
    own = {line.partition("=")[0] for line in BUILD["options"]["env"]} | {"HF_TOKEN"}
    assert {name for name in used if name.startswith("_")} == declared
    assert used - declared - own <= set(ALWAYS) | set(TRIGGERED)
    assert SERVICE["metadata"]["name"] == BUILD["substitutions"]["_SERVICE"]


def test_build_names_what_there_is() -> None:
    """Build arguments, stages, the secret and files are those of the Dockerfile and of the repository."""
    arguments = re.findall(r"--build-arg \"(\w+)=", SCRIPTS)
    assert len(arguments) == 6
    assert set(arguments) <= set(re.findall(r"^ARG (\w+)", DOCKERFILE, re.M))
    assert f"ARG MODEL={BUILD['substitutions']['_MODEL']}\n" in DOCKERFILE
    assert f"ARG PYTHON_IMAGE={BUILD['substitutions']['_PYTHON_IMAGE']}\n" in DOCKERFILE
    for stage in re.findall(r"--target (\w+)", SCRIPTS):
        assert f" AS {stage}\n" in DOCKERFILE
    for secret in re.findall(r"--secret id=(\w+)", SCRIPTS):
        assert f"--mount=type=secret,id={secret}" in DOCKERFILE
    files = set(re.findall(r"\b(?:deploy|requirements)/[\w.]+", SCRIPTS))
    assert files == {"requirements/audit", "deploy/smoke.py", "deploy/rollout.py"}
    for file in files:
        assert (ROOT / file).is_file(), file


def test_the_check_runs_the_image_as_small_as_it_will_be() -> None:
    limits = CONTAINER["resources"]["limits"]
    memory = limits["memory"].replace("Gi", "g")
    assert f"--cpus {limits['cpu']} --memory {memory} " in STEPS["check"]["script"]


def test_nothing_is_pushed_beside_a_check() -> None:
    """Cloud Build starts a step when those of its waitFor are done; without one, when all before it are."""
    order = list(STEPS)
    for step in ("push", "sbom", "deploy", "latest"):
        assert "waitFor" not in STEPS[step]
        assert {"audit", "build", "check"} < {*order[: order.index(step)], step}
    assert STEPS["check"]["waitFor"] == ["build"]


@pytest.fixture(scope="module")
def server(start: Callable[..., Server], tiny_model: Path) -> Server:
    return start(MODEL_DIR=tiny_model, MAX_LENGTH="64").wait_until_ready()


# Stands in for docker and gcloud: notes the call, fails where FAIL matches it, else answers plausibly;
# `gcloud run` is answered by tests/support/cloud_run.py.
STUB = f"""
import json, os, re, runpy, sys
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
call = " ".join([name, *arguments])
with open(os.environ["CALLS"], "a") as calls:
    calls.write(call + "\\n")
if re.search(os.environ["FAIL"] or "$^", call):
    sys.exit(f"the stand-in fails: {{call}}")
if arguments[:3] == ["run", "services", "replace"]:
    with open(arguments[3]) as manifest, open("applied.yaml", "w") as applied:
        applied.write(manifest.read())
if name == "gcloud" and arguments[0] != "artifacts":
    runpy.run_path({str(ROOT / "tests/support/cloud_run.py")!r}, run_name="__main__")
elif "inspect" in arguments:
    print(os.environ["BYTES"] if "{{{{.Size}}}}" in arguments else os.environ["DIGEST"])
elif arguments[:2] == ["run", "--rm"]:
    given = arguments[arguments.index("python") + 2 :]
    os.execv(sys.executable, [sys.executable, "-", os.environ["SERVER"], *given[1:]])
elif arguments[0] == "logs":
    print("the log of the container")
"""


class Pipeline:
    """A checkout in a folder of its own, with stand-ins for docker, gcloud and the audit in PATH."""

    def __init__(self, folder: Path, server: str) -> None:
        self.folder = folder
        shutil.copytree(ROOT / "deploy", folder / "deploy", ignore=shutil.ignore_patterns("__pycache__"))
        rollout = folder / "deploy/rollout.py"
        rollout.write_text(rollout.read_text().replace("RETRY_SECONDS = 3, 5", "RETRY_SECONDS = 3, 0"))
        shutil.copy(ROOT / "service.yaml", folder)
        (folder / "requirements").mkdir()
        (folder / "requirements/audit").write_text('docker audit "$@"\n')
        (folder / "bin").mkdir()
        for name in ("docker", "gcloud"):
            stub = folder / "bin" / name
            stub.write_text(f"#!{sys.executable}\n{STUB}")
            stub.chmod(0o755)
        (folder / "bin/python3").symlink_to(sys.executable)
        self.environ = {
            "PATH": f"{folder / 'bin'}:{os.defpath}",
            "CALLS": str(folder / "calls"),
            "FAIL": "",
            "BYTES": "400000000",
            "DIGEST": DIGEST,
            "SERVER": server,
            "CLOUD_RUN": str(folder / "cloud_run.json"),
        }
        (folder / "cloud_run.json").write_text("{}")

    def serves(self, *targets: dict[str, Any]) -> None:
        """Let Cloud Run have a service with these targets of its traffic."""
        images = {target["revisionName"]: "old" for target in targets}
        service = {"generation": 7, "images": images, "spec": list(targets), "status": list(targets)}
        (self.folder / "cloud_run.json").write_text(json.dumps({"embedding-api": service}))

    def run(self, triggered: bool = True, **environ: str) -> tuple[str, str]:
        """Run the steps in their order until one fails: its id ("" if all went well) and all output."""
        values = {**BUILD["substitutions"], **ALWAYS, **(TRIGGERED if triggered else {}), **environ}
        for line in BUILD["options"]["env"]:
            name, _, value = line.partition("=")
            values[name] = re.sub(r"\$\{(\w+)\}", lambda match: values[match[1]], value)
        # An empty one may be handed over or left out; the scripts must bear that, too.
        values = {name: value for name, value in values.items() if value}
        output = ""
        for step in BUILD["steps"]:
            script = self.folder / "script"
            script.write_text(step["script"])
            script.chmod(0o755)
            done = self.call([str(script)], **values)
            output += done.stdout
            if done.returncode != 0:
                return str(step["id"]), output
        return "", output

    def call(self, command: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**self.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @property
    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    @property
    def applied(self) -> Any:
        return yaml.safe_load((self.folder / "applied.yaml").read_text())

    def called(self, *words: str) -> bool:
        return any(all(word in call for word in words) for call in self.calls)


@pytest.fixture
def pipeline(tmp_path: Path, server: Server) -> Pipeline:
    return Pipeline(tmp_path, server.url)


MOVE = "gcloud run services update-traffic .*--to-revisions"


def test_pipeline(pipeline: Pipeline) -> None:
    """From a push to traffic: everything in order, and what was checked is what serves."""
    failed, output = pipeline.run()
    assert failed == "", output
    tagged = f"{IMAGE}:c0ffee"
    wanted = [
        "docker audit",
        "docker buildx create .* --driver-opt image=docker.io/moby/buildkit:v[0-9.]+(@sha256:[0-9a-f]+)?$",
        f"docker buildx build .* --load --tag {tagged} --tag {IMAGE}:build-1 --cache-to .*ref={IMAGE}:cache.* .",
        "docker buildx build .* --target sbom --output type=local,dest=. .",
        f"docker image inspect .* {tagged}",
        "docker network create --internal check",
        f"docker run --detach .* --network check .* {tagged}",
        f"docker run --rm .* --network check {tagged} python - http://candidate:8080",
        f"docker push {tagged}",
        f"docker push {IMAGE}:build-1",
        f"docker image inspect .* {tagged}",
        f"gcloud artifacts sbom load --source sbom.cdx.json --uri {DIGEST} --destination gs://project_cloudbuild",
        "gcloud run revisions list --service embedding-api --region asia-northeast1 --format json",
        "gcloud run services list --region asia-northeast1 --format json",
        "gcloud run services replace .* --region asia-northeast1",
        "gcloud run services list",
        "gcloud run services list",
        "gcloud auth print-identity-token --audiences=https://service.example",
        "gcloud run services list",
        rf"{MOVE}=embedding-api-\d{{8}}-\d{{6}}-\w{{4}}=100 --remove-tags=candidate-\w{{4}}",
        "gcloud run services list",
        "gcloud run services list",
        "gcloud run services list",
        f"gcloud artifacts docker tags add {DIGEST} {IMAGE}:latest",
    ]
    assert len(pipeline.calls) == len(wanted), pipeline.calls
    for call, pattern in zip(pipeline.calls, wanted, strict=True):
        assert re.fullmatch(f"{pattern}.*", call), (call, pattern)
    assert output.count("ok: /embed gives 3 vectors") == 2
    assert "--build-arg VCS_URL=https://github.com/owner/name --build-arg VCS_REVISION=c0ffee" in pipeline.calls[2]


def test_pipeline_by_hand(pipeline: Pipeline) -> None:
    """Submitted by hand, there is no commit and no repository's name: the build's id stands in."""
    failed, output = pipeline.run(triggered=False)
    assert failed == "", output
    assert pipeline.called("docker push", f"{IMAGE}:build-1")
    assert pipeline.called("--build-arg VCS_URL= --build-arg VCS_REVISION= ")


@pytest.mark.parametrize(
    ("fail", "step", "never"),
    [
        ("docker audit", "audit", "docker push"),
        ("buildx create", "build", "docker run"),
        (f"--tag {IMAGE}:c0ffee", "build", "docker run"),
        ("--target sbom", "build", "docker run"),
        ("network create", "check", "docker run"),
        ("image inspect --format {{.Size}}", "check", "docker run"),
        ("docker run --detach", "check", "docker push"),
        ("docker run --rm", "check", "docker push"),
        ("docker push .*:c0ffee", "push", "gcloud"),
        ("docker push .*:build-1", "push", "gcloud"),
        ("RepoDigests", "push", "gcloud"),
        ("sbom load", "sbom", "gcloud run"),
        ("services list", "deploy", "services replace"),
        ("services replace", "deploy", MOVE),
        ("revisions list", "deploy", "services replace"),
        (MOVE, "deploy", "tags add"),
        ("tags add", "latest", "^$"),
    ],
)
def test_a_failing_command_ends_the_pipeline(pipeline: Pipeline, fail: str, step: str, never: str) -> None:
    failed, output = pipeline.run(FAIL=fail)
    assert failed == step, output
    assert not any(re.search(never, call) for call in pipeline.calls), pipeline.calls


def test_an_image_that_does_not_pass_is_not_pushed(pipeline: Pipeline, server: Server) -> None:
    """The check's reason and the container's log are in the build's log."""
    with altered(server, quality("int8", "mean", 0.9)) as url:
        failed, output = pipeline.run(SERVER=url)
    assert failed == "check"
    assert f"INT8's mean cosine is 0.9, below {verify.INT8_COSINE['mean']}" in output
    assert "the log of the container" in output
    assert not pipeline.called("docker push")


def test_an_image_that_grew_is_not_pushed(pipeline: Pipeline) -> None:
    failed, output = pipeline.run(BYTES="421000000")
    assert failed == "check"
    assert "The image has 421 MB, over _MAX_IMAGE_MB, 420" in output
    assert not pipeline.called("docker push")


def test_the_stand_in_is_deployed_only_where_it_was_asked_for(pipeline: Pipeline, server: Server) -> None:
    with altered(server, model(stand_in=True)) as url:
        assert pipeline.run(SERVER=url)[0] == "check"
        failed, output = pipeline.run(SERVER=url, _MODEL="stand-in")
    assert failed == "", output


def test_the_hubs_token_is_a_secret_of_the_build(pipeline: Pipeline) -> None:
    """Passed by its variable's name, where there is one."""
    pipeline.run(FAIL="image inspect")
    assert not pipeline.called("--secret")
    pipeline.run(FAIL="image inspect", HF_TOKEN="hf_xyz")
    assert pipeline.called("--secret id=hf_token,env=HF_TOKEN")
    assert not pipeline.called("hf_xyz")


def test_first_deployment(pipeline: Pipeline) -> None:
    """Nobody serves yet: the new revision gets everything, and a tag to ask it by."""
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
    assert pipeline.run(_SERVICE="other")[0] == ""
    assert pipeline.applied["metadata"]["name"] == "other"


def test_a_newer_build_stays(pipeline: Pipeline) -> None:
    """A build that began before the one that serves ends without a change, and latest does not follow it."""
    newer = "embedding-api-29991231-235959-0000"
    pipeline.serves({"revisionName": newer, "percent": 100})
    failed, output = pipeline.run()
    assert failed == "deploy"
    assert f"FAILED: {newer}, which serves, is of a newer build" in output
    assert f"Traffic goes to {newer} (100 %)." in output
    assert not pipeline.called("replace") and not pipeline.called("tags add")


def test_interrupted(pipeline: Pipeline) -> None:
    """At SIGTERM: its tag is off, and it says what serves."""
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
    pipeline.serves({"revisionName": OLD, "percent": 100})
    run = pipeline.call([*ROLLOUT, "--timeout", "0.5"], SERVER=f"http://127.0.0.1:{free_port()}")
    assert run.returncode == 1
    assert "did not pass." in run.stdout
    assert f"Traffic goes to {OLD} (100 %)." in run.stdout
    assert not re.search(MOVE, "\n".join(pipeline.calls))


def test_a_candidate_that_answers_wrongly_gets_no_traffic(pipeline: Pipeline, server: Server) -> None:
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
    """Service accounts get one for the service's URL, users one without; a public service needs none.
    Why there is none is told where the check fails, and only there."""
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
    """Else it would run as the project's default account, with all the rights that has."""
    run = pipeline.call(arguments)
    assert run.returncode != 0
    assert says in run.stdout
    assert not pipeline.called("services replace")


def test_the_pipeline_has_an_account_and_options_for_the_audit(pipeline: Pipeline) -> None:
    failed, output = pipeline.run(_ACCOUNT="other", _AUDIT_OPTIONS="--ignore-vuln GHSA-1 --ignore-vuln GHSA-2")
    assert failed == "", output
    assert pipeline.calls[0] == "docker audit --ignore-vuln GHSA-1 --ignore-vuln GHSA-2"
    account = pipeline.applied["spec"]["template"]["spec"]["serviceAccountName"]
    assert account == "other@project.iam.gserviceaccount.com"


def test_the_manifest_needs_its_places(pipeline: Pipeline) -> None:
    """A service.yaml that lost the line to be replaced stops the deployment before anything is applied."""
    path = pipeline.folder / "service.yaml"
    path.write_text(path.read_text().replace("- image:", "-  # moved\n          image:"))
    run = pipeline.call(ROLLOUT)
    assert run.returncode == 1
    assert "service.yaml has 0 places that match" in run.stdout
    assert not pipeline.called("replace")
