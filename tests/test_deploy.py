"""Deployment files: valid manifests, rules that fire, a dashboard of existing metrics, Redis users."""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import redis
import yaml
from pydantic import SecretStr
from starlette.testclient import TestClient

from service.app import create_app
from service.jobs.embedded import server_program
from service.jobs.metrics import families
from service.settings import Settings
from tests.chaos.stub_child import stub_video

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
KUBERNETES = "1.37"
KUBECTL = Path(sys.executable).with_name("kubectl")
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (Debian package prometheus)"
)


@pytest.fixture(scope="module")
def manifests() -> list[dict[str, Any]]:
    """The objects of the kustomization."""
    built = subprocess.run([KUBECTL, "kustomize", DEPLOY / "kustomize"], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    return list(yaml.safe_load_all(built.stdout))


def find(manifests: list[dict[str, Any]], kind: str, name: str) -> dict[str, Any]:
    [manifest] = [item for item in manifests if item["kind"] == kind and item["metadata"]["name"].startswith(name)]
    return manifest


def container(manifest: dict[str, Any]) -> dict[str, Any]:
    containers: list[dict[str, Any]] = manifest["spec"]["template"]["spec"]["containers"]
    assert len(containers) == 1
    return containers[0]


# --- Kubernetes


def test_the_kustomization_is_valid_under_strict_schemas(manifests: list[dict[str, Any]]) -> None:
    ours = [manifest for manifest in manifests if manifest["kind"] != "ScaledObject"]  # KEDA's own type
    for manifest in ours:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    assert {"Deployment", "StatefulSet", "PodDisruptionBudget", "NetworkPolicy"} <= {item["kind"] for item in ours}


@pytest.mark.parametrize(
    ("field", "value"), [("terminationGracePeriodSecond", 60), ("terminationGracePeriodSeconds", "60")]
)
def test_a_broken_field_is_invalid(manifests: list[dict[str, Any]], field: str, value: object) -> None:
    broken = json.loads(json.dumps(find(manifests, "Deployment", "worker")))
    broken["spec"]["template"]["spec"][field] = value
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


def test_a_worker_has_a_gpu_scratch_space_and_time_to_end_its_job(manifests: list[dict[str, Any]]) -> None:
    worker = find(manifests, "Deployment", "worker")
    pod = worker["spec"]["template"]["spec"]
    grace_s = int(find(manifests, "ConfigMap", "uvos")["data"]["UVOS_SHUTDOWN_GRACE_S"])
    assert pod["terminationGracePeriodSeconds"] >= grace_s + 10
    assert container(worker)["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert any("emptyDir" in volume for volume in pod["volumes"])
    assert "replicas" not in worker["spec"], "KEDA sets them"


def test_keda_scales_the_workers_by_an_existing_metric(manifests: list[dict[str, Any]]) -> None:
    spec = find(manifests, "ScaledObject", "worker")["spec"]
    assert spec["scaleTargetRef"]["name"] == find(manifests, "Deployment", "worker")["metadata"]["name"]
    [trigger] = spec["triggers"]
    assert trigger["metadata"]["valueLocation"] in {family.name for family in families()}
    service = find(manifests, "Service", "api")
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc"
    assert host in trigger["metadata"]["url"]


def test_every_setting_of_the_kustomization_exists(manifests: list[dict[str, Any]]) -> None:
    names = set(find(manifests, "ConfigMap", "uvos")["data"])
    for kind in ("api", "worker"):
        names |= {entry["name"] for entry in container(find(manifests, "Deployment", kind))["env"]}
    settings = {f"UVOS_{name.upper()}" for name in Settings.model_fields}
    assert {name for name in names if name.startswith("UVOS_")} <= settings


def test_selectors_match_pods(manifests: list[dict[str, Any]]) -> None:
    templates = [item["spec"]["template"] for item in manifests if "template" in item.get("spec", {})]
    pods = [template["metadata"]["labels"]["app"] for template in templates]
    budgets = [item["spec"]["selector"] for item in manifests if item["kind"] == "PodDisruptionBudget"]
    policies = [item["spec"]["podSelector"] for item in manifests if item["kind"] == "NetworkPolicy"]
    assert sorted(pods) == ["api", "redis", "worker"]
    assert {budget["matchLabels"]["app"] for budget in budgets} == {"api", "worker"}
    assert {} in policies, "everything else is denied"
    assert {policy["matchLabels"]["app"] for policy in policies if policy} == set(pods)


# --- Redis users


@contextmanager
def redis_with_users(folder: Path) -> Iterator[Path]:
    """The socket of a server with the users of the kustomization, whose passwords are their names."""
    users = (DEPLOY / "kustomize" / "users.acl").read_text()
    for name in ("api", "worker"):
        users = users.replace(f"{name.upper()}_SHA256", hashlib.sha256(name.encode()).hexdigest())
    (folder / "users.acl").write_text(users)
    socket = folder / "redis.sock"
    command = [server_program(), "--port", "0", "--unixsocket", socket, "--aclfile", folder / "users.acl", "--save", ""]
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while not socket.exists():
            assert server.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield socket
    finally:
        server.kill()
        server.wait()


@contextmanager
def stub_worker(url: str, data: Path, log_path: Path) -> Iterator[None]:
    environment = os.environ | {"UVOS_REDIS_URL": url, "UVOS_DATA_DIR": str(data)}
    command = [sys.executable, "-m", "tests.chaos.stub_worker"]
    with log_path.open("wb") as log:
        worker = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        worker.terminate()
        worker.wait(20)


def test_the_users_of_redis_may_run_jobs_and_nothing_else(tmp_path: Path) -> None:
    data, log = tmp_path / "data", tmp_path / "log"
    with redis_with_users(tmp_path) as socket:
        url = SecretStr(f"unix://api:api@{socket}")
        settings = Settings(redis_url=url, data_dir=data, allowed_hosts=["testserver"], model="tiny")
        with TestClient(create_app(settings)) as http, stub_worker(f"unix://worker:worker@{socket}", data, log):
            job = http.post("/segment", files={"video": ("a.mp4", stub_video(0.2))}).json()
            path = f"/jobs/{job['id']}"
            assert http.get(path, params={"wait": 40}).json()["status"] == "succeeded", log.read_text()
            assert "event: end" in http.get(f"{path}/events").text
            long = http.post("/segment", files={"video": ("b.mp4", stub_video(30))}).json()
            assert http.post(f"/jobs/{long['id']}/cancel").json()["status"] == "canceled"
            assert http.get("/jobs", params={"status": "canceled"}).json()["jobs"][0]["id"] == long["id"]
            assert "uvos_jobs_accepted_total" in http.get("/metrics").text
        assert "permission" not in log.read_text().lower()
        with redis.Redis(unix_socket_path=str(socket), username="worker", password="worker") as user:
            for forbidden in (("FLUSHALL",), ("CONFIG", "GET", "*"), ("SET", "elsewhere", "1"), ("KEYS", "*")):
                with pytest.raises(redis.exceptions.NoPermissionError):
                    user.execute_command(*forbidden)
        with redis.Redis(unix_socket_path=str(socket)) as anonymous, pytest.raises(redis.AuthenticationError):
            anonymous.get("uvos:metrics")


# --- Prometheus and Grafana


def metric_names(expression: str) -> set[str]:
    return {re.sub(r"_(bucket|sum|count|total)$", "", name) for name in re.findall(r"\buvos_[a-z_]+", expression)}


def dashboard_expressions() -> list[str]:
    dashboard = json.loads((DEPLOY / "grafana" / "uvos.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def test_rules_and_dashboard_use_existing_metrics() -> None:
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text())
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]] + dashboard_expressions()
    names = {family.name for family in families()}
    assert {name for expression in expressions for name in metric_names(expression)} <= names
    assert names <= {name for expression in dashboard_expressions() for name in metric_names(expression)} | {
        "uvos_jobs_accepted",
        "uvos_jobs_open",
    }


def promtool(folder: Path, *arguments: str) -> None:
    run = subprocess.run(["promtool", *arguments], cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


@needs_promtool
def test_the_rules_fire_when_they_should() -> None:
    for command in ("check rules rules.yml", "check config prometheus.yml", "test rules rules-test.yml"):
        promtool(DEPLOY / "prometheus", *command.split())


@needs_promtool
def test_the_expressions_of_the_dashboard_are_valid(tmp_path: Path) -> None:
    records = [
        {"record": f"panel_{number}", "expr": expression.replace("$__rate_interval", "1m")}
        for number, expression in enumerate(dashboard_expressions())
    ]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": records}]}))
    promtool(tmp_path, "check", "rules", "panels.yml")


# --- Compose


def test_the_observability_profile_mounts_existing_files() -> None:
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    ours = {name: service for name, service in services.items() if "observability" in service.get("profiles", [])}
    assert set(ours) == {"prometheus", "grafana"}
    for service in ours.values():
        mounts = [volume.split(":")[0] for volume in service["volumes"] if volume.startswith("./")]
        assert mounts
        assert all((ROOT / mount).exists() for mount in mounts)
    assert (DEPLOY / "prometheus" / "prometheus.yml").read_text().count("api:8000") == 1
