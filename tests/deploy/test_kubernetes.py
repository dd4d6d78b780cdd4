"""`deploy/kubernetes`, as far as it can be held to its word without a cluster.

The chart's keys are those that its schema names; what the chart makes of them is put to Dagster's
own configuration types and Kubernetes' own models.
"""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml
from dagster._config import process_config
from dagster._core.instance.config import dagster_instance_config_schema
from dagster_aws.s3 import S3ComputeLogManager
from dagster_k8s import K8sRunLauncher
from dagster_k8s.job import (
    DagsterK8sJobConfig,
    UserDefinedDagsterK8sConfig,
    construct_dagster_k8s_job,
)
from dagster_k8s.models import k8s_model_from_dict, k8s_snake_case_dict
from kubernetes import client
from typer.testing import CliRunner

from nanobanana_pipeline.cli import app
from nanobanana_pipeline.generation.engine.timing import DEFAULT_TIMING
from nanobanana_pipeline.settings import Settings
from tests.test_provider_page import ROOT

DEPLOY = ROOT / "deploy" / "kubernetes"
VALUES: dict[str, Any] = yaml.safe_load((DEPLOY / "values.yaml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CODE = VALUES["dagster-user-deployments"]["deployments"][0]
LAUNCHER = VALUES["runLauncher"]["config"]["k8sRunLauncher"]
S3_LOGS = S3ComputeLogManager.config_type()  # type: ignore[no-untyped-call]
K8S_LAUNCHER = K8sRunLauncher.config_type()  # type: ignore[no-untyped-call]
POD = {
    *("image", "env", "envConfigMaps", "envSecrets", "labels", "annotations", "resources"),
    *("nodeSelector", "affinity", "tolerations", "podSecurityContext", "securityContext"),
    *("livenessProbe", "readinessProbe", "startupProbe", "schedulerName"),
    *("volumeMounts", "volumes"),
}
DAEMON_OWN = {
    *("enabled", "runCoordinator", "heartbeatTolerance", "deploymentLabels", "runMonitoring"),
    *("runRetries", "sensors", "schedules"),
}
WEBSERVER_OWN = {
    *("replicaCount", "nameOverride", "pathPrefix", "service", "workspace", "deploymentLabels"),
    *("enableReadOnly", "dbStatementTimeout", "dbPoolRecycle", "logLevel"),
}
DOCUMENTED = {
    "": {
        *("nameOverride", "fullnameOverride", "rbacEnabled", "imagePullSecrets", "global"),
        *("dagsterWebserver", "dagster-user-deployments", "postgresql", "redis", "rabbitmq"),
        *("generatePostgresqlPasswordSecret", "generateCeleryConfigSecret", "flower", "ingress"),
        *("computeLogManager", "scheduler", "runLauncher", "pythonLogs", "dagsterDaemon"),
        *("busybox", "migrate", "telemetry", "serviceAccount", "retention", "extraManifests"),
        *("additionalInstanceConfig", "concurrency", "defsStateStorage"),
    },
    "global": {
        *("postgresqlSecretName", "dagsterHome", "serviceAccountName", "celeryConfigSecretName"),
        "dagsterInstanceConfigMap",
    },
    "postgresql": {
        *("enabled", "image", "postgresqlScheme", "postgresqlHost", "postgresqlUsername"),
        *("postgresqlPassword", "postgresqlDatabase", "postgresqlParams", "service"),
    },
    "dagsterDaemon": POD | DAEMON_OWN,
    "dagsterWebserver": POD | WEBSERVER_OWN,
    "dagsterDaemon.runCoordinator": {"enabled", "type", "config"},
    "dagsterDaemon.runMonitoring": {
        *("enabled", "startTimeoutSeconds", "cancelTimeoutSeconds", "maxResumeRunAttempts"),
        *("pollIntervalSeconds", "freeSlotsAfterRunEndSeconds"),
    },
    "concurrency": {"enabled", "pools", "runs"},
    "concurrency.runs": {"maxConcurrentRuns", "tagConcurrencyLimits"},
    "dagster-user-deployments": {"enabled", "enableSubchart", "imagePullSecrets", "deployments"},
    "dagster-user-deployments.deployments.0": {
        *POD,
        *("name", "dagsterApiGrpcArgs", "codeServerArgs", "includeConfigInLaunchedRuns", "port"),
    },
    "retention": {"enabled", "sensor", "schedule", "autoMaterialize"},
    "retention.sensor": {"purgeAfterDays"},
    "runLauncher": {"type", "config"},
    "runLauncher.config.k8sRunLauncher": {
        *("image", "imagePullPolicy", "jobNamespace", "loadInclusterConfig", "kubeconfigFile"),
        *("envConfigMaps", "envSecrets", "envVars", "volumeMounts", "volumes", "labels"),
        *("failPodOnRunFailure", "resources", "schedulerName", "securityContext", "runK8sConfig"),
    },
    "runLauncher.config.k8sRunLauncher.runK8sConfig": {
        *("containerConfig", "podSpecConfig", "podTemplateSpecMetadata"),
        *("jobSpecConfig", "jobMetadata"),
    },
    "computeLogManager": {"type", "config"},
    "computeLogManager.config.s3ComputeLogManager": {
        *("bucket", "localDir", "prefix", "useSsl", "verify", "verifyCertPath", "endpointUrl"),
        *("skipEmptyFiles", "uploadInterval", "uploadExtraArgs", "showUrlOnly", "region"),
    },
}
"""The keys that the chart's schema (helm/dagster/schema of dagster-io/dagster) allows, by block."""


def at(path: str) -> Any:
    found: Any = VALUES
    for part in filter(None, path.split(".")):
        found = found[int(part)] if part.isdigit() else found[part]
    return found


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])([A-Z])", lambda found: f"_{found[1].lower()}", name)


