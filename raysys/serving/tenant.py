"""What makes a gateway that of one tenant, beside its settings: its route prefix, and a label on all its metrics."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric
from starlette.types import ASGIApp, Receive, Scope, Send


class LabelledRegistry(CollectorRegistry):
    """Says of each sample whose it is, so that those of several tenants can be kept in one Prometheus."""

    def __init__(self, tenant: str) -> None:
        super().__init__()
        self._tenant = tenant

    def collect(self) -> Iterator[Metric]:
        """As of any registry, with the label ``tenant``."""
        for metric in super().collect():
            metric.samples = [s._replace(labels={**s.labels, "tenant": self._tenant}) for s in metric.samples]
            yield metric


def under(prefix: str, app: ASGIApp) -> ASGIApp:
    """The app, which sees its paths without the prefix under which Serve has put it.

    Only once, and only that: who may do what is decided by the path, so nothing else may come off it.
    """

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        root = scope.get("root_path", "")
        if scope["type"] == "http" and root.endswith(prefix) and scope["path"].startswith(f"{root}/"):
            path = scope["path"].removeprefix(root)
            if not path.startswith(f"{root}/"):  # else the router would take it off again
                scope = {**scope, "path": path}
        await app(scope, receive, send)

    return wrapped
