"""What is in jobs/cluster: read by Ray's own parsers, consistent, and with commands that exist."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import pages
from helpers.machine import free_ports, wait_until
from helpers.tree import ROOT
from packaging.requirements import Requirement
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.autoscaler._private.util import prepare_config, validate_config

from jobs import cli, resend, submit, train, tune
from vamf.cluster.submission.submit import Submission

FILES = ROOT / "jobs" / "cluster"
MANIFESTS = ("mlflow.yaml", "raycluster.yaml", "rayjob.yaml")

FIELDS = {
    "RayCluster": {"apiVersion", "kind", "metadata", "spec"},
    "RayJob": {"apiVersion", "kind", "metadata", "spec"},
    "RayJobSpec": {
        *("entrypoint", "rayClusterSpec", "shutdownAfterJobFinishes", "ttlSecondsAfterFinished"),
        *("activeDeadlineSeconds", "backoffLimit", "runtimeEnvYAML", "submissionMode", "suspend"),
    },
    "RayClusterSpec": {
        *("headGroupSpec", "workerGroupSpecs", "rayVersion", "authOptions", "suspend"),
        *("enableInTreeAutoscaling", "autoscalerOptions", "gcsFaultToleranceOptions"),
    },
    "HeadGroupSpec": {"rayStartParams", "template", "serviceType", "headService", "enableIngress"},
    "WorkerGroupSpec": {
        *("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"),
        *("numOfHosts", "idleTimeoutSeconds", "scaleStrategy"),
    },
    "Container": {
        *("name", "image", "command", "args", "env", "envFrom", "ports", "resources"),
        *("volumeMounts", "readinessProbe", "livenessProbe", "securityContext", "lifecycle"),
    },
    "PodSpec": {"containers", "volumes", "nodeSelector", "tolerations", "securityContext"},
}
"""Fields that the objects have, by KubeRay's API reference and by Kubernetes'."""


def documents(*names: str) -> list[dict[str, Any]]:
    """The objects of manifests."""
    return [
        document for name in names for document in yaml.safe_load_all((FILES / name).read_text())
    ]


def one(kind: str, name: str | None = None) -> dict[str, Any]:
    found = [d for d in documents(*MANIFESTS) if d["kind"] == kind]
    (only,) = (d for d in found if name in (None, d["metadata"]["name"]))
    return only


def cluster_spec(kind: str) -> dict[str, Any]:
    spec = one(kind)["spec"]
    return spec if kind == "RayCluster" else spec["rayClusterSpec"]


def templates() -> Iterator[dict[str, Any]]:
    """Every pod's specification."""
    yield one("Deployment")["spec"]["template"]["spec"]
    for kind in ("RayCluster", "RayJob"):
        spec = cluster_spec(kind)
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            yield group["template"]["spec"]


def test_ray_up_is_what_ray_takes() -> None:
    config = prepare_config(yaml.safe_load((FILES / "ray-up.yaml").read_text()))
    validate_config(config)
    assert config["provider"]["type"] == "aws"
    with pytest.raises(Exception, match="dokcer"):
        validate_config(config | {"dokcer": {}})


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_ray_s_autoscaler_understands_the_cluster(kind: str) -> None:
    """Its parser of KubeRay's objects refuses what lacks resources, names or counts."""
    cluster = {"metadata": {"name": "vamf", "namespace": "default"}, "spec": cluster_spec(kind)}
    found = _derive_autoscaling_config_from_ray_cr(cluster)
    validate_config(found)
    types = found["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    assert types["gpu"]["resources"]["GPU"] == 1 and types["gpu"]["resources"]["CPU"] == 4


@pytest.mark.parametrize("kind", ["RayCluster", "RayJob"])
def test_objects_have_the_fields_of_kuberay(kind: str) -> None:
    whole, spec = one(kind), cluster_spec(kind)
    assert whole["apiVersion"] == "ray.io/v1"
    assert whole.keys() <= FIELDS[kind]
    assert kind == "RayCluster" or whole["spec"].keys() <= FIELDS["RayJobSpec"]
    assert spec.keys() <= FIELDS["RayClusterSpec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"].keys() <= FIELDS["HeadGroupSpec"]
    for group in spec["workerGroupSpecs"]:
        assert group.keys() <= FIELDS["WorkerGroupSpec"]
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())


def test_the_image_has_the_ray_that_kuberay_is_given() -> None:
    (image,) = re.findall(r"^ARG RAY=(\S+)$", (FILES / "Dockerfile").read_text(), re.M)
    assert {cluster_spec(kind)["rayVersion"] for kind in ("RayCluster", "RayJob")} == {image}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (needed,) = (r for r in map(Requirement, project["dependencies"]) if r.name == "ray")
    assert needed.specifier.contains(image)


