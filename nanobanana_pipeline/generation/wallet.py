"""What the account's wallet says of a launch: whether its cost fits, and whether the bill agrees.

It is told and refuses nothing: an enterprise account may be billed in other ways, others may spend
from the same wallet, and its currency need not be that of the configured price.
"""

import logging
from decimal import Decimal

from nanobanana_pipeline.errors import OperationFailed
from nanobanana_pipeline.money import cost_text
from nanobanana_pipeline.provider.account import Account
from nanobanana_pipeline.provider.protocol import Balance

__all__ = ["bill_note", "is_short", "read_balance", "wallet_note"]

log = logging.getLogger(__name__)


def read_balance(account: Account) -> Balance | None:
    """What is left in the wallet; None if that is not switched on or cannot be read."""
    if account.books.balance is None:
        return None
    try:
        return account.books.balance()
    except OperationFailed as error:
        log.warning("the wallet cannot be read: %s", error)
        return None


def is_short(balance: Balance, cost: Decimal | None) -> bool:
    """Whether the wallet holds less than a launch costs, as far as that is known."""
    return cost is not None and balance.amount < cost


def wallet_note(balance: Balance, cost: Decimal | None) -> str:
    """Whether the cost of a launch fits."""
    if is_short(balance, cost):
        return (
            f"the wallet holds {balance}, less than the cost of {cost_text(cost)}: where the "
            "account pays from it, the provider refuses what it does not cover (402), and the same "
            "launch goes on once it is topped up"
        )
    return f"the wallet holds {balance}"


def bill_note(before: Balance, after: Balance, cost: Decimal | None) -> str:
    """Whether what left the wallet during a launch is what the ledger counts as its cost."""
    if before.currency != after.currency:
        return f"the wallet held {before} before, and {after} after"
    paid = Balance(before.amount - after.amount, after.currency)
    if cost is None:
        return f"{paid} left the wallet; the cost by the ledger is unknown without a price"
    if paid.amount == cost:
        return f"{paid} left the wallet, as the ledger counts"
    return (
        f"{paid} left the wallet, and the ledger counts {cost_text(cost)}: others may have spent "
        "from it, requests in doubt may not have been sold, or the price is another; nanobanana "
        "reconcile names what the vendor sold"
    )
