"""The calls that Dagster's own UI makes."""

import json
import time
from typing import Any

import pytest
import requests

from tests.cli.test_profile import START_SECONDS

WHERE = {"repositoryName": "__repository__", "repositoryLocationName": "nanobanana"}


class Dagster:
    """The UI's own calls."""

    def __init__(self, url: str) -> None:
        self._url = f"{url}/graphql"

    def ask(self, query: str, **variables: object) -> Any:
        sent = {"query": query, "variables": variables}
        answer = requests.post(self._url, json=sent, timeout=60).json()
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
