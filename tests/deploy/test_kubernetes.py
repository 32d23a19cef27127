"""deploy/kubernetes.yaml: valid, safe, in step with service.yaml, and applied as docs/container.md says."""

import copy
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.settings import Settings
from tests.support import ROOT
from tests.support.schema import problems

FILE = ROOT / "deploy/kubernetes.yaml"
DOCUMENTS = list(yaml.safe_load_all(FILE.read_text()))
KINDS = {document["kind"]: document for document in DOCUMENTS}
DEPLOYMENT = KINDS["Deployment"]["spec"]
POD = DEPLOYMENT["template"]["spec"]
(CONTAINER,) = POD["containers"]
LABELS = DEPLOYMENT["template"]["metadata"]["labels"]
PROBES = ("startupProbe", "readinessProbe", "livenessProbe")
SETTINGS = {variable["name"]: variable["value"] for variable in CONTAINER["env"]}
(KNATIVE,) = yaml.safe_load((ROOT / "service.yaml").read_text())["spec"]["template"]["spec"]["containers"]
CONF = (ROOT / "gunicorn.conf.py").read_text()


def number(name: str) -> int:
    """Return a number of gunicorn.conf.py, which cannot be imported: it patches the process."""
    (found,) = re.findall(rf"^{name} = ([\d_]+)$", CONF, re.M)
    return int(found)


def mebibytes(quantity: str) -> int:
    """Return the size that a quantity like 64Mi or 1Gi means."""
    return int(quantity[:-2]) * {"Mi": 1, "Gi": 1024}[quantity[-2:]]


def test_schemas() -> None:
    """Kubernetes knows every field, of the right type."""
    assert len(KINDS) == len(DOCUMENTS)
    for document in DOCUMENTS:
        assert problems("kubernetes.json", document) == []


@pytest.mark.parametrize(
    ("kind", "right", "wrong"),
    [
        ("Deployment", "automountServiceAccountToken", "automountServiceaccountToken"),
        ("Deployment", "readOnlyRootFilesystem", "readonlyRootFilesystem"),
        ("Service", "targetPort", "target_port"),
        ("HorizontalPodAutoscaler", "averageUtilization", "targetUtilization"),
        ("PodDisruptionBudget", "maxUnavailable", "maxUnavailble"),
        ("NetworkPolicy", "podSelector", "selector"),
        ("NetworkPolicy", "networking.k8s.io/v1", "extensions/v1beta1"),
        ("Service", "Service", "Servise"),
    ],
)
def test_the_schema_refuses_what_is_misspelt(kind: str, right: str, wrong: str) -> None:
    """A misspelt field is a problem."""
    text = yaml.safe_dump(KINDS[kind])
    assert right in text
    assert wrong in str(problems("kubernetes.json", yaml.safe_load(text.replace(right, wrong))))


def test_the_schema_refuses_a_wrong_type() -> None:
    """A value of a wrong type is a problem."""
    document = copy.deepcopy(KINDS["Deployment"])
    document["spec"]["template"]["spec"]["containers"][0]["env"][1]["value"] = 1
    assert "1 is not of type 'string'" in problems("kubernetes.json", document)[0]


def test_names_what_there_is() -> None:
    """Variables are settings, the port is the server's default, and probes use routes."""
    assert set(SETTINGS) <= {field.name.upper() for field in fields(Settings)}
    settings = Settings.from_env(SETTINGS)
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    assert list(ports.values()) == [settings.port]
    routes = yaml.safe_load((ROOT / "app/openapi.yml").read_text())["paths"]
    paths = {}
    for name in PROBES:
        probe = CONTAINER[name]
        paths[name] = probe["httpGet"]["path"]
        assert "get" in routes[paths[name]]
        assert probe["httpGet"]["port"] in ports
        assert probe["timeoutSeconds"] <= probe["periodSeconds"]
    assert paths == {"startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/health"}
    (port,) = KINDS["Service"]["spec"]["ports"]
    assert port["targetPort"] in ports


