"""deploy/kubernetes: what the validator knows, what it does not, and what belongs together in several files."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from server.settings import ENV_PREFIX, Settings
from tests.deploy.conftest import ROOT, Run
from tests.deploy.test_image import stages, variables, words_of

FOLDER = ROOT / "deploy" / "kubernetes"
KUSTOMIZATIONS = sorted(FOLDER.glob("*/kustomization.yaml"))
MANIFESTS = sorted(path for path in FOLDER.rglob("*.yaml") if path not in KUSTOMIZATIONS)
# The validator has no schema for these: see the two tests on what they may hold.
CUSTOM = {"ScaledObject", "ServiceMonitor"}


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


OBJECTS = {manifest["kind"]: manifest for manifest in map(read, MANIFESTS)}
POD = OBJECTS["Deployment"]["spec"]["template"]
(CONTAINER,) = POD["spec"]["containers"]
SETTINGS = dict(re.findall(r"^(\w+)=(.*)$", (FOLDER / "base" / "settings.env").read_text(), re.MULTILINE))


def shape(value: Any) -> Any:
    """The names in a document, to their leaves."""
    if isinstance(value, dict):
        return {name: shape(inner) for name, inner in value.items()}
    return [shape(inner) for inner in value] if isinstance(value, list) else type(value)


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_a_manifest_of_kubernetes_own_fits_its_schema_to_the_last_name(run: Run, path: Path) -> None:
    said = run("kubernetes-validate", "--strict", path)

    # a kind that it does not know is a warning and no failure
    assert ("passed" in said) != (read(path)["kind"] in CUSTOM), said


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not here to put the manifests together")
@pytest.mark.parametrize("path", KUSTOMIZATIONS, ids=lambda path: path.parent.name)
def test_put_together_they_fit_as_well(run: Run, path: Path, tmp_path: Path) -> None:
    rendered = tmp_path / "all.yaml"
    rendered.write_text(run("kubectl", "kustomize", path.parent))
    objects = {found["kind"]: found for found in yaml.safe_load_all(rendered.read_text())}
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]

    run("kubernetes-validate", "--strict", rendered)
    assert {found["metadata"].get("namespace", "medusa") for found in objects.values()} == {"medusa"}
    assert container["envFrom"][0]["configMapRef"]["name"] == objects["ConfigMap"]["metadata"]["name"]
    assert objects["ConfigMap"]["data"] == SETTINGS


def test_what_is_put_together_is_all_that_is_there() -> None:
    named = [path.parent / name for path in KUSTOMIZATIONS for name in read(path)["resources"] if name.endswith("yaml")]
    (generated,) = read(FOLDER / "base" / "kustomization.yaml")["configMapGenerator"]

    assert sorted(named) == MANIFESTS
    assert generated["envs"] == ["settings.env"]
    assert generated["name"] == CONTAINER["envFrom"][0]["configMapRef"]["name"]


def test_its_settings_are_settings_and_its_keys_are_not_among_them() -> None:
    names = {name.removeprefix(ENV_PREFIX).lower() for name in SETTINGS}

    assert names <= set(Settings.model_fields)
    assert not {"api_key", "host", "port"} & names
    assert CONTAINER["envFrom"][1] == {"secretRef": {"name": "medusa-keys"}}, "without keys no pod may start"


def test_everything_selects_the_pods_of_the_deployment() -> None:
    labels = POD["metadata"]["labels"]
    selectors = [
        OBJECTS["Deployment"]["spec"]["selector"]["matchLabels"],
        OBJECTS["Service"]["spec"]["selector"],
        OBJECTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        OBJECTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ]

    assert [selector for selector in selectors if not selector.items() <= labels.items()] == []
    watched = OBJECTS["ServiceMonitor"]["spec"]["selector"]["matchLabels"]
    assert watched.items() <= OBJECTS["Service"]["metadata"]["labels"].items()
    assert OBJECTS["ScaledObject"]["spec"]["scaleTargetRef"]["name"] == OBJECTS["Deployment"]["metadata"]["name"]


def test_one_port_goes_by_one_name() -> None:
    (port,) = CONTAINER["ports"]
    probes = [CONTAINER[f"{kind}Probe"]["httpGet"]["port"] for kind in ("startup", "readiness", "liveness")]
    (served,) = OBJECTS["Service"]["spec"]["ports"]
    (scraped,) = OBJECTS["ServiceMonitor"]["spec"]["endpoints"]
    (opened,) = OBJECTS["NetworkPolicy"]["spec"]["ingress"][0]["ports"]

    assert words_of("EXPOSE") == [str(port["containerPort"])]
    assert {*probes, served["targetPort"], scraped["port"], served["name"], opened["port"]} == {port["name"]}


def test_neighbours_the_ingress_and_prometheus_come_in_and_names_and_models_are_got_outside() -> None:
    policy = OBJECTS["NetworkPolicy"]["spec"]
    (inward,) = policy["ingress"]
    spaces = [peer["namespaceSelector"]["matchLabels"] for peer in inward["from"] if "namespaceSelector" in peer]
    address = OBJECTS["ScaledObject"]["spec"]["triggers"][0]["metadata"]["serverAddress"]
    outward = [{(port["protocol"], port["port"]) for port in rule["ports"]} for rule in policy["egress"]]

    assert {"podSelector": {}} in inward["from"]
    # http://SERVICE.NAMESPACE.svc:PORT: who is asked for figures is who scrapes them
    assert address.split(".")[1] in {labels["kubernetes.io/metadata.name"] for labels in spaces}
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert outward == [{("UDP", 53), ("TCP", 53)}, {("TCP", 443)}]


def test_pods_on_several_nodes_share_the_cache() -> None:
    assert OBJECTS["ScaledObject"]["spec"]["maxReplicaCount"] > 1
    assert OBJECTS["PersistentVolumeClaim"]["spec"]["accessModes"] == ["ReadWriteMany"]


def test_a_worker_that_starts_again_costs_a_pod_its_requests_and_not_its_life() -> None:
    paths = {kind: CONTAINER[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "readiness", "liveness")}
    startup = CONTAINER["startupProbe"]

    assert paths == {"startup": "/ready", "readiness": "/ready", "liveness": "/health"}
    loading = startup["periodSeconds"] * startup["failureThreshold"]
    assert 600 < loading < OBJECTS["Deployment"]["spec"]["progressDeadlineSeconds"]


def test_a_pod_has_longer_to_end_than_its_pause_and_its_answers_together() -> None:
    program, pause = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    answers = int(SETTINGS["MEDUSA_SHUTDOWN_TIMEOUT_S"])

    assert program == "sleep"
    assert POD["spec"]["terminationGracePeriodSeconds"] > int(pause) + answers + 5


def test_a_pod_has_one_gpu_and_goes_before_its_successor_comes() -> None:
    assert CONTAINER["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "memory" in CONTAINER["resources"]["limits"]
    assert OBJECTS["Deployment"]["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    assert "replicas" not in OBJECTS["Deployment"]["spec"], "an apply would undo what the scaler chose"
    assert OBJECTS["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1


def test_a_pod_is_the_images_user_and_can_do_nothing_else() -> None:
    user, group = map(int, words_of("USER")[0].split(":"))
    pod, container = POD["spec"]["securityContext"], CONTAINER["securityContext"]

    assert (pod["runAsUser"], pod["runAsGroup"], pod["fsGroup"], pod["runAsNonRoot"]) == (user, group, group, True)
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert POD["spec"]["automountServiceAccountToken"] is False


def test_no_variable_of_the_services_own_is_taken_for_a_setting() -> None:
    # for a Service called medusa there would be MEDUSA_PORT=tcp://...
    assert POD["spec"]["enableServiceLinks"] is False


def test_what_is_written_has_a_place() -> None:
    mounts = {mount["mountPath"]: mount["name"] for mount in CONTAINER["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in POD["spec"]["volumes"]}

    assert set(mounts) == {*words_of("VOLUME"), variables()["TMPDIR"]}
    assert set(mounts.values()) == set(volumes)
    claim = volumes[mounts["/cache"]]["persistentVolumeClaim"]["claimName"]
    assert claim == OBJECTS["PersistentVolumeClaim"]["metadata"]["name"]
    assert "emptyDir" in volumes[mounts["/tmp"]]


def test_the_image_has_the_tag_of_its_version() -> None:
    (image,) = read(FOLDER / "base" / "kustomization.yaml")["images"]
    label = dict(re.findall(r'image\.(\w+)="([^"]*)"', next(words for name, words in stages()[-1] if name == "LABEL")))

    assert image == {"name": CONTAINER["image"], "newTag": label["version"]}


def test_pods_are_added_by_what_waits_and_what_is_answered() -> None:
    spec = OBJECTS["ScaledObject"]["spec"]
    (trigger,) = spec["triggers"]
    metrics = set(re.findall(r"medusa_\w+", trigger["metadata"]["query"]))

    assert metrics == {"medusa_num_requests_waiting", "medusa_num_requests_running"}
    # what a job is called is what the Prometheus operator calls it by: the Service
    jobs = set(re.findall(r'job="(\w+)"', trigger["metadata"]["query"]))
    assert jobs == {OBJECTS["Service"]["metadata"]["name"]}
    spaces = set(re.findall(r'namespace="(\w+)"', trigger["metadata"]["query"]))
    assert spaces == {read(path)["namespace"] for path in KUSTOMIZATIONS}, (
        "a second one's requests would bring pods here"
    )
    assert 1 <= spec["minReplicaCount"] < spec["maxReplicaCount"]
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    assert behavior["scaleDown"]["stabilizationWindowSeconds"] > 5 * behavior["scaleUp"]["stabilizationWindowSeconds"]


def test_two_answers_and_four_who_wait_are_six_requests_wherever_they_are(run: Run, tmp_path: Path) -> None:
    (trigger,) = OBJECTS["ScaledObject"]["spec"]["triggers"]
    record = {"record": "requests", "expr": trigger["metadata"]["query"]}
    series = [
        {"series": f'medusa_num_requests_{name}{{{labels}, pod="{pod}"}}', "values": f"{value}x20"}
        for pod, labels, running, waiting in (
            ("a", 'namespace="medusa", job="medusa"', 1, 4),
            ("b", 'namespace="medusa", job="medusa"', 1, 0),
            ("c", 'namespace="medusa", job="another"', 1, 9),
            ("d", 'namespace="another", job="medusa"', 1, 9),
        )
        for name, value in (("running", running), ("waiting", waiting))
    ]
    expected = [{"expr": "requests", "eval_time": "4m", "exp_samples": [{"labels": "requests", "value": 6}]}]
    test = {"interval": "15s", "input_series": series, "promql_expr_test": expected}
    (tmp_path / "rules.yml").write_text(json.dumps({"groups": [{"name": "scaling", "rules": [record]}]}))
    (tmp_path / "test.yml").write_text(json.dumps({"rule_files": ["rules.yml"], "tests": [test]}))

    run("promtool", "test", "rules", tmp_path / "test.yml")
    # a threshold is what one pod may have: three pods
    assert trigger["metadata"]["threshold"] == "2"


def test_a_scaled_object_has_the_fields_that_keda_knows() -> None:
    scaled = OBJECTS["ScaledObject"]
    policy = {"stabilizationWindowSeconds": int, "policies": [{"type": str, "value": int, "periodSeconds": int}]}

    assert scaled["apiVersion"] == "keda.sh/v1alpha1"
    assert shape(scaled["spec"]) == {
        "scaleTargetRef": {"name": str},
        "minReplicaCount": int,
        "maxReplicaCount": int,
        "pollingInterval": int,
        "advanced": {"horizontalPodAutoscalerConfig": {"behavior": {"scaleUp": policy, "scaleDown": policy}}},
        # KEDA takes strings alone there
        "triggers": [{"type": str, "metadata": {"serverAddress": str, "query": str, "threshold": str}}],
    }


def test_a_service_monitor_has_the_fields_that_the_operator_knows() -> None:
    monitor = OBJECTS["ServiceMonitor"]

    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert shape(monitor["spec"]) == {
        "selector": {"matchLabels": {"app.kubernetes.io/name": str}},
        "endpoints": [{"port": str, "path": str, "interval": str}],
    }
    assert monitor["spec"]["endpoints"][0]["path"] == "/metrics"
