"""The manifests for Kubernetes: fields and kinds of values as the CRDs of KubeRay have them, and
what makes a cluster closed and its nodes able to come and go.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from pipelines.command_line import all_verbs, parse
from tests.support.deploy_files import DEPLOY, LOCK, ROOT, documents

FIELDS = json.loads((ROOT / "tests/support/kuberay_fields.json").read_text())
FILES = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
KINDS = {"string": str, "integer": int, "boolean": bool}
QUANTITY = re.compile(r"\d+(\.\d+)?(m|[kKMGTPE]i?)?")


def faults(value: Any, fields: Any, at: str) -> Iterator[str]:
    """Where a value has a field that the schema does not know, or another kind of value."""
    if isinstance(fields, str) and fields.startswith("$"):
        fields = FIELDS[fields[1:]]
    if fields == "any":
        return
    if isinstance(fields, dict):
        if not isinstance(value, dict):
            yield f"{at}: must have fields, is {value!r}"
            return
        for name, inner in value.items():
            if name not in fields and "*" not in fields:
                yield f"{at}.{name}: is not a field"
            else:
                yield from faults(inner, fields.get(name, fields.get("*")), f"{at}.{name}")
    elif isinstance(fields, list):
        if not isinstance(value, list):
            yield f"{at}: must be a list, is {value!r}"
            return
        for number, inner in enumerate(value):
            yield from faults(inner, fields[0], f"{at}[{number}]")
    elif fields == "quantity":
        # Also ports and the like, which may have a name.
        if isinstance(value, bool) or not isinstance(value, int | str):
            yield f"{at}: must be a quantity, is {value!r}"
    elif fields.startswith("one of "):
        if value not in fields.split()[2:]:
            yield f"{at}: must be {fields}, is {value!r}"
    elif type(value) is not KINDS[fields]:
        yield f"{at}: must be a {fields}, is {value!r}"


def all_documents() -> list[tuple[str, dict[str, Any]]]:
    return [(f"{path.name}:{each['kind']}", each) for path in FILES for each in documents(path)]


def pods(tree: Any) -> Iterator[dict[str, Any]]:
    """The specification of each pod in a manifest."""
    if isinstance(tree, dict):
        if "containers" in tree:
            yield tree
        for inner in tree.values():
            yield from pods(inner)
    elif isinstance(tree, list):
        for inner in tree:
            yield from pods(inner)


SPECS = {document["kind"]: document.get("spec") for _, document in all_documents()}
PODS = [(name, pod) for name, document in all_documents() for pod in pods(document)]


@pytest.mark.parametrize(
    ("name", "document"), all_documents(), ids=lambda x: x if isinstance(x, str) else ""
)
def test_a_manifest_has_only_fields_that_its_kind_knows(
    name: str, document: dict[str, Any]
) -> None:
    assert document["apiVersion"] and document["metadata"]["name"]
    if document["kind"] in FIELDS:
        assert document["apiVersion"] == "ray.io/v1"
        assert list(faults(document["spec"], FIELDS[document["kind"]], document["kind"])) == []
    for pod in pods(document):
        assert list(faults(pod, "$pod", "pod")) == []


def test_the_check_finds_a_misspelt_field_and_a_wrong_kind_of_value() -> None:
    (cluster,) = (d for _, d in all_documents() if d["kind"] == "RayCluster")
    group = cluster["spec"]["workerGroupSpecs"][0]
    bad = {**cluster["spec"], "workerGroupSpecs": [{**group, "minReplica": 0, "maxReplicas": "8"}]}
    assert list(faults(bad, "$RayCluster", "c")) == [
        "c.workerGroupSpecs[0].maxReplicas: must be a integer, is '8'",
        "c.workerGroupSpecs[0].minReplica: is not a field",
    ]


@pytest.mark.parametrize(("name", "pod"), PODS, ids=lambda x: x if isinstance(x, str) else "")
def test_a_pod_is_no_root_gets_no_rights_and_says_what_it_needs(
    name: str, pod: dict[str, Any]
) -> None:
    user = pod["securityContext"]
    assert user["runAsNonRoot"] is True and user["runAsUser"] > 0
    for container in pod["containers"]:
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }
        assert re.search(r":\d[\w.-]*$", container["image"]), "an image has a version"
        amounts = [amount for part in container["resources"].values() for amount in part.values()]
        assert amounts and all(QUANTITY.fullmatch(str(amount)) for amount in amounts)
        for variable in container.get("env", []):
            if re.search("PASSWORD|TOKEN|SECRET|KEY", variable["name"]):
                assert "secretKeyRef" in variable["valueFrom"], variable["name"]


def ray_clusters() -> list[dict[str, Any]]:
    specs = [SPECS["RayCluster"], SPECS["RayJob"]["rayClusterSpec"]]
    assert len(specs) == len([d for _, d in all_documents() if "rayVersion" in str(d)])
    return specs


def test_a_ray_cluster_asks_for_a_token_and_its_head_trains_nothing() -> None:
    for spec in ray_clusters():
        assert spec["authOptions"] == {"mode": "token"}
        assert spec["rayVersion"] == LOCK["ray"]
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
        (gpu,) = groups["gpu"]["template"]["spec"]["containers"]
        assert gpu["resources"]["limits"]["nvidia.com/gpu"] == "1"


def test_the_object_store_has_shared_memory_within_the_memory_of_its_container() -> None:
    """Ray keeps 30 % of a node's memory for objects, in /dev/shm. A container has 64 MB there, and
    what lies in a volume in memory counts as memory of the container.
    """
    for name, pod in PODS:
        for container in pod["containers"]:
            if not container["name"].startswith("ray-"):
                continue
            (mount,) = container["volumeMounts"]
            (volume,) = (v for v in pod["volumes"] if v["name"] == mount["name"])
            assert mount["mountPath"] == "/dev/shm" and volume["emptyDir"]["medium"] == "Memory"
            memory = container["resources"]["limits"]["memory"]
            size = volume["emptyDir"]["sizeLimit"]
            share = float(size.removesuffix("Gi")) / float(memory.removesuffix("Gi"))
            assert 0.3 < share < 0.5, name


def test_jobs_are_tried_again_and_do_not_overlap() -> None:
    assert SPECS["RayJob"]["backoffLimit"] >= 3
    assert SPECS["RayJob"]["shutdownAfterJobFinishes"] is True
    assert SPECS["CronJob"]["concurrencyPolicy"] == "Forbid"
    assert SPECS["CronJob"]["jobTemplate"]["spec"]["backoffLimit"] >= 3
    assert SPECS["PodDisruptionBudget"]["maxUnavailable"] == 0


def test_the_verbs_of_jobs_take_their_options() -> None:
    (submit,) = SPECS["CronJob"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
    for text in (SPECS["RayJob"]["entrypoint"], submit["args"][0]):
        words = shlex.split(text.replace("$(date +%F)", "2026-01-02"))
        module = words[words.index("-m") + 1]
        parse(all_verbs()[module.removeprefix("pipelines.")], words[words.index(module) + 1 :])