def test_pods_find_their_volumes_and_hold_no_secrets() -> None:
    claims = {d["metadata"]["name"] for d in documents(*MANIFESTS) if "Claim" in d["kind"]}
    for spec in templates():
        assert spec.keys() <= FIELDS["PodSpec"]
        volumes = {v["name"]: v["persistentVolumeClaim"]["claimName"] for v in spec["volumes"]}
        assert set(volumes.values()) <= claims
        for container in spec["containers"]:
            assert container.keys() <= FIELDS["Container"]
            assert {mount["name"] for mount in container["volumeMounts"]} <= set(volumes)
            assert container["image"] == "REGISTRY/vamf:latest"
            for variable in container["env"]:
                assert not re.search("TOKEN|PASSWORD|SECRET|KEY", variable["name"])


def test_ray_s_nodes_all_see_the_runs_and_mlflow() -> None:
    service = one("Service")
    port = service["spec"]["ports"][0]["port"]
    for kind in ("RayCluster", "RayJob"):
        spec = cluster_spec(kind)
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            (container,) = group["template"]["spec"]["containers"]
            assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"]
            uri = {v["name"]: v["value"] for v in container["env"]}["MLFLOW_TRACKING_URI"]
            assert uri == f"http://{service['metadata']['name']}:{port}"
    deployed = one("Deployment")["spec"]
    labels = deployed["template"]["metadata"]["labels"]
    assert service["spec"]["selector"] == deployed["selector"]["matchLabels"] == labels


def test_the_job_is_one_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    python, module, name, *arguments = shlex.split(one("RayJob")["spec"]["entrypoint"])
    assert (python, module, name) == ("python", "-m", "jobs.tune")
    Submission(command=("tune", *arguments), working_dir=ROOT)
    tune.main([*arguments, "--dry-run"])
    assert '"steps"' in capsys.readouterr().out


INSTRUCTIONS = {"FROM", "ARG", "RUN", "WORKDIR", "COPY", "ENV", "EXPOSE", "CMD"}


def test_the_dockerfile_copies_what_is_there() -> None:
    text = re.sub(r"\\\n", " ", (FILES / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found = [tuple(line.split(maxsplit=1)) for line in lines]
    assert {name for name, _ in found} == INSTRUCTIONS
    assert found[0][0] == "FROM"
    copied = set()
    for name, rest in found:
        if name == "COPY":
            *sources, _ = rest.split()
            copied |= set(sources)
            assert all((ROOT / source).exists() for source in sources), sources
    packages = {"vamf", "tune_spaces", "jobs"}  # of pyproject.toml
    assert copied == {"pyproject.toml", "README.md", *packages}


@pytest.mark.slow
def test_mlflow_starts_as_deployed_and_answers_to_its_name(tmp_path: Path) -> None:
    (container,) = one("Deployment")["spec"]["template"]["spec"]["containers"]
    assert container["command"] == ["mlflow", "server"]
    (port,) = free_ports(1)
    changes = {"=/mlflow": f"={tmp_path}", "//mlflow": f"/{tmp_path}", "0.0.0.0": "127.0.0.1"}
    arguments = [*container["args"], f"--port={port}", "--workers=1"]
    for before, after in changes.items():
        arguments = [argument.replace(before, after) for argument in arguments]
    env = {variable["name"]: variable["value"] for variable in container["env"]}
    server = subprocess.Popen(
        [sys.executable, "-m", "mlflow", "server", *arguments],
        env=os.environ | env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
        start_new_session=True,
    )
    try:
        asked = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search?max_results=1"
        wait_until(lambda: answer(asked, "mlflow:5000") is not None, "an answer of MLflow")
        assert answer(asked, "mlflow:5000") == 200
        assert answer(asked, "localhost:5000") == 200
        assert answer(asked, "evil.example") == 403
        assert (tmp_path / "mlflow.db").exists()
    finally:
        os.killpg(server.pid, 9)
        server.wait()


def answer(url: str, host: str) -> int | None:
    """The status of the answer to a request to a host of that name; None without one."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Host": host})) as found:
            return found.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None


COMMANDS = pages.commands("jobs/cluster/README.md")


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_page_s_commands_parse(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    job, *arguments = command
    if job == "resend":
        assert cli.read(resend.Options, arguments, "resend").folder == "/shared/runs"
        return
    assert job == "submit"
    if "--" not in arguments:
        with pytest.raises(ValueError, match="dashboard must answer"):
            submit.main([*arguments, "--address", "http://127.0.0.1:1"])
        return
    at = arguments.index("--")
    Submission(command=tuple(arguments[at + 1 :]), working_dir=ROOT)
    with pytest.raises(ValueError, match="dashboard must answer"):
        submit.main([*arguments[:at], "--address", "http://127.0.0.1:1", *arguments[at:]])
    name, *options = arguments[at + 1 :]
    if "--resume" not in options:
        {"train": train, "tune": tune}[name].main([*options, "--dry-run"])
        assert '"steps"' in capsys.readouterr().out


def test_the_page_names_files_that_exist() -> None:
    text = (FILES / "README.md").read_text()
    named = set(re.findall(r"jobs/cluster/[\w.-]+", text))
    assert named and all((ROOT / name).exists() for name in named)
    assert {f"jobs/cluster/{path.name}" for path in FILES.iterdir()} - named == {
        "jobs/cluster/README.md"
    }
