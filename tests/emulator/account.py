"""A plain customer of the emulator, sharing no code with the pipeline's client."""

from collections.abc import Mapping
from typing import Any

import requests

KEY = "sk-the-customers-secret"
_SECONDS = 10


class Account:
    def __init__(self, base_url: str, key: str = KEY) -> None:
        self.base_url = base_url
        self.root_url = base_url.split("/api/", maxsplit=1)[0]
        self._key = key

    def post(self, endpoint: str, fields: Mapping[str, object]) -> requests.Response:
        body = {"key": self._key, **fields}
        return requests.post(f"{self.base_url}{endpoint}", json=body, timeout=_SECONDS)

    def text2img(self, **fields: object) -> requests.Response:
        return self.post(
            "text2img", {"prompt": "a red panda", "width": 1024, "height": 1024} | fields
        )

    def buy(self, **fields: object) -> dict[str, Any]:
        response = self.text2img(**fields)
        assert response.status_code == 200, response.text
        answer: dict[str, Any] = response.json()
        return answer

    def fetch(self, purchase_id: object) -> dict[str, Any]:
        answer: dict[str, Any] = self.post(f"fetch/{purchase_id}", {}).json()
        return answer

    def get(self, url: str) -> requests.Response:
        return requests.get(url, timeout=_SECONDS)

    def admin(self, name: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.get(f"{self.root_url}/admin/{name}").json()
        return answer

    def tell(self, name: str, **words: object) -> requests.Response:
        return requests.post(f"{self.root_url}/admin/{name}", json=words, timeout=_SECONDS)

    def advance(self, seconds: float) -> None:
        assert self.tell("clock", advance=seconds).status_code == 200

    def bought(self) -> int:
        total: int = self.admin("purchases")["total"]
        return total
