"""The steps of cloudbuild.yaml, run in their order with stand-ins for docker and gcloud."""

import re

import pytest

from build import verify
from tests.support.pipeline import DIGEST, IMAGE, MOVE, Pipeline
from tests.support.server import Server
from tests.support.stand_ins import altered, model, quality


def test_pipeline(pipeline: Pipeline) -> None:
    """A push runs every step in order, and the checked image gets the traffic."""
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
    """A build submitted by hand has no commit and no repository: the build's id names the image."""
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
    """A failing command ends the pipeline before the next important step."""
    failed, output = pipeline.run(FAIL=fail)
    assert failed == step, output
    assert not any(re.search(never, call) for call in pipeline.calls), pipeline.calls


def test_an_image_that_does_not_pass_is_not_pushed(pipeline: Pipeline, server: Server) -> None:
    """A failed check stops the push; its reason and the container's log are in the output."""
    with altered(server, quality("int8", "mean", 0.9)) as url:
        failed, output = pipeline.run(SERVER=url)
    assert failed == "check"
    assert f"INT8's mean cosine is 0.9, below {verify.INT8_COSINE['mean']}" in output
    assert "the log of the container" in output
    assert not pipeline.called("docker push")


def test_an_image_that_grew_is_not_pushed(pipeline: Pipeline) -> None:
    """An image over _MAX_IMAGE_MB stops the pipeline."""
    failed, output = pipeline.run(BYTES="421000000")
    assert failed == "check"
    assert "The image has 421 MB, over _MAX_IMAGE_MB, 420" in output
    assert not pipeline.called("docker push")


def test_the_stand_in_is_deployed_only_on_request(pipeline: Pipeline, server: Server) -> None:
    """The stand-in stops the pipeline, unless _MODEL names it."""
    with altered(server, model(stand_in=True)) as url:
        assert pipeline.run(SERVER=url)[0] == "check"
        failed, output = pipeline.run(SERVER=url, _MODEL="stand-in")
    assert failed == "", output


def test_the_hubs_token_is_a_secret_of_the_build(pipeline: Pipeline) -> None:
    """A token in HF_TOKEN is passed to the build as a secret, by its variable's name."""
    pipeline.run(FAIL="image inspect")
    assert not pipeline.called("--secret")
    pipeline.run(FAIL="image inspect", HF_TOKEN="hf_xyz")
    assert pipeline.called("--secret id=hf_token,env=HF_TOKEN")
    assert not pipeline.called("hf_xyz")


def test_the_pipeline_has_an_account_and_options_for_the_audit(pipeline: Pipeline) -> None:
    """_ACCOUNT and _AUDIT_OPTIONS reach the deployment and the audit."""
    failed, output = pipeline.run(_ACCOUNT="other", _AUDIT_OPTIONS="--ignore-vuln GHSA-1 --ignore-vuln GHSA-2")
    assert failed == "", output
    assert pipeline.calls[0] == "docker audit --ignore-vuln GHSA-1 --ignore-vuln GHSA-2"
    account = pipeline.applied["spec"]["template"]["spec"]["serviceAccountName"]
    assert account == "other@project.iam.gserviceaccount.com"