def snaked(block: dict[str, Any], depth: int = 1) -> dict[str, Any]:
    """Keys as `dagster.yaml` has them, so many levels down."""
    return {
        snake(name): snaked(value, depth - 1) if depth > 1 and isinstance(value, dict) else value
        for name, value in block.items()
    }


def rendered() -> dict[str, Any]:
    """The part of `dagster.yaml` that the chart makes of these values, without classes."""
    return {
        "run_monitoring": snaked(at("dagsterDaemon.runMonitoring")),
        "concurrency": snaked(switched_on("concurrency"), 2),
        "retention": snaked(switched_on("retention"), 2),
        "telemetry": at("telemetry"),
        **at("additionalInstanceConfig"),
    }


def switched_on(path: str) -> dict[str, Any]:
    """A block that the chart leaves out unless it is told not to."""
    block = dict(at(path))
    assert block.pop("enabled") is True
    return block


def problems_of(schema: Any, config: dict[str, Any]) -> list[str]:
    return [error.message for error in process_config(schema, config).errors or []]


@pytest.mark.parametrize("path", DOCUMENTED)
def test_every_key_is_one_of_the_charts(path: str) -> None:
    assert set(at(path)) - DOCUMENTED[path] == set()


def test_dagster_takes_what_the_chart_makes_of_it() -> None:
    schema = {name: dagster_instance_config_schema()[name] for name in rendered()}
    assert problems_of(schema, rendered()) == []
    logs = at("computeLogManager.config.s3ComputeLogManager")
    assert problems_of(S3_LOGS, snaked(logs)) == []
    assert problems_of(S3_LOGS, {"bucket": "b", "wrong": 1}) != []
    chart = {
        "service_account_name": "dagster",
        "instance_config_map": "dagster-instance",
        "postgres_password_secret": at("global.postgresqlSecretName"),
        "dagster_home": at("global.dagsterHome"),
    }
    assert problems_of(K8S_LAUNCHER, {**chart, **snaked(LAUNCHER, 2)}) == []


def test_the_limits_are_those_of_the_project() -> None:
    shipped = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    del shipped["run_queue"]  # pods of runs are started without the code server
    ours = rendered()
    ours["concurrency"]["runs"].pop("max_concurrent_runs")
    ours["run_monitoring"] = {"enabled": ours["run_monitoring"]["enabled"]}
    assert {name: ours[name] for name in shipped} == shipped


def test_the_pod_of_a_run_has_time_to_stop_and_is_nobody() -> None:
    config = DagsterK8sJobConfig(
        job_image="nanobanana:0.2.0.dev0",
        dagster_home=at("global.dagsterHome"),
        env_secrets=[secret["name"] for secret in CODE["envSecrets"]],
    )
    raw = UserDefinedDagsterK8sConfig(**snaked(LAUNCHER["runK8sConfig"]))
    job = construct_dagster_k8s_job(config, ["dagster"], "run", raw)
    spec = job.spec.template.spec
    stopping = DEFAULT_TIMING.grace_seconds + DEFAULT_TIMING.doubt_seconds
    assert spec.termination_grace_period_seconds >= 2 * stopping
    assert spec.security_context.run_as_non_root
    (container,) = spec.containers
    assert container.resources.limits["memory"] == "2Gi"
    assert "cpu" not in container.resources.limits
    assert not container.security_context.allow_privilege_escalation
    assert [source.secret_ref.name for source in container.env_from if source.secret_ref] == [
        "nanobanana-provider",
        "nanobanana-s3",
    ]


