"""Settings are checked whole, and every problem is named at once, with the way out."""

from decimal import Decimal
from pathlib import Path

import pytest

from nanobanana_pipeline.errors import SettingsError
from nanobanana_pipeline.money import Cap
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.settings import VENDOR_BASE_URL, Settings

KEY = "sk-very-secret-1234"
REQUIRED = {"api_key": KEY, "bucket": "pictures"}


def problems(**given: object) -> list[str]:
    with pytest.raises(SettingsError) as refused:
        Settings.load(**given)
    return [line.removeprefix("  - ") for line in str(refused.value).splitlines()[1:]]


@pytest.fixture(autouse=True)
def _aws(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "some")


def test_missing_aws_credentials_are_named_with_the_rest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("HOME", str(tmp_path))
    found = problems()
    assert len(found) == 3
    assert "export AWS_ACCESS_KEY_ID" in found[-1]
    # Alone they are S3's to miss: the machine may have a role.
    assert Settings.load(**REQUIRED).bucket == "pictures"


def test_a_key_and_a_bucket_are_enough_for_the_vendor() -> None:
    settings = Settings.load(**REQUIRED)
    assert settings.base_url == VENDOR_BASE_URL
    assert settings.realm == "modelslab"
    assert settings.host == "modelslab.com"
    assert settings.slots == 10


def test_an_unset_environment_is_told_what_to_set() -> None:
    assert [problem.partition(" ")[0] for problem in problems()] == [
        "NANOBANANA_API_KEY",
        "NANOBANANA_BUCKET",
    ]
    assert all("export NANOBANANA_" in problem for problem in problems())


@pytest.mark.parametrize("blank", ["", "  ", "\n"])
def test_a_blank_variable_is_an_unset_one(blank: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("API_KEY", "BUCKET", "REALM"):
        monkeypatch.setenv(f"NANOBANANA_{name}", blank)
    found = problems(base_url="https://images.example/api/")
    assert [problem.partition(" ")[0] for problem in found] == [
        "NANOBANANA_API_KEY",
        "NANOBANANA_BUCKET",
        "NANOBANANA_REALM",
    ]


def test_all_problems_are_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOBANANA_SLOTS", "many")
    monkeypatch.setenv("NANOBANANA_BASE_URL", "http://images.example/api/")
    monkeypatch.setenv("NANOBANANA_PREFIX", "/a")
    found = "\n".join(problems())
    for part in (
        "NANOBANANA_SLOTS='many'",
        "NANOBANANA_API_KEY is not set",
        "NANOBANANA_BUCKET is not set",
        "would send the key in plain text",
        "NANOBANANA_REALM is not set",
        "NANOBANANA_PREFIX='/a'",
    ):
        assert part in found


def test_the_environment_is_read_and_what_is_given_goes_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NANOBANANA_API_KEY", f" {KEY}\n")
    monkeypatch.setenv("NANOBANANA_BUCKET", "one ")
    monkeypatch.setenv("NANOBANANA_SLOTS", "7")
    monkeypatch.setenv("NANOBANANA_ALLOWED_HOSTS", " A.example, ,127.0.0.1 ")
    settings = Settings.load(bucket="two")
    assert settings.api_key is not None
    assert settings.api_key.get_secret_value() == KEY
    assert (settings.bucket, settings.slots) == ("two", 7)
    assert settings.allowed_hosts == ("a.example", "127.0.0.1")


@pytest.mark.parametrize("slots", ["0", "-1", "1001", "2.5", "", "ten"])
def test_slots_are_a_number_within_bounds(slots: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOBANANA_SLOTS", slots)
    (problem,) = problems(**REQUIRED)
    assert problem.startswith(f"NANOBANANA_SLOTS={slots!r}: ")


# --- realms --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base_url", "realm", "expected"),
    [
        (VENDOR_BASE_URL, None, "modelslab"),
        (VENDOR_BASE_URL, "modelslab", "modelslab"),
        ("https://eu.modelslab.com/api/", None, "modelslab"),
        ("https://MODELSLAB.COM/api/", None, "modelslab"),
        ("http://127.0.0.1:8000/api/", None, "emulator"),
        ("http://127.8.9.1/api/", None, "emulator"),
        ("http://localhost:8000/api/", None, "emulator"),
        ("http://[::1]:8000/api/", None, "emulator"),
        ("http://127.0.0.1:8000/api/", "rehearsal-2", "rehearsal-2"),
        ("https://images.example/api/", "own", "own"),
    ],
)
def test_each_provider_has_its_realm(base_url: str, realm: str | None, expected: str) -> None:
    assert Settings.load(**REQUIRED, base_url=base_url, realm=realm).realm == expected


@pytest.mark.parametrize(
    "base_url",
    [
        "https://images.example/api/",
        "https://evilmodelslab.com/",
        "https://modelslab.com.evil.example/",
        "https://127.0.0.1.evil.example/",
    ],
)
def test_any_other_provider_must_name_its_own(base_url: str) -> None:
    (problem,) = problems(**REQUIRED, base_url=base_url)
    assert problem.startswith("NANOBANANA_REALM is not set")


@pytest.mark.parametrize(
    ("base_url", "realm"),
    [
        ("http://127.0.0.1:8000/api/", "modelslab"),
        ("https://images.example/api/", "modelslab"),
        ("https://images.example/api/", "ModelsLab"),
        (VENDOR_BASE_URL, "emulator"),
        (VENDOR_BASE_URL, "Modelslab"),
    ],
)
def test_nobody_passes_for_the_vendor_nor_the_vendor_for_another(base_url: str, realm: str) -> None:
    (problem,) = problems(**REQUIRED, base_url=base_url, realm=realm)
    assert "contradicts NANOBANANA_BASE_URL" in problem


# --- the base URL --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "modelslab.com",
        "ftp://modelslab.com/",
        "https://",
        "http://[bad/",
        "http://127.0.0.1:abc/",
        "http://127.0.0.1:99999/",
    ],
)
def test_a_base_url_must_be_one(base_url: str) -> None:
    assert problems(**REQUIRED, base_url=base_url) == [
        f"NANOBANANA_BASE_URL={base_url!r} is not an http(s) URL"
    ]


