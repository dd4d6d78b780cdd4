"""The provider's answers, in the shapes that the contract documents."""

import math

from starlette.responses import HTMLResponse, JSONResponse

from nanobanana_pipeline.emulator.purchases import Purchase
from nanobanana_pipeline.emulator.validation import InvalidOrderError

ACCOUNT = "/api/v1/enterprise/"
API = f"{ACCOUNT}nano_banana/"
GENERATIONS = ("text2img", "img2img", "multi_ref")
OPERATIONS = ("system_details", "clear_cache", "clear_queue", "restart_server", "update_server")
BOOKS = {
    "assets_generated": "/api/v6/assets_generated",
    "wallet_balance": "/api/wallet_balance",
    "request_count": "/api/v6/processing/request_count",
}
"""The paths of what the account may be asked about itself."""
_FAILED = "Image generation failed, please try again"
OUTPUTS = "/outputs/"


def _meta(purchase: Purchase) -> dict[str, object]:
    picture = purchase.picture
    return {
        "prompt": picture.prompt,
        "negative_prompt": picture.negative_prompt,
        "W": picture.width,
        "H": picture.height,
        "seed": picture.seed,
        "n_samples": picture.samples,
        "noise_scale_start": picture.noise_scale_start,
        "noise_scale_end": picture.noise_scale_end,
        "noise_clip_std": picture.noise_clip_std,
        "watermark": "yes" if picture.watermark else "no",
        "track_id": purchase.track_id,
        "file_prefix": purchase.output,
    }


def queued(purchase: Purchase, root: str, now: float, links: list[str]) -> JSONResponse:
    """Answer a POST whose pictures are still to come.

    `root` is how the emulator was reached, so that links lead back the same way.
    """
    return JSONResponse(
        {
            "status": "processing",
            "message": "Request queued: fetch the result after the estimated time",
            "id": purchase.id,
            "eta": math.ceil(max(0.0, purchase.ready_at - now)),
            "fetch_result": f"{root}{API}fetch/{purchase.id}",
            "output": [],
            "future_links": links,
            "meta": _meta(purchase),
        }
    )


def done(purchase: Purchase, links: list[str]) -> JSONResponse:
    """Answer a POST with its pictures, as the synchronous mode does."""
    return JSONResponse(
        {
            "status": "success",
            "id": purchase.id,
            "generationTime": round(purchase.ready_at - purchase.bought_at, 3),
            "output": links,
            "meta": _meta(purchase),
        }
    )


def fetched_done(links: list[str]) -> JSONResponse:
    """Answer a fetch of finished pictures: no id and no meta, as observed."""
    return JSONResponse({"status": "success", "output": links})


def named_done(purchase: Purchase, links: list[str]) -> dict[str, object]:
    """Make the answer to a fetch that says of which request the pictures are."""
    return {
        "status": "success",
        "id": purchase.id,
        "output": links,
        "meta": _meta(purchase),
    }


def fetched_too_early() -> JSONResponse:
    """Answer a fetch of pictures still to come: no id, as observed."""
    return JSONResponse({"status": "processing", "message": "Try Again", "output": ""})


def fetched_unknown() -> JSONResponse:
    """Answer a fetch of an id that is not on record."""
    return JSONResponse(
        {"status": "failed", "message": "Request not found", "output": "", "id": ""}
    )


def generation_failed(purchase: Purchase) -> JSONResponse:
    """Answer that the pictures will never come."""
    return JSONResponse(
        {
            "status": "failed",
            "id": purchase.id,
            "message": _FAILED,
            "output": "",
        }
    )


def told_done(purchase: Purchase, output: list[str]) -> dict[str, object]:
    """Make the payload of a webhook for finished pictures."""
    return {
        "status": "success",
        "id": purchase.id,
        "output": output,
        "generationTime": round(purchase.ready_at - purchase.bought_at, 3),
        "track_id": purchase.track_id,
        "meta": _meta(purchase),
    }


def told_failed(purchase: Purchase) -> dict[str, object]:
    """Make the payload of a webhook for pictures that will never come."""
    return {
        "status": "failed",
        "id": purchase.id,
        "message": _FAILED,
        "track_id": purchase.track_id,
    }


def invalid(error: InvalidOrderError, status_code: int = 400) -> JSONResponse:
    """Answer a body that breaks the rules."""
    return JSONResponse(
        {"status": "error", "message": str(error), "errors": error.errors}, status_code
    )


def unauthorized() -> JSONResponse:
    """Answer a missing or wrong key."""
    return JSONResponse({"status": "error", "message": "Invalid API key"}, 401)


def no_credit() -> JSONResponse:
    """Answer an account without money."""
    message = "Insufficient credits. Please top up your account."
    return JSONResponse({"status": "error", "message": message}, 402)


def plan_too_small() -> JSONResponse:
    """Answer an account whose plan does not include the endpoint."""
    message = "Your plan does not include this endpoint. Please upgrade your plan."
    return JSONResponse({"status": "error", "message": message}, 403)


def rate_limit_words(cap: int) -> str:
    """Say that there are too many requests, in the provider's words."""
    return f"Rate limit exceeded. Maximum {cap} queued requests allowed."


def rate_limited(cap: int, retry_after_seconds: float) -> JSONResponse:
    """Answer one request too many; the time to wait is in the body, in seconds."""
    whole = int(retry_after_seconds)
    return JSONResponse(
        {
            "status": "error",
            "message": rate_limit_words(cap),
            "retry_after": whole if whole == retry_after_seconds else retry_after_seconds,
        },
        429,
    )


def assets(
    kind: str, data: list[dict[str, object]], page: int, per_page: int, total: int
) -> JSONResponse:
    """Answer with one page of what the account was sold."""
    first = (page - 1) * per_page
    return JSONResponse(
        {
            "status": "success",
            "type": kind,
            "data": data,
            "pagination": {
                "current_page": page,
                "per_page": per_page,
                "total": total,
                "last_page": max(1, math.ceil(total / per_page)),
                "from": first + 1 if data else None,
                "to": first + len(data) if data else None,
            },
        }
    )


def wallet(balance: float, currency: str) -> JSONResponse:
    """Answer with what is left in the wallet."""
    return JSONResponse({"status": "success", "data": {"balance": balance, "currency": currency}})


def too_many_counts(limit: int, seconds: float) -> JSONResponse:
    """Answer one question too many within a minute."""
    return JSONResponse(
        {
            "status": "error",
            "message": f"Rate limit exceeded. Maximum {limit} requests per minute allowed.",
            "retry_after": math.ceil(seconds),
        },
        429,
    )


def server_error() -> JSONResponse:
    """Answer that something broke, without a word on what was bought."""
    return JSONResponse({"status": "error", "message": "Server Error"}, 500)


def not_found() -> HTMLResponse:
    """Answer with a page that an image is not there (any more, or yet), or an address unknown."""
    return HTMLResponse("<!DOCTYPE html><html><body><h1>404 Not Found</h1></body></html>", 404)