def test_selectors_match_the_pods() -> None:
    """Every object finds the Deployment's pods by their labels, and none names a namespace."""
    selectors = [
        DEPLOYMENT["selector"]["matchLabels"],
        KINDS["Service"]["spec"]["selector"],
        KINDS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        KINDS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        *(constraint["labelSelector"]["matchLabels"] for constraint in POD["topologySpreadConstraints"]),
    ]
    for selector in selectors:
        assert selector and selector.items() <= LABELS.items()
    target = KINDS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    deployment = KINDS["Deployment"]
    assert target == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    for document in DOCUMENTS:
        assert "namespace" not in document["metadata"]


def test_figures_are_those_of_service_yaml() -> None:
    """Limits, variables and probes that both files have are equal, so that they cannot drift apart."""
    knative = {variable["name"]: variable["value"] for variable in KNATIVE["env"]}
    assert SETTINGS == {name: value for name, value in knative.items() if name != "GOOGLE_CLOUD_PROJECT"}
    assert CONTAINER["resources"]["limits"] == KNATIVE["resources"]["limits"]
    for name in ("startupProbe", "livenessProbe"):
        expected = copy.deepcopy(KNATIVE[name])
        expected["httpGet"]["port"] = "http"  # Knative has one port only
        assert CONTAINER[name] == expected
    assert [port["containerPort"] for port in CONTAINER["ports"]] == [
        port["containerPort"] for port in KNATIVE["ports"]
    ]


def test_resources() -> None:
    """The server uses the CPU of its limit, and its shared memory fits into its memory."""
    resources = CONTAINER["resources"]
    assert SETTINGS["CPUS"] == resources["limits"]["cpu"]
    assert resources["requests"] == resources["limits"]
    volumes = {volume["name"]: volume["emptyDir"] for volume in POD["volumes"]}
    folders = {mount["mountPath"]: volumes[mount["name"]] for mount in CONTAINER["volumeMounts"]}
    assert set(folders) == {"/tmp", "/dev/shm"}
    shared = folders["/dev/shm"]
    assert shared["medium"] == "Memory"
    assert number("MIN_FREE_BYTES") * 2 < mebibytes(shared["sizeLimit"]) * 2**20
    assert mebibytes(shared["sizeLimit"]) * 8 < mebibytes(resources["limits"]["memory"])


