"""The whole application on a loop of its own, for callers that cannot wait."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

import httpx
from support import Served

ANSWER_S = 20.0  # however much is sent, and on a busy machine


@dataclass
class Gateway:
    """The whole application over a real snapshot and a real store, without a network."""

    served: Served
    loop: asyncio.AbstractEventLoop

    def send(self, method: str, path: str, content: bytes = b"", headers: Any = ()) -> httpx.Response:
        """The answer. Raises TimeoutError where there is none in time, and whatever the application raises."""
        return self.run(self._send(method, path, content, headers))

    def post(self, path: str, content: bytes) -> httpx.Response:
        return self.send("POST", path, content, {"content-type": "application/json"})

    def run(self, waiting: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(waiting, self.loop).result(ANSWER_S)

    async def _send(self, method: str, path: str, content: bytes, headers: Any) -> httpx.Response:
        async with self.served.client() as client:
            return await client.request(method, path, content=content, headers=headers)