def test_a_key_goes_over_plain_http_only_to_loopback_or_where_allowed() -> None:
    plain = "http://images.example/api/"
    (problem,) = problems(**REQUIRED, base_url=plain, realm="own")
    assert "NANOBANANA_ALLOWED_HOSTS=images.example" in problem
    allowed = Settings.load(**REQUIRED, base_url=plain, realm="own", allowed_hosts="images.example")
    assert allowed.host == "images.example"
    assert "in plain text" in problems(**REQUIRED, base_url="http://modelslab.com/api/")[0]


@pytest.mark.parametrize("prefix", ["/a", "a//b", "//"])
def test_a_prefix_with_empty_parts_is_refused(prefix: str) -> None:
    (problem,) = problems(**REQUIRED, prefix=prefix)
    assert "NANOBANANA_PREFIX" in problem


# --- webhooks ------------------------------------------------------------------------------------

SECRET = "hook-secret-0123456789"
HOOKS = {"webhook_url": "https://hooks.example/in", "webhook_secret": SECRET}


def test_webhooks_are_off_unless_both_settings_say_so() -> None:
    settings = Settings.load(**REQUIRED)
    assert (settings.webhook_url, settings.webhook_secret) == (None, None)
    settings = Settings.load(**REQUIRED, **HOOKS)
    assert settings.webhook_url == "https://hooks.example/in"
    assert settings.webhook_secret is not None
    assert settings.webhook_secret.get_secret_value() == SECRET


@pytest.mark.parametrize(
    ("given", "missing"),
    [
        ({"webhook_url": HOOKS["webhook_url"]}, "NANOBANANA_WEBHOOK_SECRET"),
        ({"webhook_url": HOOKS["webhook_url"], "webhook_secret": " "}, "NANOBANANA_WEBHOOK_SECRET"),
        ({"webhook_secret": SECRET}, "NANOBANANA_WEBHOOK_URL"),
        ({"webhook_secret": SECRET, "webhook_url": ""}, "NANOBANANA_WEBHOOK_URL"),
    ],
)
def test_one_half_of_webhooks_is_told_of_the_other(given: dict[str, str], missing: str) -> None:
    (problem,) = problems(**REQUIRED, **given)
    assert f"{missing} is not: export {missing}=" in problem
    assert SECRET not in problem


@pytest.mark.parametrize("secret", ["s3cret", "fifteen-letters"])
def test_a_webhook_secret_that_can_be_guessed_is_refused(secret: str) -> None:
    (problem,) = problems(**REQUIRED, **HOOKS | {"webhook_secret": secret})
    assert "NANOBANANA_WEBHOOK_SECRET has fewer than 16 characters" in problem
    assert secret not in problem


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("hooks.example", "is not an http(s) URL"),
        ("ftp://hooks.example/", "is not an http(s) URL"),
        ("https://[bad/", "is not an http(s) URL"),
        ("http://hooks.example/", "use https"),
        ("http://127.0.0.1.evil.example/", "use https"),
        ("http://127.0.0.1:8098", "modelslab.com cannot reach it"),
        ("https://localhost:8098", "modelslab.com cannot reach it"),
        (f"https://user:{KEY}@hooks.example/", "must have no user"),
        (f"https://hooks.example/?token={KEY}", "must have no user"),
    ],
)
def test_webhooks_arrive_over_https_from_where_the_provider_is(url: str, said: str) -> None:
    (problem,) = problems(**REQUIRED, **HOOKS | {"webhook_url": url})
    assert problem.startswith("NANOBANANA_WEBHOOK_URL")
    assert said in problem
    assert KEY not in problem


