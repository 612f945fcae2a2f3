"""The Kubernetes objects: valid by the published schemas, consistent, and with no rights a pod does not need."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from tests.deploy.shipped import DEPLOY, check_config, document, documents, pairs, run, stopping_s

if TYPE_CHECKING:
    from pathlib import Path

BASE = DEPLOY / "kubernetes" / "base"
MONITORED = DEPLOY / "kubernetes" / "monitored"
VERSIONS = ("1.30", "1.37")  # the oldest that the manifests are for, and the newest that is known
NAMED = {"app.kubernetes.io/name": "sluice"}


def resources(folder: Path) -> list[Path]:
    """The files that a kustomization names, those of other folders aside."""
    files = [folder / name for name in document(folder / "kustomization.yaml")["resources"]]
    assert all(file.exists() for file in files)
    return [file for file in files if file.is_file()]


def objects(*folders: Path) -> dict[str, Any]:
    """Every object by its kind and name."""
    found = [one for folder in folders for file in resources(folder) for one in documents(file)]
    by_name = {f"{one['kind']}/{one['metadata']['name']}": one for one in found}
    assert len(by_name) == len(found)
    return by_name


EVERY = objects(BASE, MONITORED)
DEPLOYMENT = EVERY["Deployment/sluice"]
POD = DEPLOYMENT["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
VARIABLES = {
    "OPENAI_API_KEY": "sk-upstream-0123456789",
    "SLUICE_STORE_URL": "rediss://redis.example/0",
    "SLUICE_LEDGER_URL": "postgresql://sluice:secret@postgres.example/sluice",
    "SLUICE_ADMIN_TOKEN": "admin-0123456789",
}


@pytest.mark.parametrize("name", [name for name in EVERY if not name.startswith("ServiceMonitor/")])
@pytest.mark.parametrize("version", VERSIONS)
def test_an_object_is_valid(name: str, version: str) -> None:
    kubernetes_validate.validate(EVERY[name], version, strict=True)


def test_the_schemas_would_notice() -> None:
    broken = {**DEPLOYMENT, "spec": {**DEPLOYMENT["spec"], "no_such": 1}}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[0], strict=True)


def test_every_file_is_named_by_a_kustomization() -> None:
    named = {*resources(BASE), *resources(MONITORED)}
    beside = {"kustomization.yaml", "sluice.yaml", "prometheus-adapter.yaml"}
    there = {file for folder in (BASE, MONITORED) for file in folder.iterdir() if file.name not in beside}
    assert there == named


def test_selectors_select_the_pods() -> None:
    assert NAMED.items() <= POD["metadata"]["labels"].items()
    assert DEPLOYMENT["spec"]["selector"] == {"matchLabels": NAMED}
    assert EVERY["PodDisruptionBudget/sluice"]["spec"]["selector"] == {"matchLabels": NAMED}
    assert EVERY["NetworkPolicy/sluice"]["spec"]["podSelector"] == {"matchLabels": NAMED}
    for spread in POD["spec"]["topologySpreadConstraints"]:
        assert spread["labelSelector"] == {"matchLabels": NAMED}
    for service in ("Service/sluice", "Service/sluice-ops"):
        assert EVERY[service]["spec"]["selector"] == NAMED
    assert all(one["metadata"]["labels"].items() >= NAMED.items() for one in EVERY.values())


def test_every_port_that_is_named_is_there_and_the_operators_is_not_in_the_apis_service() -> None:
    ports = {port["name"]: port["containerPort"] for port in CONTAINER["ports"]}
    in_effect = check_config(BASE / "sluice.yaml", VARIABLES)
    assert ports == {"api": in_effect["server"]["port"], "ops": in_effect["ops"]["port"]}
    targets = {name: {p["targetPort"] for p in EVERY[f"Service/{name}"]["spec"]["ports"]} for name in SERVICES}
    assert targets == {"sluice": {"api"}, "sluice-ops": {"ops"}}
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert CONTAINER[probe]["httpGet"]["port"] == "ops"
    assert CONTAINER["readinessProbe"]["httpGet"]["path"] == "/readyz"
    assert CONTAINER["livenessProbe"]["httpGet"]["path"] == "/healthz", "a store that is away restarts nothing"
    assert in_effect["server"]["host"] == in_effect["ops"]["host"] == "0.0.0.0"


SERVICES = ("sluice", "sluice-ops")


def test_a_pod_has_time_to_drain() -> None:
    in_effect = check_config(BASE / "sluice.yaml", VARIABLES)
    command, pause = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert command == "sleep"
    assert POD["spec"]["terminationGracePeriodSeconds"] > float(pause) + stopping_s(in_effect)
    assert DEPLOYMENT["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    readiness = CONTAINER["readinessProbe"]
    notice_s = stopping_s({"shutdown": {**in_effect["shutdown"], "drain": 0}}) - 2
    assert readiness["periodSeconds"] * readiness["failureThreshold"] <= notice_s, "seen while it still serves"


def test_secrets_are_referred_to_and_every_variable_is_given() -> None:
    assert not [name for name in EVERY if name.startswith("Secret/")]
    given = {variable["name"]: variable["valueFrom"]["secretKeyRef"] for variable in CONTAINER["env"]}
    needed = set(re.findall(r"\$\{([A-Z_]+)", (BASE / "sluice.yaml").read_text()))
    assert needed == set(given) == set(VARIABLES)
    assert {reference["name"] for reference in given.values()} == {"sluice"}
    optional = {name for name, reference in given.items() if reference.get("optional")}
    in_effect = check_config(BASE / "sluice.yaml", {name: VARIABLES[name] for name in given if name not in optional})
    assert in_effect["store"]["url"].startswith("rediss://"), "replicas share their quotas"
    assert in_effect["ledger"]["url"].startswith("postgresql://")


def test_the_pod_meets_the_restricted_standard() -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/ - restricted."""
    pod, container = POD["spec"]["securityContext"], CONTAINER["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] > 0
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["allowPrivilegeEscalation"] is False
    assert container["capabilities"] == {"drop": ["ALL"]}
    assert container["readOnlyRootFilesystem"] is True
    assert not {"hostNetwork", "hostPID", "hostIPC", "privileged", "hostPath", "hostPort"} & dict(pairs(POD)).keys()
    assert POD["spec"]["automountServiceAccountToken"] is False
    assert f"USER {pod['runAsUser']}:{pod['runAsGroup']}\n" in (DEPLOY / "Dockerfile").read_text()


def test_the_autoscaler_goes_by_a_metric_that_the_adapter_serves() -> None:
    spec = EVERY["HorizontalPodAutoscaler/sluice"]["spec"]
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": "sluice"}
    (metric,) = spec["metrics"]
    (rule,) = document(MONITORED / "prometheus-adapter.yaml")["rules"]["custom"]
    name = metric["pods"]["metric"]["name"]
    assert rule["seriesQuery"].startswith(f"{name}{{")
    assert re.fullmatch(rule["name"]["matches"], name)
    assert re.match(r"sum\(", rule["metricsQuery"]), "all phases together"
    assert EVERY["PodDisruptionBudget/sluice"]["spec"]["maxUnavailable"] < spec["minReplicas"]
    (patch,) = document(MONITORED / "kustomization.yaml")["patches"]
    assert yaml.safe_load(patch["patch"]) == [{"op": "remove", "path": "/spec/replicas"}]


def test_the_service_monitor_selects_the_operators_service() -> None:
    monitor = EVERY["ServiceMonitor/sluice"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor["spec"]) == {"selector", "endpoints"}
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    selected = [
        name for name, one in EVERY.items() if one["kind"] == "Service" and wanted <= one["metadata"]["labels"].items()
    ]
    assert selected == ["Service/sluice-ops"]
    (endpoint,) = monitor["spec"]["endpoints"]
    assert set(endpoint) == {"port", "path", "interval", "scrapeTimeout"}
    assert endpoint["port"] in {port["name"] for port in EVERY["Service/sluice-ops"]["spec"]["ports"]}


def test_the_policy_keeps_operators_pages_to_one_namespace() -> None:
    api, ops = EVERY["NetworkPolicy/sluice"]["spec"]["ingress"]
    assert [port["port"] for port in api["ports"]] == ["api"]
    assert [port["port"] for port in ops["ports"]] == ["ops"]
    assert "from" not in api
    assert ops["from"]


@pytest.mark.parametrize("folder", [BASE, MONITORED], ids=lambda folder: folder.name)
def test_kustomize_builds_it(folder: Path) -> None:
    kubectl = shutil.which("kubectl") or shutil.which("kustomize")
    if kubectl is None:
        pytest.skip("neither kubectl nor kustomize is installed: the kustomizations were NOT built")
    words = ["kustomize"] if kubectl.endswith("kubectl") else ["build"]
    built = run(kubectl, *words, folder)
    assert built.returncode == 0, built.stderr
    made = {one["kind"]: one for one in yaml.safe_load_all(built.stdout)}
    assert made["ConfigMap"]["data"]["sluice.yaml"] == (BASE / "sluice.yaml").read_text()
    volumes = {volume["name"]: volume for volume in made["Deployment"]["spec"]["template"]["spec"]["volumes"]}
    assert volumes["configuration"]["configMap"]["name"] == made["ConfigMap"]["metadata"]["name"]
    assert ("replicas" in made["Deployment"]["spec"]) == ("HorizontalPodAutoscaler" not in made)
