"""`nanobanana dev`, and the calls that Dagster's own UI makes."""

import contextlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from nanobanana_pipeline import local
from nanobanana_pipeline.storage import ObjectStore, s3_client
from tests.cli.test_profile import START_SECONDS, STOP_SECONDS, start_dev, wait_until_gone
from tests.test_provider_page import ROOT

WHERE = {"repositoryName": "__repository__", "repositoryLocationName": "nanobanana"}


class Dagster:
    """The UI's own calls."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/graphql"

    def ask(self, query: str, **variables: object) -> Any:
        sent = {"query": query, "variables": variables}
        answer = requests.post(self._url, json=sent, timeout=300).json()
        assert "errors" not in answer, json.dumps(answer)
        return answer["data"]

    def add_partition(self, dimension: str, key: str) -> None:
        self.ask(
            """mutation($where: RepositorySelector!, $dimension: String!, $key: String!) {
                addDynamicPartition(repositorySelector: $where, partitionsDefName: $dimension,
                    partitionKey: $key) { __typename } }""",
            where=WHERE,
            dimension=dimension,
            key=key,
        )

    def launch(self, asset: str, config: object, **partition: str) -> str:
        key = "|".join(partition.values())
        tags = [{"key": "dagster/partition", "value": key}]
        if len(partition) > 1:
            tags += [{"key": f"dagster/partition/{d}", "value": v} for d, v in partition.items()]
        answer = self.ask(
            """mutation($params: ExecutionParams!) { launchRun(executionParams: $params) {
                __typename ... on LaunchRunSuccess { run { runId } }
                ... on PythonError { message } } }""",
            params={
                "selector": {
                    **WHERE,
                    "pipelineName": "__ASSET_JOB",
                    "assetSelection": [{"path": [asset]}],
                },
                "runConfigData": json.dumps({"ops": {asset: {"config": config}}}),
                "executionMetadata": {"tags": tags},
            },
        )
        assert answer["launchRun"]["__typename"] == "LaunchRunSuccess", answer
        run_id: str = answer["launchRun"]["run"]["runId"]
        return run_id

    def backfill(self, asset: str, config: object, partitions: Sequence[str]) -> str:
        """Launch a backfill; gives its id."""
        answer = self.ask(
            """mutation($params: LaunchBackfillParams!) {
                launchPartitionBackfill(backfillParams: $params) {
                    __typename ... on LaunchBackfillSuccess { backfillId }
                    ... on PythonError { message } } }""",
            params={
                "assetSelection": [{"path": [asset]}],
                "partitionNames": list(partitions),
                "runConfigData": {"ops": {asset: {"config": config}}},
            },
        )["launchPartitionBackfill"]
        assert answer["__typename"] == "LaunchBackfillSuccess", answer
        backfill_id: str = answer["backfillId"]
        return backfill_id

    def wait_for_backfill(self, backfill_id: str, seconds: float) -> str:
        """How a backfill ended."""
        query = """query($id: String!) { partitionBackfillOrError(backfillId: $id) {
            ... on PartitionBackfill { status } } }"""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            answer = self.ask(query, id=backfill_id)
            status: str = answer["partitionBackfillOrError"]["status"]
            if status in {"COMPLETED_SUCCESS", "COMPLETED_FAILED", "CANCELED", "FAILED"}:
                return status
            time.sleep(1)
        pytest.fail(f"backfill {backfill_id} does not end")

    def runs_of_backfill(self, backfill_id: str) -> list[tuple[str, str]]:
        """Partition and status of each run of a backfill."""
        query = """query($id: String!) {
            runsOrError(filter: { tags: [{ key: "dagster/backfill", value: $id }] }) {
                ... on Runs { results { status tags { key value } } } } }"""
        found = []
        for run in self.ask(query, id=backfill_id)["runsOrError"]["results"]:
            tags = {tag["key"]: tag["value"] for tag in run["tags"]}
            found.append((tags["dagster/partition"], run["status"]))
        return sorted(found)

    def materialized(self, asset: str, partitions: Sequence[str]) -> set[str]:
        """Those of the partitions that Dagster counts as made."""
        query = """query($key: AssetKeyInput!, $partitions: [String!]) {
            assetNodeOrError(assetKey: $key) { ... on AssetNode {
                latestMaterializationByPartition(partitions: $partitions) { partition } } } }"""
        answer = self.ask(query, key={"path": [asset]}, partitions=list(partitions))
        events = answer["assetNodeOrError"]["latestMaterializationByPartition"]
        return {event["partition"] for event in events if event is not None}

    def counts(self, asset: str) -> dict[str, int]:
        """How many partitions an asset's page says are materialized and failed."""
        query = """query($key: AssetKeyInput!) { assetNodeOrError(assetKey: $key) {
            ... on AssetNode { partitionStats { numMaterialized numFailed } } } }"""
        answer = self.ask(query, key={"path": [asset]})
        stats: dict[str, int] = answer["assetNodeOrError"]["partitionStats"]
        return stats

    def terminate(self, run_id: str) -> None:
        answer = self.ask(
            "mutation($id: String!) { terminateRun(runId: $id) { __typename } }", id=run_id
        )
        assert answer["terminateRun"]["__typename"] == "TerminateRunSuccess"

    def wait_for(self, run_id: str) -> str:
        """How a run ended."""
        query = "query($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            status: str = self.ask(query, id=run_id)["runOrError"]["status"]
            if status in {"SUCCESS", "FAILURE", "CANCELED"}:
                return status
            time.sleep(0.5)
        pytest.fail(f"run {run_id} does not end")

    def log_of(self, run_id: str) -> str:
        """What a run said, a line an event."""
        query = """query($id: ID!) { logsForRun(runId: $id) { ... on EventConnection {
            events { ... on MessageEvent { timestamp eventType message } } } } }"""
        events = self.ask(query, id=run_id)["logsForRun"]["events"]
        return "\n".join(f"{e['timestamp']} {e['eventType']} {e['message']}" for e in events)