def test_only_what_buys_knows_the_providers_key() -> None:
    knowing = [
        name
        for name in ("dagsterWebserver", "dagsterDaemon")
        if {"name": "nanobanana-provider"} in VALUES[name].get("envSecrets", [])
    ]
    assert knowing == []
    settings = {f"NANOBANANA_{name.upper()}" for name in Settings.model_fields}
    assert {name for name in CODE["env"] if name.startswith("NANOBANANA_")} <= settings
    assert not {"NANOBANANA_API_KEY", "NANOBANANA_WEBHOOK_SECRET"} & set(CODE["env"])
    assert at("postgresql").get("postgresqlPassword") is None


def test_kubernetes_takes_the_webhooks_receiver() -> None:
    deployment, service = yaml.safe_load_all((DEPLOY / "webhooks.yaml").read_text())
    for model, found in ((client.V1Deployment, deployment), (client.V1Service, service)):
        assert k8s_model_from_dict(model, k8s_snake_case_dict(model, found)).metadata.name
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"].endswith(f"/nanobanana:{PROJECT['version']}")
    program, *words = container["command"]
    assert program == "nanobanana"
    asked = CliRunner().invoke(app, [*words[:2], "--help"], env={"COLUMNS": "300"})
    options = [word for word in words if word.startswith("--")]
    shown = re.sub(r"\x1b\[[0-9;]*m", "", asked.output)
    assert [option for option in options if option not in shown] == []


def test_every_image_is_of_this_version() -> None:
    for path in ("dagsterWebserver", "dagsterDaemon", "dagster-user-deployments.deployments.0"):
        assert at(path)["image"]["tag"] == PROJECT["version"]


def test_the_image_is_built_of_what_is_there() -> None:
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    copied = [
        part for line in lines if re.match(r"COPY (?!--from)", line) for part in line.split()[1:-1]
    ]
    assert copied
    assert [part for part in copied if not Path(ROOT, part).exists()] == []
    extras = {extra for line in lines for extra in re.findall(r"--extra (\w+)", line)}
    assert extras == {"aws", "postgres", "kubernetes"}
    assert extras <= set(PROJECT["optional-dependencies"])
    needed = {"README.md", *PROJECT["license-files"]}
    assert needed <= set(copied)
    assert all("--locked --no-dev" in line for line in lines if "uv sync" in line)
    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users
    assert users[-1].isdigit()
    assert int(users[-1]) > 0
    assert any("PYTHONUNBUFFERED=1" in line for line in lines)
    assert any(f"DAGSTER_HOME={at('global.dagsterHome')}" in line for line in lines)


def test_the_images_environment_works_without_its_sources(tmp_path: Path) -> None:
    """The build stage step by step, but for its base: no image can be had here."""
    text = (DEPLOY / "Containerfile").read_text()
    build = text.split("\nFROM ")[1].splitlines()
    for step, _, words in (line.partition(" ") for line in build):
        if step == "COPY":
            *sources, target = words.split()
            for source in sources:
                _copy(ROOT / source, tmp_path / target)
        elif step == "RUN" and words.startswith("uv sync"):
            # A test's own environment must not be the one that is filled.
            there = {**os.environ, "UV_PROJECT_ENVIRONMENT": str(tmp_path / ".venv")}
            subprocess.run([*words.split(), "--quiet"], cwd=tmp_path, env=there, check=True)
    for left in tmp_path.iterdir():
        if left.name != ".venv":
            shutil.rmtree(left) if left.is_dir() else left.unlink()
    program = tmp_path / ".venv" / "bin" / "nanobanana"
    told = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == PROJECT["version"]
    needed = "import dagster_k8s, dagster_postgres, dagster_aws, dagster_nanobanana.definitions"
    subprocess.run([program.with_name("python"), "-c", needed], cwd=tmp_path, check=True)
    assert not program.with_name("pytest").exists()


def _copy(source: Path, target: Path) -> None:
    """As COPY does: a folder's content, or a file into a folder or under a name."""
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(source, target)


def test_the_code_server_is_started_as_on_one_machine() -> None:
    unit = (ROOT / "deploy/local-postgres/systemd/nanobanana-code.service").read_text()
    assert (
        f"dagster code-server start -h 127.0.0.1 -p 4000 {' '.join(CODE['codeServerArgs'])}" in unit
    )
