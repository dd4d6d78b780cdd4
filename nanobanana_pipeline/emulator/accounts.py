"""The calls that concern the whole account: where its pictures are to be written."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nanobanana_pipeline.emulator import answers
from nanobanana_pipeline.emulator.auth import Auth
from nanobanana_pipeline.emulator.bucket import read_bucket
from nanobanana_pipeline.emulator.provider import Provider
from nanobanana_pipeline.emulator.validation import InvalidOrderError

_OURS = "nano_banana"


class AccountDesk:
    """Takes and forgets S3 details. Those of other deployments are not its concern."""

    def __init__(self, provider: Provider, auth: Auth) -> None:
        self._provider = provider
        self._auth = auth

    def routes(self) -> list[Route]:
        """Build the routes of both calls."""
        return [
            Route(f"{answers.ACCOUNT}update_s3", self._update, methods=["POST"]),
            Route(f"{answers.ACCOUNT}reset_s3", self._reset, methods=["POST"]),
        ]

    async def _update(self, request: Request) -> Response:
        body = await self._auth.admit(request)
        if body is None:
            return answers.unauthorized()
        try:
            bucket = read_bucket(body)
        except InvalidOrderError as error:
            return answers.invalid(error)
        if body.get("deploy_type") == _OURS:
            self._provider.bucket = bucket
        return JSONResponse({"status": "success", "message": "S3 details updated successfully"})

    async def _reset(self, request: Request) -> Response:
        body = await self._auth.admit(request)
        if body is None:
            return answers.unauthorized()
        if body.get("deploy_type") == _OURS:
            self._provider.bucket = None
        return JSONResponse({"status": "success", "message": "S3 details reset successfully"})
