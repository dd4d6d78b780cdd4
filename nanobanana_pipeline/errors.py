"""Every error this package raises on purpose.

NanobananaError
├── SettingsError         what is missing or contradicts itself, and how to set it
├── PromptTableError      a table that cannot be read at all (bad *rows* are quarantined instead)
├── PlanError             a launch that must not start: seed 0, changed parameters, …
├── RecipeError           a dataset's recipe is wrong, or what it asks for is not there
├── ReleaseError          a release cannot be built, or is not what was published
├── TraceError            nothing is known of what was to be traced
├── LocalServerError      a child process of the local profile did not come up
├── StorageError          S3 answered, and the answer is no
│   ├── StorageUnavailable    S3 did not answer, or asked to come back later: try again
│   │   └── StorageFull           it has no room: somebody must make some
│   ├── EntryDamaged          one ledger entry cannot be read; the others can
│   └── ObjectTooLarge        an object of strangers has more bytes than it may have
├── ForbiddenTransition   a ledger entry may not go from its state to the one asked for
├── ProviderHalt          the provider refuses the account: more requests would be refused too
├── OperationFailed       the provider did not do what was asked of its server or the account
│   └── OperationInDoubt      it was asked, and no answer tells whether it was done
└── DownloadError         an output URL did not give its image
    ├── DownloadRefused       it must not be followed (scheme, address), or S3 forbids to read it
    ├── ImageGone             404, 403 or 410: not there yet, or not any more
    │   └── NotDelivered          the customer's own bucket has no such object
    └── ImageBroken           no image: other bytes, too many, or a redirect that leads astray

Messages say what happened, where, and how to mend it.

Any function that takes an `ObjectStore` raises `StorageError` where S3 refuses, or where an object
that it reads is missing, damaged or of a newer version, and `StorageUnavailable` where S3 stays
silent; of prompt sets that is a `PromptTableError`, and of releases and the pictures that their
rows name a `ReleaseError`. Docstrings name only other errors, and other reasons for these.
"""

from collections.abc import Sequence

__all__ = [
    "DownloadError",
    "DownloadRefused",
    "EntryDamaged",
    "ForbiddenTransition",
    "ImageBroken",
    "ImageGone",
    "LocalServerError",
    "NanobananaError",
    "NotDelivered",
    "ObjectTooLarge",
    "OperationFailed",
    "OperationInDoubt",
    "PlanError",
    "PromptTableError",
    "ProviderHalt",
    "RecipeError",
    "ReleaseError",
    "SettingsError",
    "StorageError",
    "StorageFull",
    "StorageUnavailable",
    "TraceError",
]


class NanobananaError(Exception):
    """Base of all errors of this package; its text is fit to show to a user."""


class SettingsError(NanobananaError):
    """Settings are missing or contradict each other."""


class PromptTableError(NanobananaError):
    """A prompt table cannot be used at all."""


class PlanError(NanobananaError):
    """A launch that must not start."""


class RecipeError(NanobananaError):
    """A dataset's recipe is wrong, or what it asks for is not there.

    Attributes:
        faults: a line each, where one recipe has several; the message is all of them.
    """

    def __init__(self, message: str, *, faults: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults) or (message,)


class ReleaseError(NanobananaError):
    """A release cannot be built from these rows, or its files are not what was published."""


class TraceError(NanobananaError):
    """Nothing in the bucket is known by the name that was to be traced."""


class LocalServerError(NanobananaError):
    """A server of the local profile did not start or died."""


class StorageError(NanobananaError):
    """S3 answered with an error that trying again does not mend."""


class StorageUnavailable(StorageError):  # noqa: N818 - the name says the state, as in the field
    """S3 gave no answer, or asked to come back later; a write may or may not have been applied."""


class StorageFull(StorageUnavailable):
    """S3 has no room for the object; it will take it once somebody has made some."""


class EntryDamaged(StorageError):  # noqa: N818
    """One ledger entry is damaged, or of a newer version; whether it was paid for is unknown.

    Attributes:
        request_key: of the entry.
    """

    def __init__(self, message: str, request_key: str) -> None:
        super().__init__(message)
        self.request_key = request_key


class ObjectTooLarge(StorageError):  # noqa: N818
    """An object that somebody else wrote has more bytes than are read into memory."""


class ForbiddenTransition(NanobananaError):  # noqa: N818
    """A ledger entry may not take the step that was asked of it."""


class ProviderHalt(NanobananaError):  # noqa: N818
    """The provider refuses this account or this address; asking again would be refused too."""


class OperationFailed(NanobananaError):  # noqa: N818
    """The provider did not do what was asked of its server or of the account."""


class OperationInDoubt(OperationFailed):
    """The provider was asked, and nobody can tell from the answer whether it did it."""


class DownloadError(NanobananaError):
    """An output URL did not give its image; trying again may help."""


class DownloadRefused(DownloadError):  # noqa: N818
    """An output that must not be followed or read; other settings or permissions may help."""


class ImageGone(DownloadError):  # noqa: N818
    """The server has no such image, not yet or not any more."""


class NotDelivered(ImageGone):
    """The customer's own bucket has no such object; the provider's time limit does not matter."""


class ImageBroken(DownloadError):  # noqa: N818
    """What the server gave is not the image that was asked for: damaged, too large, led astray."""
