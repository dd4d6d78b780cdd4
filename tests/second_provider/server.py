"""The second vendor: a process of its own, which alone knows what it has sold.

python -m tests.second_provider.server --port PORT [--latency 0.2:0.6] [--fault rate_limited=0.2]
"""

import argparse
import base64
import io
import itertools
import json
import random
import threading
import time
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import requests
from PIL import Image, PngImagePlugin

FAULTS = ("rate_limited", "http_500_before", "http_500_after", "cut_off_after", "broken_image")
Reply = tuple[int, dict[str, Any]]


@dataclass
class Sale:
    """One order that was sold."""

    name: str
    order: dict[str, Any]
    sold: float
    ready: float
    broken: bool

    def images(self) -> list[str]:
        """The pictures in base64; no two are alike."""
        return [self._image(sample) for sample in range(self.order["n"])]

    def _image(self, sample: int) -> str:
        body, said = io.BytesIO(), PngImagePlugin.PngInfo()
        said.add_text("order", f"{self.name} {sample}")
        Image.new("1", (self.order["w"], self.order["h"])).save(body, "PNG", pnginfo=said)
        data = body.getvalue()
        return base64.b64encode(data[: len(data) // 2] if self.broken else data).decode()


class Shop:
    """The books, and the faults by chance."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._random = random.Random(args.seed)  # noqa: S311 - not for secrets
        self._rates = {name: float(rate) for name, rate in (f.split("=") for f in args.fault)}
        assert set(self._rates) <= set(FAULTS)
        self._numbers, self._lock = itertools.count(7001), threading.Lock()
        self._sales: dict[str, Sale] = {}
        self._answered = 0

    def post(self, order: dict[str, Any]) -> Reply | None:
        """Take an order; None ends the connection without an answer."""
        if self._befalls("rate_limited"):
            return 429, {"why": "too many"}
        if self._befalls("http_500_before"):
            return 500, {"why": "a fault"}
        sale = self._sell(order)
        if sale is None:
            return 429, {"why": "the queue is full"}
        time.sleep(self._args.slow_answer)
        if self._befalls("http_500_after"):
            return 500, {"why": "a fault"}
        if self._befalls("cut_off_after"):
            return None
        with self._lock:
            self._answered += 1
        return 201, {"order": sale.name}

    def get(self, path: str) -> Reply:
        """Answer for an order, the health of the server, or the books."""
        match path.split("/"):
            case [_, "api", "orders", name]:
                return self._order(name)
            case [_, "admin", "purchases"]:
                return 200, self._purchases()
            case [_, "admin", "stats"]:
                return 200, {"calls": {"text2img": {"200": self._answered}}}
        return 200, {"sold": len(self._sales)}

    def _order(self, name: str) -> Reply:
        sale = self._sales.get(name)
        if sale is None:
            return 404, {"why": "there is no such order"}
        if time.time() < sale.ready:
            return 200, {"state": "drawing"}
        return 200, {"state": "ready", "text": sale.order["text"], "images": sale.images()}

    def _befalls(self, fault: str) -> bool:
        with self._lock:
            return self._random.random() < self._rates.get(fault, 0)

    def _sell(self, order: dict[str, Any]) -> Sale | None:
        """Write an order into the books; None if the queue is full."""
        low, high = map(float, self._args.latency.split(":"))
        broken = self._befalls("broken_image")
        with self._lock:
            now = time.time()
            if sum(sale.ready > now for sale in self._sales.values()) >= self._args.cap:
                return None
            name = f"ord_{next(self._numbers):x}"
            sale = Sale(name, order, now, now + self._random.uniform(low, high), broken)
            self._sales[name] = sale
        if order["tell"]:
            threading.Timer(sale.ready - now, self._tell, [sale]).start()
        return sale

    def _tell(self, sale: Sale) -> None:
        said = {"id": sale.name, "status": "success", "track_id": sale.order["ref"]}
        requests.post(sale.order["tell"], json=said, timeout=30)

    def _purchases(self) -> dict[str, Any]:
        """The books as `benchmarks` read the emulator's."""
        groups: dict[str, dict[str, Any]] = {}
        for sale in list(self._sales.values()):
            text = sale.order["text"]
            group = groups.setdefault(text, {"prompt": text, "track_ids": [], "times": []})
            group["track_ids"].append(sale.order["ref"])
            group["times"].append(sale.sold)
        for group in groups.values():
            group["count"] = len(group["times"])
        twice = sum(group["count"] > 1 for group in groups.values())
        return {"total": len(self._sales), "bought_twice": twice, "groups": list(groups.values())}


class Handler(BaseHTTPRequestHandler):
    """HTTP for a shop."""

    shop: Shop

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self._reply(self.shop.post(json.loads(self.rfile.read(length))))

    def do_GET(self) -> None:
        self._reply(self.shop.get(self.path))

    def _reply(self, reply: Reply | None) -> None:
        if reply is None:
            return
        body = json.dumps(reply[1]).encode()
        self.send_response(reply[0])
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Retry-After", "0.2")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the log empty."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--data", help="Not used: the books are in memory.")
    parser.add_argument("--latency", default="0:0")
    parser.add_argument("--cap", type=int, default=100)
    parser.add_argument("--slow-answer", type=float, default=0)
    parser.add_argument("--fault", action="append", default=[])
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    Handler.shop = Shop(args)
    ThreadingHTTPServer(("127.0.0.1", args.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
