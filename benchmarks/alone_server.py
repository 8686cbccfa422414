"""A gateway without Ray as a process: ``alone_server.py SETTINGS.json``; prints its port when it answers."""

import asyncio
import sys
from pathlib import Path

import uvicorn

from raysys.config import ServeSettings
from raysys.index.store import SnapshotStore
from raysys.serving.alone import Alone


async def main(settings: ServeSettings) -> None:
    store = SnapshotStore(settings.index_root)
    gateway = Alone(settings, store.manifest(store.current_id()).encoder)
    await gateway.follow("current")
    server = uvicorn.Server(uvicorn.Config(gateway.app(), port=0, log_level="warning"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    print(server.servers[0].sockets[0].getsockname()[1], flush=True)
    await serving


asyncio.run(main(ServeSettings.model_validate_json(Path(sys.argv[1]).read_bytes())))