@dataclass(frozen=True)
class Dev:
    """`nanobanana dev` that runs.

    Attributes:
        dagster: its webserver.
        emulator: the address of its provider, without a path.
        store: its bucket.
    """

    dagster: Dagster
    emulator: str
    store: ObjectStore


@contextlib.contextmanager
def running_dev(
    folder: Path, tables: Mapping[str, str], more_env: Mapping[str, str] | None = None
) -> Iterator[Dev]:
    """Start `nanobanana dev` in a folder with these prompt tables; at the end nothing is left."""
    (folder / "prompts").mkdir()
    for name, text in tables.items():
        (folder / "prompts" / name).write_text(text)
    data = folder / "data"
    # On a busy machine, that a run's process has not begun after 3 minutes means nothing.
    (data / "dagster").mkdir(parents=True)
    settings = yaml.safe_load((ROOT / "dagster.yaml").read_text())
    settings["run_monitoring"]["start_timeout_seconds"] = 900
    (data / "dagster" / "dagster.yaml").write_text(yaml.safe_dump(settings))
    process, url = start_dev(data, folder / "dev.log", cwd=folder, more_env=more_env)
    try:
        ports = json.loads((data / "ports.json").read_text())
        client = s3_client(
            endpoint_url=f"http://127.0.0.1:{ports['s3']}",
            aws_access_key_id=local.ACCESS_KEY,
            aws_secret_access_key=local.SECRET_KEY,
            region_name="us-east-1",
        )
        emulator = f"http://127.0.0.1:{ports['emulator']}"
        yield Dev(Dagster(url), emulator, ObjectStore(client, local.BUCKET))
    finally:
        process.terminate()
        assert process.wait(STOP_SECONDS) == 0
        assert not wait_until_gone(data)
