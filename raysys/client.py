"""A thin client of the HTTP API: one method a route, plain dictionaries in and out."""

import os
import re
import ssl
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from raysys.errors import ConfigError, RaysysError, Unavailable

KEY_VARIABLE = "RAYSYS_API_KEY"


TRUST = "where it is your own, name its file: Client(verify=...), or SSL_CERT_FILE in the environment"


class ApiError(RaysysError):
    """The API said no: ``problem`` is its problem+json."""

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(status, problem)
        self.status, self.problem = status, problem

    def __str__(self) -> str:
        return f"{self.status} {self.problem.get('code', '')}: {self.problem.get('detail', '')}"


class Client:
    """``with Client("http://127.0.0.1:8000") as api: api.recommend(user_id="u1")``. Raises ApiError, Unavailable.

    timeout_s: to verify or activate a snapshot takes as long as reading it. api_key: None = that of the environment
    (``RAYSYS_API_KEY``), where there is one. verify: a file of certificates to trust in place of those of the system,
    for ``https``; None = those, or the file that the environment names (``SSL_CERT_FILE``).
    """

    def __init__(
        self, url: str, timeout_s: float = 10.0, api_key: str | None = None, verify: str | Path | None = None
    ) -> None:
        """Raises ConfigError for a key that cannot be sent, and for a file that holds no certificates."""
        self.url = url
        trusted = True if verify is None else _trusting(verify)
        self._http = httpx.Client(base_url=url, timeout=timeout_s, headers=_headers(api_key), verify=trusted)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def recommend(self, **body: Any) -> dict[str, Any]:
        return self.post("/v1/recommendations", body)

    def similar(self, item_id: str, **body: Any) -> dict[str, Any]:
        return self.post("/v1/similar", {"item_id": item_id, **body})

    def search(self, query: str, **body: Any) -> dict[str, Any]:
        return self.post("/v1/search", {"query": query, **body})

    def rank(self, items: Sequence[str], **body: Any) -> dict[str, Any]:
        return self.post("/v1/rank", {"items": list(items), **body})

    def send(self, events: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return self.post("/v1/events", {"events": list(events)})

    def items(self, item_ids: Sequence[str]) -> dict[str, Any]:
        return self.post("/v1/items:get", {"item_ids": list(item_ids)})

    def upsert(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return self.post("/v1/items", {"items": list(items)})

    def delete(self, item_ids: Sequence[str]) -> dict[str, Any]:
        return self.post("/v1/items:delete", {"item_ids": list(item_ids)})

    def snapshots(self) -> dict[str, Any]:
        return self.get("/v1/admin/snapshots")

    def verify_snapshot(self, snapshot_id: str = "current", **body: Any) -> dict[str, Any]:
        return self.post("/v1/admin/snapshots:verify", {"snapshot_id": snapshot_id, **body})

    def activate_snapshot(self, snapshot_id: str, **body: Any) -> dict[str, Any]:
        return self.post("/v1/admin/snapshots:activate", {"snapshot_id": snapshot_id, **body})

    def rollback_snapshot(self, published: str) -> dict[str, Any]:
        """Back from this one, which must still be the published one."""
        return self.post("/v1/admin/snapshots:rollback", {"published": published})

    def start_canary(self, snapshot_id: str, share: float, **body: Any) -> dict[str, Any]:
        return self.post("/v1/admin/snapshots:canary", {"snapshot_id": snapshot_id, "share": share, **body})

    def promote_canary(self, **body: Any) -> dict[str, Any]:
        return self.post("/v1/admin/snapshots:promote", body)

    def withdraw_canary(self, **body: Any) -> dict[str, Any]:
        return self.post("/v1/admin/snapshots:withdraw", body)

    def collect_snapshots(self, **body: Any) -> dict[str, Any]:
        return self.post("/v1/admin/snapshots:gc", body)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Any route by its path. Raises ApiError, and Unavailable when nothing answers."""
        return self._content("POST", path, body)

    def get(self, path: str) -> dict[str, Any]:
        """Any route that answers JSON, such as ``/readyz``. Raises ApiError."""
        return self._content("GET", path, None)

    def _content(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        try:
            answer = self._http.request(method, path, json=body)
        except httpx.TransportError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise Unavailable(f"the certificate of {self.url} is not to be trusted ({error}); {TRUST}") from error
            raise Unavailable(f"nothing answers at {self.url} ({error}); start it with `raysys serve`") from error
        try:
            content: dict[str, Any] = answer.json()
        except ValueError as error:  # a proxy answers for a gateway that is not there
            raise Unavailable(f"{self.url} answers {answer.status_code} without JSON; try again in a moment") from error
        if answer.is_error:
            raise ApiError(answer.status_code, content)
        return content


def _trusting(file: str | Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=Path(file).expanduser())
    except OSError as error:  # also ssl.SSLError
        raise ConfigError(f"{file} holds no certificates to trust, in PEM form: {error}") from error


def _headers(api_key: str | None) -> dict[str, str]:
    key = os.environ.get(KEY_VARIABLE) if api_key is None else api_key
    if not key:
        return {}
    if not re.fullmatch(r"[\x21-\x7e]+", key.strip()):  # told here, as HTTP libraries would print it
        raise ConfigError(f"the API key ({KEY_VARIABLE}) has blanks or odd letters in it; give it as it was printed")
    return {"Authorization": f"Bearer {key.strip()}"}
