"""The emulator behind OpenAI's images API, for clients that speak nothing else.

``python -m benchmarks.openai_face PORT EMULATOR_API``: ``POST /v1/images/generations`` buys from an
emulator that answers when it is done (``--mode sync``), so neither side polls, and hands on the
picture as ``b64_json``. What the emulator refuses, as with 429, is refused with the same status.
"""

import base64
import sys

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nanobanana_pipeline.local import API_KEY

ANSWER_SECONDS = 60


def face(emulator_api: str) -> Starlette:
    """The application, over the emulator at a base URL."""
    client = httpx.AsyncClient(timeout=ANSWER_SECONDS, limits=httpx.Limits(max_connections=200))

    async def generate(request: Request) -> Response:
        asked = await request.json()
        order = {"key": API_KEY, "prompt": asked["prompt"], "width": 1024, "height": 1024}
        answer = await client.post(f"{emulator_api}text2img", json={**order, "seed": 1})
        told = answer.json()
        if answer.is_error or told["status"] != "success":
            said = {"error": {"message": str(told), "type": "upstream"}}
            return JSONResponse(said, answer.status_code if answer.is_error else 500)
        picture = await client.get(told["output"][0])
        inline = base64.b64encode(picture.content).decode()
        return JSONResponse({"created": 0, "data": [{"b64_json": inline}]})

    async def health(_: Request) -> Response:
        return Response()

    return Starlette(
        routes=[
            Route("/v1/images/generations", generate, methods=["POST"]),
            Route("/healthz", health),
        ]
    )


if __name__ == "__main__":
    uvicorn.run(face(sys.argv[2]), port=int(sys.argv[1]), log_level="warning", access_log=False)
