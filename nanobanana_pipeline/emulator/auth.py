"""Checks the API key, which travels in the body of a call: `Auth`."""

import json
import secrets

from pydantic import SecretStr
from starlette.requests import Request

from nanobanana_pipeline.emulator.config import EmulatorConfig


class Auth:
    """Reads bodies and checks their key."""

    def __init__(self, config: EmulatorConfig) -> None:
        self._expected = config.api_key

    async def admit(self, request: Request) -> dict[str, object] | None:
        """Read the body of a call; None if it has no key, or a wrong one."""
        body = await _read_json_object(request)
        return body if _fits(body.get("key"), self._expected) else None


def _fits(key: object, expected: SecretStr | None) -> bool:
    if not isinstance(key, str) or not key:
        return False
    if expected is None:
        return True
    wanted = expected.get_secret_value().encode(errors="surrogatepass")
    return secrets.compare_digest(key.encode(errors="surrogatepass"), wanted)


async def _read_json_object(request: Request) -> dict[str, object]:
    """Read the body; what is not a JSON object has no fields, so it has no key either."""
    try:
        body = json.loads(await request.body())
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}