@pytest.mark.parametrize("url", ["http://127.0.0.1:8098", "http://localhost:8098/", "http://[::1]"])
def test_a_local_provider_may_call_a_local_receiver(url: str) -> None:
    local = {"base_url": "http://127.0.0.1:8000/api/", "webhook_url": url}
    assert Settings.load(**REQUIRED, **HOOKS | local).webhook_url == url


def test_what_does_not_buy_needs_no_key() -> None:
    assert Settings.load_without_key(bucket="pictures", **HOOKS).api_key is None
    with pytest.raises(SettingsError) as refused:
        Settings.load_without_key(**HOOKS, slots="x")
    assert "NANOBANANA_API_KEY" not in str(refused.value)
    assert "NANOBANANA_BUCKET is not set" in str(refused.value)
    assert "NANOBANANA_SLOTS='x'" in str(refused.value)


# --- secrets -------------------------------------------------------------------------------------


def test_secrets_are_in_no_repr_and_no_dump() -> None:
    settings = Settings.load(**REQUIRED, **HOOKS)
    account = Account.open(settings)
    for text in (repr(settings), str(settings), str(settings.model_dump()), repr(account)):
        assert KEY not in text
        assert SECRET not in text
    assert KEY not in settings.model_dump_json()
    assert SECRET not in settings.model_dump_json()


@pytest.mark.parametrize("key", [5318008, [KEY], {"key": KEY}])
def test_a_key_that_cannot_be_read_is_not_quoted(key: object) -> None:
    found = "\n".join(problems(api_key=key, bucket="b", slots="x"))
    assert "NANOBANANA_API_KEY=***" in found
    assert "NANOBANANA_SLOTS='x'" in found
    assert KEY not in found
    assert "5318008" not in found


@pytest.mark.parametrize(
    "base_url",
    [
        f"https://user:{KEY}@modelslab.com/",
        f"https://modelslab.com/?key={KEY}",
        f"https://modelslab.com/#{KEY}",
    ],
)
def test_a_base_url_with_secrets_in_it_is_refused_and_not_quoted(base_url: str) -> None:
    (problem,) = problems(**REQUIRED, base_url=base_url)
    assert "NANOBANANA_BASE_URL must have no user" in problem
    assert KEY not in problem


def test_no_error_quotes_the_key() -> None:
    assert KEY not in "".join(problems(api_key=KEY, slots="x", base_url="x", prefix="/"))


def test_an_account_needs_settings_that_were_checked() -> None:
    with pytest.raises(SettingsError, match=r"Settings\.load"):
        Account.open(Settings())


def test_a_key_has_an_address_for_browsers_only_where_one_is_configured() -> None:
    assert Settings.load(**REQUIRED).preview_of("a/b.webp") is None
    for given, address in [
        ({"preview_url": "http://127.0.0.1:9/b"}, "http://127.0.0.1:9/b/seed%3D1/a%20%29.webp"),
        (
            {"preview_url": "https://cdn.example/", "prefix": "team/x/"},
            "https://cdn.example/team/x/seed%3D1/a%20%29.webp",
        ),
    ]:
        settings = Settings.load(**REQUIRED, **given)
        assert settings.preview_of("seed=1/a ).webp") == address
        assert settings.preview_of("seed=1/a ).webp", "0f") == f"{address}?v=0f"


@pytest.mark.parametrize("url", ["ftp://x", "not a url", "https://u:pass@x", "https://x/?token=1"])
def test_an_address_for_browsers_must_be_fit_to_be_kept_for_ever(url: str) -> None:
    [problem] = problems(**REQUIRED, preview_url=url)
    assert problem.startswith("NANOBANANA_PREVIEW_URL")
    assert "pass" not in problem.replace("password", "")
    assert "token" not in problem


def test_a_price_of_0_is_a_price(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOBANANA_PRICE_PER_IMAGE", "0")
    monkeypatch.setenv("NANOBANANA_MAX_COST_PER_DAY", "1")
    budget = Settings.load(api_key=KEY, bucket="pictures").budget
    assert budget.price == 0
    assert budget.day.room(10, Decimal(0), budget.price) is None
    assert Cap(images=12, cost=Decimal(1)).room(10, Decimal(0), budget.price) == 2


def test_a_price_that_cannot_be_read_is_not_said_to_be_missing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NANOBANANA_PRICE_PER_IMAGE", "-1")
    monkeypatch.setenv("NANOBANANA_MAX_COST_PER_DAY", "1")
    (problem,) = problems(**REQUIRED)
    assert problem.startswith("NANOBANANA_PRICE_PER_IMAGE='-1': ")
