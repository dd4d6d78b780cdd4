"""One account at the provider, with all that speaks to it, made from the settings."""

from dataclasses import dataclass, field
from typing import Final, Self

from nanobanana_pipeline.errors import SettingsError
from nanobanana_pipeline.money import Budget
from nanobanana_pipeline.provider.downloads import Downloader
from nanobanana_pipeline.provider.modelslab.client import ModelsLab
from nanobanana_pipeline.provider.modelslab.vendor_books import open_books
from nanobanana_pipeline.provider.protocol import Books, Provider
from nanobanana_pipeline.settings import Settings
from nanobanana_pipeline.webhooks.inbox import Webhooks

__all__ = ["PROVIDER", "Account"]

PROVIDER: Final = ModelsLab
"""The provider that settings open. Its request model holds where no account is open: prompt tables
are checked without a key."""


@dataclass(frozen=True)
class Account:
    """The provider as one set of settings sees it.

    Attributes:
        realm: whose pictures these are.
        provider: generates and fetches.
        downloader: gets URLs, by the rules of the settings.
        slots: most requests at once.
        webhooks: where the provider may tell that a picture is done; None if nowhere.
        budget: what a picture costs, and how much may be spent.
        books: what the provider itself says of the account, as far as it is switched on.
    """

    realm: str
    provider: Provider
    downloader: Downloader
    slots: int
    webhooks: Webhooks | None = None
    budget: Budget = field(default_factory=Budget)
    books: Books = field(default_factory=Books)

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Make the parts; nothing is connected to yet.

        Raises:
            SettingsError: `settings` did not come from `Settings.load`.
        """
        if settings.api_key is None or settings.realm is None:
            raise SettingsError("the settings were not checked: use Settings.load()")
        return cls(
            settings.realm,
            ModelsLab(settings.base_url, settings.api_key, connections=2 * settings.slots + 8),
            Downloader(settings.allowed_hosts),
            settings.slots,
            Webhooks.from_settings(settings),
            settings.budget,
            open_books(settings.base_url, settings.api_key, settings.vendor_books),
        )
