"""A receiver over real HTTP, in a thread."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import SecretStr

from nanobanana_pipeline.storage import ObjectStore
from nanobanana_pipeline.webhooks.inbox import Webhooks, attempt_id
from nanobanana_pipeline.webhooks.receiver import receiver_app, receiver_server

SECRET = "test-webhook-secret-must-stay-secret"
"""Tests look for this everywhere it must not be."""
ATTEMPT = attempt_id("0a" * 32, "1b" * 8)
OTHER_ATTEMPT = attempt_id("0a" * 32, "2c" * 8)


@contextmanager
def receiving(store: ObjectStore) -> Iterator[Webhooks]:
    """Run a receiver that keeps in `store` until the block ends; gives what makes its addresses."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        webhooks = Webhooks(url, SecretStr(SECRET))
        server = receiver_server(receiver_app(store, webhooks))
        thread = threading.Thread(
            target=server.run, kwargs={"sockets": [listener]}, name="receiver", daemon=True
        )
        thread.start()
        try:
            yield webhooks
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
