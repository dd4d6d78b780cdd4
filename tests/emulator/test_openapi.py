"""The emulator, fuzzed through its own OpenAPI document."""

import base64
import io
from collections.abc import Iterator
from typing import Any, TypeAlias

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, settings
from PIL import Image
from schemathesis.checks import not_a_server_error
from schemathesis.generation.stateful import run_state_machine_as_test
from schemathesis.specs.openapi.checks import positive_data_acceptance

from nanobanana_pipeline.emulator import EmulatorConfig, EmulatorThread
from nanobanana_pipeline.emulator.app import EmulatorApp
from nanobanana_pipeline.emulator.moods import MOODS, Stage
from nanobanana_pipeline.emulator.openapi import document
from tests.emulator.account import Account

# No settings of the folder that the tests are started in.
SCHEMA = schemathesis.openapi.from_dict(document(), config=schemathesis.Config())
Case: TypeAlias = schemathesis.Case[Any]
GENERATIONS = SCHEMA.include(operation_id=["text2img", "img2img", "multi_ref"])
BOUNDED = settings(
    max_examples=30,
    deadline=None,
    derandomize=True,
    database=None,
    # One emulator serves all cases of an operation: that is meant.
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SECONDS = 10
# Fuzzed webhooks name other people's hosts.
QUIET: dict[str, float] = {"webhook_never": 1}
OTHER_SHAPES = ("messege", "output_string", "proxy_links_map", "extras", "id_string", "eta_float")
RATES = {
    Stage.REFUSAL: 0.05,
    Stage.VARIANT: 0.3,
    Stage.GENERATION: 0.2,
    Stage.DELIVERY: 0.3,
}


def emulator(**more: Any) -> EmulatorThread:
    config: dict[str, Any] = {"latency_seconds": (0, 0), "moods": QUIET}
    return EmulatorThread(EmulatorConfig(**config | more))


@pytest.fixture
def root_url() -> Iterator[str]:
    """An emulator of its own for each operation: what one does disturbs no other."""
    with emulator() as running:
        yield running.root_url


@pytest.fixture
def moody_url() -> Iterator[str]:
    rates = {name: RATES[stage] for name, stage in MOODS.items() if stage in RATES}
    with emulator(mode="sync", moods=rates | QUIET) as running:
        yield running.root_url


def _picture() -> str:
    out = io.BytesIO()
    Image.new("RGB", (1, 1)).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


PICTURE = _picture()


def give_pictures(case: Case) -> None:
    """Let a valid order start from pictures: no schema can say what text is one."""
    valid = case.meta is not None and case.meta.generation.mode.is_positive
    if valid and isinstance(case.body, dict) and "ref_image" in case.body:
        several = isinstance(case.body["ref_image"], list)
        case.body["ref_image"] = [PICTURE] if several else PICTURE


@pytest.mark.usefixtures("own_id")
@SCHEMA.parametrize()
@BOUNDED
def test_every_operation_answers_as_documented(case: Case, root_url: str) -> None:
    give_pictures(case)
    answer = case.call_and_validate(base_url=root_url, timeout=SECONDS)
    if answer.status_code == 200 and "future_links" in answer.json():
        output = requests.get(answer.json()["future_links"][-1], timeout=SECONDS)
        assert output.status_code == 200
        assert output.content


@pytest.mark.usefixtures("own_id")
@GENERATIONS.parametrize()
@BOUNDED
def test_the_document_covers_every_shape_that_a_mood_gives(case: Case, moody_url: str) -> None:
    give_pictures(case)
    refusals: list[schemathesis.CheckFunction] = [not_a_server_error, positive_data_acceptance]
    case.call_and_validate(base_url=moody_url, timeout=SECONDS, excluded_checks=refusals)


@pytest.mark.parametrize("shapes", [(), OTHER_SHAPES], ids=["documented", "other"])
def test_what_was_bought_is_fetched_by_the_documents_link(shapes: tuple[str, ...]) -> None:
    seen: list[str] = []
    # Always or never: what a test does again must come out the same.
    with emulator(moods=dict.fromkeys(shapes, 1) | QUIET) as running:
        schema = schemathesis.openapi.from_url(
            f"{running.root_url}/openapi.json", config=schemathesis.Config()
        )
        machine = schema.include(operation_id=["text2img", "fetch"]).as_state_machine()

        class Customer(machine):  # type: ignore[misc, valid-type]
            def after_call(self, response: schemathesis.Response, case: Case) -> None:
                if "fetch" in case.path and response.status_code == 200:
                    seen.append(response.json()["status"])

        run_state_machine_as_test(Customer, settings=settings(BOUNDED, stateful_step_count=4))
    # Whether an unknown id is tried too depends on what hypothesis finds in the modules loaded.
    assert "success" in seen


def test_every_route_is_in_the_document_and_nothing_else() -> None:
    routes = {
        (route.path.replace(":path", ""), method)
        for route in EmulatorApp(EmulatorConfig())._counter._app._app.routes  # type: ignore[attr-defined]
        for method in route.methods - {"HEAD"}
    }
    documented = {
        (path, method.upper())
        for path, operations in document()["paths"].items()
        for method in operations
    }
    assert routes == documented


def test_the_document_is_served_and_the_requests_in_it_are_the_contracts(
    account: Account,
) -> None:
    served = account.get(f"{account.root_url}/openapi.json").json()
    assert served == document()
    call = served["paths"]["/api/v1/enterprise/nano_banana/text2img"]["post"]
    order = call["requestBody"]["content"]["application/json"]["schema"]
    assert order["required"] == ["key", "prompt"]
    assert set(order["properties"]) == {
        *("key", "prompt", "negative_prompt", "width", "height", "seed", "samples"),
        *("noise_scale_start", "noise_scale_end", "noise_clip_std"),
        *("watermark", "temp", "base64", "webhook", "track_id"),
    }


@pytest.mark.parametrize("number", ["1e400", "-1e400", "NaN", "1" + "0" * 400, "9" * 5000])
def test_numbers_that_no_schema_thinks_of_are_refused_by_the_admin(
    account: Account, number: str
) -> None:
    for name, field in (("clock", "advance"), ("moods", "failed")):
        refused = requests.post(
            f"{account.root_url}/admin/{name}", data=f'{{"{field}": {number}}}', timeout=SECONDS
        )
        assert refused.status_code == 400
        assert refused.json()["error"]
    assert account.admin("moods")["failed"] == 0
