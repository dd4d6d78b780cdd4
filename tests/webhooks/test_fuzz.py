"""The receiver, fuzzed through its own OpenAPI document: by strangers, and by who has a token."""

import uuid
from collections.abc import Iterator
from typing import Any, TypeAlias

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error

from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.webhooks.inbox import Inbox, Webhooks, attempt_id
from nanobanana_pipeline.webhooks.receiver import MAX_BODY_BYTES, document
from tests.webhooks.serving import receiving

# No settings of the folder that the tests are started in.
SCHEMA = schemathesis.openapi.from_dict(document(), config=schemathesis.Config())
Case: TypeAlias = schemathesis.Case[Any]
BOUNDED = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    # One receiver serves all cases of an operation: that is meant.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SECONDS = 20


@pytest.fixture
def webhooks(store: ObjectStore) -> Iterator[Webhooks]:
    with receiving(store) as running:
        yield running


def test_the_document_is_the_one_that_is_served(webhooks: Webhooks) -> None:
    assert requests.get(f"{webhooks.url}/openapi.json", timeout=SECONDS).json() == document()


@pytest.mark.usefixtures("own_id")
@SCHEMA.parametrize()
@BOUNDED
def test_a_stranger_gets_documented_answers_and_leaves_nothing(
    case: Case, webhooks: Webhooks, store: ObjectStore
) -> None:
    case.call_and_validate(base_url=webhooks.url, timeout=SECONDS)
    assert not any(store.keys("", limit=1))


@pytest.mark.usefixtures("own_id")
@SCHEMA.include(operation_id="tell").parametrize()
@BOUNDED
def test_who_has_the_token_may_say_anything(
    case: Case, webhooks: Webhooks, store: ObjectStore
) -> None:
    attempt = attempt_id(uuid.uuid4().hex * 2, uuid.uuid4().hex[:16])
    token = webhooks.address(attempt).rpartition("/")[2]
    case.path_parameters = {"attempt_id": attempt, "token": token}
    answer = case.call(base_url=webhooks.url, timeout=SECONDS)
    case.validate_response(answer, checks=[not_a_server_error])
    if case.method == "POST":
        too_large = len(answer.request.body or b"") > MAX_BODY_BYTES
        assert answer.status_code == (413 if too_large else 204)
        assert len(Inbox(store).read(attempt)) == (not too_large)
