from collections.abc import Iterator

import pytest

from nanobanana_pipeline.emulator import EmulatorConfig, running
from tests.emulator.account import Account

LATENCY = 100.0  # seconds; they pass only when a test moves the clock


@pytest.fixture
def account() -> Iterator[Account]:
    config = EmulatorConfig(latency_seconds=(LATENCY, LATENCY), cap=3, retry_after_seconds=7)
    with running(config) as base_url:
        yield Account(base_url)
