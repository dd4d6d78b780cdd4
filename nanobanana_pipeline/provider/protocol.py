"""What the pipeline needs of a provider of images: `Provider`, and `Delivered` for its pictures.

Engine, ledger, budgets and planning know a provider by this alone; `account` opens one from the
settings, and a caller in Python may put another into an `Account`. A second provider supplies a
class with the members of `Provider`, and a subclass of `request.ImageRequest` for its requests. It
must keep to four rules, because money depends on them:

- `submit` sends a request at most once and repeats nothing by itself. It returns `Unknown` where it
  cannot tell whether the request was bought, and `NotSent` only if no byte has left this machine.
  When everything is ready to be sent it asks `may_send`, and returns `NotSent` if that says no.
- `submit` and `fetch` raise nothing for what the network or the vendor does, and return within
  `submit_seconds` and some 20 s: a claim's lease is made of the first.
- `fetch` buys nothing and may be called at will, from any process and after any restart.
- The API key appears in no outcome, no error and no `repr`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import ClassVar, Protocol

from nanobanana_pipeline.provider.downloads import Downloader
from nanobanana_pipeline.provider.outcomes import FetchOutcome, SubmitOutcome
from nanobanana_pipeline.request import ImageRequest
from nanobanana_pipeline.storage import ObjectStore

__all__ = [
    "Balance",
    "Books",
    "Delivered",
    "MaySend",
    "Original",
    "Provider",
    "ReadOutput",
    "Sale",
]


@dataclass(frozen=True)
class Original:
    """An object in a bucket of the customer's that the provider wrote, as it was read."""

    bucket: str
    key: str
    etag: str


@dataclass(frozen=True)
class Delivered:
    """The bytes of one picture.

    Attributes:
        data: the picture's own bytes, without any packing such as base64.
        original: the object that holds exactly these bytes, where S3 can copy it.
    """

    data: bytes = field(repr=False)
    original: Original | None = None


MaySend = Callable[[], bool]
"""Says whether a request may still be sent: claims and permits run out while a process stands
still. It is quick and raises nothing."""

ReadOutput = Callable[[str], Delivered]
"""Gets the picture that one entry of `Done.output` stands for.

Raises `ImageGone` where there is nothing, `ImageBroken` for bytes that are no picture,
`DownloadRefused` where settings or permissions forbid it, and `DownloadError` for what may pass.
"""


@dataclass(frozen=True)
class Sale:
    """A request that the provider says it has drawn for the account.

    Attributes:
        provider_id: as `Provider.fetch` takes it.
        output: where its pictures are or were.
    """

    provider_id: str
    output: tuple[str, ...]


@dataclass(frozen=True)
class Balance:
    """What is left in the account's wallet."""

    amount: Decimal
    currency: str

    def __str__(self) -> str:
        return f"{self.amount:,} {self.currency}"


@dataclass(frozen=True)
class Books:
    """The provider's own books of the account; each part is None where it is not switched on.

    They are the whole account's: purchases of other buckets and other teams are in them. The calls
    buy nothing, and raise `OperationFailed` where the provider does not answer them.

    Attributes:
        sold: every request that was drawn, in the provider's order, without prompt or time.
        balance: what is left in the wallet.
        processing: how many requests are queued or being drawn now.
    """

    sold: Callable[[], Iterator[Sale]] | None = None
    balance: Callable[[], Balance] | None = None
    processing: Callable[[], int] | None = None


class Provider(Protocol):
    """One account at a provider. Safe to share between threads.

    Attributes:
        request_model: the fields of a request, their defaults and rules.
        kept_seconds: so long the provider keeps a picture once it is done.
        submit_seconds: the total deadline of `submit`.
    """

    request_model: ClassVar[type[ImageRequest]]
    kept_seconds: ClassVar[int]
    submit_seconds: float

    def submit(
        self,
        request: ImageRequest,
        references: Sequence[bytes] = (),
        *,
        may_send: MaySend | None = None,
    ) -> SubmitOutcome:
        """Ask for the pictures of a request, once.

        Args:
            request: of `request_model`.
            references: the bytes of its reference pictures, in the order of `ref_sha256`.
            may_send: to be asked in the last moment before the first byte leaves.
        """

    def fetch(self, provider_id: str) -> FetchOutcome:
        """Ask what became of a request, by the id that `submit` returned."""

    def reader(self, store: ObjectStore, downloader: Downloader) -> ReadOutput:
        """A function that reads outputs, for one shard.

        Args:
            store: our own bucket.
            downloader: gets URLs by the rules of the settings; nothing else may.
        """

    def folders(self, store: ObjectStore) -> Sequence[ObjectStore]:
        """The customer's folders that the provider writes into, or has written into.

        Args:
            store: our own bucket.
        """

    def health(self) -> Mapping[str, str]:
        """What the provider's server says of itself, by name.

        Raises:
            OperationFailed: the provider refuses.
            OperationInDoubt: no answer that says anything.
        """
