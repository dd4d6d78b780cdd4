"""`benchmarks`' launches, with the second vendor in place of the emulator."""

from typing import ClassVar

from pydantic import SecretStr

from benchmarks.launches import SLOTS, SUBMIT_SECONDS, Site
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.downloads import Downloader
from nanobanana_pipeline.webhooks.inbox import Webhooks
from tests.second_provider.adapter import Atelier


class SecondSite(Site):
    """Where launches buy from the second vendor."""

    server: ClassVar = "tests.second_provider.server"
    api: ClassVar = "/api/"
    realm: ClassVar = "atelier"
    parameters: ClassVar = {"width": 96}

    def account(self) -> Account:
        """Who buys, with a short deadline for a POST, as `Site` has it."""
        return Account(
            self.realm,
            Atelier(self.base_url, SecretStr("a key"), SUBMIT_SECONDS),
            Downloader(),
            SLOTS,
            Webhooks(self.webhooks_url, SecretStr(self.webhooks_secret)),
        )
