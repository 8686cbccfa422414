"""``topology: fused``: the same path over the same objects, all inside one replica, for a small machine."""

from typing import Any

from ray import serve
from starlette.types import ASGIApp

from raysys.config import EncoderSettings, ServeSettings
from raysys.serving.alone import Alone
from raysys.serving.logs import open_log


@serve.ingress()
class FusedGateway:
    """``serving.alone`` as a deployment."""

    def __init__(self, settings: ServeSettings, encoder: EncoderSettings | None) -> None:
        open_log()  # before the encoder says which runtime it found
        self._alone = Alone(settings, encoder)

    def __serve_build_asgi_app__(self) -> ASGIApp:  # the name that Serve looks for
        return self._alone.app()

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        await self._alone.follow(user_config["snapshot"])
