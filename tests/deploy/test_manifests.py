"""cloudbuild.yaml and service.yaml: valid by their schemas, and consistent with settings, routes and Dockerfile."""

import json
import re
from dataclasses import fields

import yaml

from app.settings import Settings
from tests.support import ROOT
from tests.support.pipeline import ALWAYS, BUILD, CONTAINER, DOCKERFILE, POD, SCRIPTS, SERVICE, STEPS, TRIGGERED
from tests.support.schema import problems


def test_schemas() -> None:
    """Cloud Build and Knative know every field, of the right type."""
    assert problems("cloudbuild.json", BUILD) == []
    assert problems("knative-service.json", SERVICE) == []


def test_the_schemas_refuse_misspelt_fields() -> None:
    """A misspelt field is a problem."""
    document = json.loads(json.dumps(SERVICE).replace("containerConcurrency", "concurrency"))
    assert "concurrency" in problems("knative-service.json", document)[0]
    document = json.loads(json.dumps(BUILD).replace("waitFor", "waitfor"))
    assert "waitfor" in problems("cloudbuild.json", document)[0]


def test_the_service_uses_existing_settings_and_routes() -> None:
    """Variables are settings, probes use routes, and PORT is left to Cloud Run."""
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


def test_the_build_uses_existing_arguments_and_files() -> None:
    """Build arguments, stages, the secret and files are those of the Dockerfile and of the repository."""
    arguments = re.findall(r"--build-arg \"(\w+)=", SCRIPTS)
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


def test_the_check_has_the_limits_of_the_service() -> None:
    """The pipeline checks the image with the CPU and memory that it gets on Cloud Run."""
    limits = CONTAINER["resources"]["limits"]
    memory = limits["memory"].replace("Gi", "g")
    assert f"--cpus {limits['cpu']} --memory {memory} " in STEPS["check"]["script"]


def test_nothing_is_pushed_beside_a_check() -> None:
    """Pushing and deploying wait for all checks: a step without waitFor starts after all earlier ones."""
    order = list(STEPS)
    for step in ("push", "sbom", "deploy", "latest"):
        assert "waitFor" not in STEPS[step]
        assert {"audit", "build", "check"} < {*order[: order.index(step)], step}
    assert STEPS["check"]["waitFor"] == ["build"]
