"""The account's own books: what it was sold, what is left in its wallet, what is under way."""

from collections import deque

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nanobanana_pipeline.emulator import answers
from nanobanana_pipeline.emulator.auth import Auth
from nanobanana_pipeline.emulator.delivery import Delivery
from nanobanana_pipeline.emulator.provider import Provider
from nanobanana_pipeline.emulator.rules import Rule, Schema, whole
from nanobanana_pipeline.emulator.validation import InvalidOrderError, read_fields

ASSET_TYPES = ("image", "video", "voice", "3d")

_PER_PAGE: Rule[int] = whole("per_page", 10, 1, 30)
_PAGE: Rule[int] = whole("page", 1, 0, 10**6)  # page 0 is the first too
_COUNTS_A_MINUTE = 30
_MINUTE = 60.0


def assets_schema() -> tuple[dict[str, Schema], dict[str, Schema]]:
    """Give the required and the optional fields of `assets_generated`."""
    optional = {rule.name: rule.as_property() for rule in (_PER_PAGE, _PAGE)}
    return {"type": {"enum": list(ASSET_TYPES)}}, optional


class AccountBooks:
    """Answers what the account may be asked about itself. All of it is free."""

    def __init__(self, provider: Provider, delivery: Delivery, auth: Auth) -> None:
        self._provider = provider
        self._delivery = delivery
        self._auth = auth
        self._counted: deque[float] = deque()

    def routes(self) -> list[Route]:
        """Build the routes of the three calls."""
        calls = {
            "assets_generated": self._assets,
            "wallet_balance": self._wallet,
            "request_count": self._count,
        }
        return [
            Route(answers.BOOKS[name], answer, methods=["POST"]) for name, answer in calls.items()
        ]

    async def _assets(self, request: Request) -> Response:
        """List finished pictures, the newest first, without prompt or time."""
        body = await self._auth.admit(request)
        if body is None:
            return answers.unauthorized()
        kind = body.get("type")
        if kind not in ASSET_TYPES:
            wrong = {"type": [f"type must be one of {', '.join(ASSET_TYPES)}"]}
            return answers.invalid(InvalidOrderError(wrong))
        try:
            per_page, page = read_fields(body, _PER_PAGE, _PAGE)
            page = max(page, 1)
        except InvalidOrderError as error:
            return answers.invalid(error)
        book, now = self._provider.book, self._provider.clock.now()
        total = book.count_drawn(now) if kind == "image" else 0
        first = (page - 1) * per_page
        sold = book.drawn(now, per_page, first) if first < total else []
        root = str(request.base_url).rstrip("/")
        data = [{"id": each.id, "output": self._delivery.links(each, root)} for each in sold]
        return answers.assets(str(kind), data, page, per_page, total)

    async def _wallet(self, request: Request) -> Response:
        if await self._auth.admit(request) is None:
            return answers.unauthorized()
        config, now = self._provider.config, self._provider.clock.now()
        spent = self._provider.book.count_images_paid(now) * config.price_per_image
        return answers.wallet(round(config.wallet - spent, 4), config.currency)

    async def _count(self, request: Request) -> Response:
        if await self._auth.admit(request) is None:
            return answers.unauthorized()
        now = self._provider.clock.now()
        while self._counted and self._counted[0] <= now - _MINUTE:
            self._counted.popleft()
        if len(self._counted) >= _COUNTS_A_MINUTE:
            return answers.too_many_counts(_COUNTS_A_MINUTE, self._counted[0] + _MINUTE - now)
        self._counted.append(now)
        count = self._provider.queue.count(now)
        return JSONResponse({"status": "success", "processing_count": count})