def test_a_pod_has_time_to_end() -> None:
    """The grace period covers preStop's sleep, the server's shutdown and 2 s more."""
    sleep = CONTAINER["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert sleep > 0
    assert POD["terminationGracePeriodSeconds"] >= sleep + number("graceful_timeout") + 2


def test_capacity_is_kept() -> None:
    """Updates and drained nodes leave serving pods; only the autoscaler sets their number."""
    assert "replicas" not in DEPLOYMENT
    assert DEPLOYMENT["strategy"]["type"] == "RollingUpdate"
    assert DEPLOYMENT["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    autoscaler = KINDS["HorizontalPodAutoscaler"]["spec"]
    assert (
        KINDS["PodDisruptionBudget"]["spec"]["maxUnavailable"] < autoscaler["minReplicas"] < autoscaler["maxReplicas"]
    )
    (metric,) = autoscaler["metrics"]
    assert metric["resource"]["name"] in CONTAINER["resources"]["requests"]  # of which the target is a percentage
    assert {item["whenUnsatisfiable"] for item in POD["topologySpreadConstraints"]} == {"ScheduleAnyway"}


def test_network() -> None:
    """Only the cluster's pods reach the server's port, and nothing else is open in either direction."""
    policy = KINDS["NetworkPolicy"]["spec"]
    assert sorted(policy["policyTypes"]) == ["Egress", "Ingress"]
    assert policy["egress"] == []
    (rule,) = policy["ingress"]
    assert rule["from"] == [{"namespaceSelector": {}}]
    assert [port["port"] for port in rule["ports"]] == [port["containerPort"] for port in CONTAINER["ports"]]


# https://kubernetes.io/docs/concepts/security/pod-security-standards/
VOLUMES = set("configMap csi downwardAPI emptyDir ephemeral persistentVolumeClaim projected secret".split())
SYSCTLS = {
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    *(f"net.ipv4.tcp_{name}" for name in ("fin_timeout", "keepalive_intvl", "keepalive_probes", "keepalive_time")),
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}
SELINUX = {"", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"}
PROFILES = {"RuntimeDefault", "Localhost"}


def violations(template: dict[str, Any]) -> Iterator[str]:
    """Yield the controls of the Pod Security Standard "restricted", "baseline" included, that a pod breaks."""
    pod, annotations = template["spec"], template["metadata"].get("annotations", {})
    context = pod.get("securityContext", {})
    if any(pod.get(name) for name in ("hostNetwork", "hostPID", "hostIPC")):
        yield "host namespaces"
    if any(set(volume) - {"name"} - VOLUMES for volume in pod.get("volumes", [])):
        yield "volume types"
    if {sysctl["name"] for sysctl in context.get("sysctls", [])} - SYSCTLS:
        yield "sysctls"
    if any(name.startswith("container.apparmor.security.beta.kubernetes.io/") for name in annotations):
        yield "AppArmor"
    for container in [*pod["containers"], *pod.get("initContainers", []), *pod.get("ephemeralContainers", [])]:
        yield from container_violations(container, context)


def container_violations(container: dict[str, Any], pod: dict[str, Any]) -> Iterator[str]:
    """Yield what one container breaks. pod: the pod's securityContext, of which its own overrides fields."""
    own = container.get("securityContext", {})
    contexts, effective = (pod, own), {**pod, **own}
    capabilities = own.get("capabilities", {})
    if own.get("privileged"):
        yield "privileged containers"
    if own.get("allowPrivilegeEscalation") is not False:
        yield "privilege escalation"
    if "ALL" not in capabilities.get("drop", []) or set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
        yield "capabilities"
    if effective.get("runAsNonRoot") is not True:
        yield "running as non-root"
    if any(context.get("runAsUser") == 0 for context in contexts):
        yield "running as non-root user"
    if effective.get("seccompProfile", {}).get("type") not in PROFILES:
        yield "seccomp"
    if any(context.get("appArmorProfile", {}).get("type", "RuntimeDefault") not in PROFILES for context in contexts):
        yield "AppArmor"
    options = [context.get("seLinuxOptions", {}) for context in contexts]
    if any(option.get("type", "") not in SELINUX or option.get("user") or option.get("role") for option in options):
        yield "SELinux"
    if own.get("procMount", "Default") != "Default":
        yield "/proc mount type"
    if any(context.get("windowsOptions", {}).get("hostProcess") for context in contexts):
        yield "HostProcess"
    if any(port.get("hostPort") for port in container.get("ports", [])):
        yield "host ports"
    handlers = [*(container.get(name, {}) for name in PROBES), *container.get("lifecycle", {}).values()]
    if any(handler.get(action, {}).get("host") for handler in handlers for action in ("httpGet", "tcpSocket")):
        yield "host probes and lifecycle hooks"


def test_security() -> None:
    """The pod may run in a namespace that enforces "restricted", with a read-only root file system."""
    assert list(violations(DEPLOYMENT["template"])) == []
    assert CONTAINER["securityContext"]["readOnlyRootFilesystem"] is True
    assert POD["automountServiceAccountToken"] is False
    context = POD["securityContext"]
    (user,) = re.findall(r"^USER (.+)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == user


def setter(*path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """Return a function that sets a field of an object, or takes it away: None."""

    def change(item: dict[str, Any]) -> None:
        for name in path[:-1]:
            item = item.setdefault(name, {})
        if value is None:
            del item[path[-1]]
        else:
            item[path[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "control"),
    [
        (setter("hostNetwork", value=True), "host namespaces"),
        (setter("volumes", value=[{"name": "tmp", "hostPath": {"path": "/tmp"}}]), "volume types"),
        (setter("securityContext", "sysctls", value=[{"name": "kernel.msgmax", "value": "1"}]), "sysctls"),
        (setter("securityContext", "runAsNonRoot", value=None), "running as non-root"),
        (setter("securityContext", "runAsUser", value=0), "running as non-root user"),
        (setter("securityContext", "seccompProfile", value=None), "seccomp"),
        (setter("securityContext", "appArmorProfile", "type", value="Unconfined"), "AppArmor"),
        (setter("initContainers", value=[{"name": "first"}]), "privilege escalation"),
    ],
)
def test_a_weaker_pod_is_seen(change: Callable[[dict[str, Any]], None], control: str) -> None:
    """A pod with a weaker setting fails the check."""
    template = copy.deepcopy(DEPLOYMENT["template"])
    change(template["spec"])
    assert control in set(violations(template))


@pytest.mark.parametrize(
    ("change", "control"),
    [
        (setter("securityContext", "privileged", value=True), "privileged containers"),
        (setter("securityContext", "allowPrivilegeEscalation", value=None), "privilege escalation"),
        (setter("securityContext", "capabilities", value=None), "capabilities"),
        (setter("securityContext", "capabilities", "add", value=["SYS_ADMIN"]), "capabilities"),
        (setter("securityContext", "runAsNonRoot", value=False), "running as non-root"),
        (setter("securityContext", "runAsUser", value=0), "running as non-root user"),
        (setter("securityContext", "seccompProfile", "type", value="Unconfined"), "seccomp"),
        (setter("securityContext", "seLinuxOptions", "type", value="spc_t"), "SELinux"),
        (setter("securityContext", "procMount", value="Unmasked"), "/proc mount type"),
        (setter("securityContext", "windowsOptions", "hostProcess", value=True), "HostProcess"),
        (setter("ports", value=[{"containerPort": 8080, "hostPort": 8080}]), "host ports"),
        (setter("livenessProbe", "httpGet", "host", value="10.0.0.1"), "host probes and lifecycle hooks"),
    ],
)
def test_a_weaker_container_is_seen(change: Callable[[dict[str, Any]], None], control: str) -> None:
    """A container with a weaker setting fails the check."""
    template = copy.deepcopy(DEPLOYMENT["template"])
    change(template["spec"]["containers"][0])
    assert set(violations(template)) == {control}


def test_the_documented_commands(tmp_path: Path) -> None:
    """The documented commands apply the file with an image, and later update its container."""
    blocks = re.findall(r"^```sh\n(.*?)^```", (ROOT / "docs/container.md").read_text(), re.M | re.S)
    (commands,) = [block for block in blocks if "kubernetes.yaml" in block]
    (image,) = re.findall(r"^IMAGE=(\S+)$", commands, re.M)
    kubectl = tmp_path / "kubectl"
    kubectl.write_text(f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\ncase $1 in apply) cat >{tmp_path}/applied;; esac\n')
    kubectl.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-eu", "-c", commands], cwd=ROOT, env=environ, check=True, stdin=subprocess.DEVNULL)
    applied = list(yaml.safe_load_all((tmp_path / "applied").read_text()))
    expected = copy.deepcopy(DOCUMENTS)
    expected[0]["spec"]["template"]["spec"]["containers"][0]["image"] = image
    assert applied == expected
    name = KINDS["Deployment"]["metadata"]["name"]
    assert (tmp_path / "calls").read_text().splitlines() == [
        "apply -f -",
        f"set image deployment/{name} {CONTAINER['name']}={image}",
    ]


def test_the_image_must_be_filled_in() -> None:
    """The file's own image name is invalid in every registry, so that it must be replaced."""
    assert CONTAINER["image"].startswith("REGISTRY/")
