"""Where pictures are found, beside the plain link that `test_app` follows."""

import base64

from nanobanana_pipeline.emulator import EmulatorConfig, running
from tests.emulator.account import Account
from tests.emulator.conftest import LATENCY

DAY = 24 * 3600


def test_base64_is_a_link_to_a_text_that_holds_the_same_picture(account: Account) -> None:
    plain, coded = (account.buy(seed=3, base64=each) for each in ("no", "yes"))
    account.advance(LATENCY)
    [text_link] = account.fetch(coded["id"])["output"]
    text = account.get(text_link)
    assert text.headers["content-type"].startswith("text/plain")
    picture = account.get(account.fetch(plain["id"])["output"][0]).content
    assert base64.b64decode(text.text, validate=True) == picture
    assert account.get(text_link.replace(".base64", ".png")).status_code == 404


def test_what_is_temporary_goes_after_a_day_whatever_the_expiry() -> None:
    with running(EmulatorConfig(latency_seconds=(0, 0), expiry_seconds=7 * DAY)) as base_url:
        account = Account(base_url)
        kept, gone = (account.buy(seed=3, temp=each)["future_links"][0] for each in ("no", "yes"))
        assert "/temp/" in gone
        assert [account.get(link).status_code for link in (kept, gone)] == [200, 200]
        account.advance(DAY)
        assert [account.get(link).status_code for link in (kept, gone)] == [200, 404]
