"""The log of a replica: lines of JSON, the request they belong to, and never what a caller wrote."""

import asyncio
import io
import json
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from support import DIM, NOW_S, Served, Shop, raising, serve_here

from raysys.access import SCOPES, KeyFile, make_key
from raysys.encoder.hashing import HashEncoder
from raysys.errors import Overloaded, Unavailable
from raysys.serving.guard import NEEDED
from raysys.serving.logs import CURRENT_ID, JsonLines

MARK = "sesame"  # in everything that a caller of these tests writes, and nowhere else
TEXT, PERSON = f"{MARK} please open", f"{MARK}-ann"
BODIES: dict[str, Any] = {
    "/v1/recommendations": {"user_id": PERSON, "query": TEXT, "history": [f"{MARK}-item"]},
    "/v1/search": {"query": TEXT},
    "/v1/similar": {"item_id": f"{MARK}-item"},
    "/v1/rank": {"session_id": PERSON, "query": TEXT, "items": ["item-1", f"{MARK}-item"]},
    "/v1/events": {
        "events": [
            {"event_id": f"{MARK}-1", "type": "view", "user_id": PERSON, "item_id": "item-1", "text": TEXT},
            {"event_id": f"{MARK}-2", "type": MARK, "user_id": PERSON, "value": MARK},
            {"event_id": f"{MARK}-3", "type": "view", "user_id": PERSON, "timestamp": NOW_S * 2_000, "text": TEXT},
        ]
    },
    "/v1/items": {"items": [{"item_id": f"{MARK}-new", "title": TEXT}, {"item_id": f"{MARK}-bad", "price": MARK}]},
    "/v1/users": {"users": [{"user_id": PERSON, "description": TEXT, "attributes": {MARK: MARK}}]},
    "/v1/users:get": {"user_id": PERSON},
    "/v1/users:edit": {"user_id": PERSON, "action": "mute", "evidence": [f"{MARK}-item"]},
    "/v1/users:merge": {"user_id": PERSON, "session_id": f"{MARK}-session"},
    "/v1/users:export": {"user_id": PERSON},
    "/v1/users:delete": {"user_id": PERSON},
    "/v1/items:patch": {"items": [{"item_id": f"{MARK}-new", "title": f"{TEXT} again"}]},
    **{f"/v1/items:{verb}": {"item_ids": [f"{MARK}-new"]} for verb in ("get", "hide", "unhide", "delete")},
    # The ids of snapshots are an operator's, and stand in the audit log.
    "/v1/admin/snapshots": {},
    **{f"/v1/admin/snapshots:{verb}": {"snapshot_id": "none-such"} for verb in ("verify", "activate")},
    "/v1/admin/snapshots:rollback": {"published": "none-such"},
    "/v1/admin/snapshots:canary": {"snapshot_id": "none-such"},
    **{f"/v1/admin/snapshots:{verb}": {"canary": "none-such"} for verb in ("promote", "withdraw")},
    "/v1/admin/snapshots:gc": {"dry_run": True},
}


class Quoting(HashEncoder):
    """Fails as libraries do: with the value that it could not take."""

    is_broken = False

    def encode(self, texts: Any, role: Any) -> Any:
        if self.is_broken:
            try:
                raise KeyError(texts[0])
            except KeyError as error:
                raise ValueError(f"cannot encode {texts}") from error
        return super().encode(texts, role)


@pytest.fixture
def lines() -> Iterator[io.StringIO]:
    """Everything that any logger of the process says."""
    told, root = io.StringIO(), logging.getLogger()
    handler, level = logging.StreamHandler(told), root.level
    handler.setFormatter(JsonLines())
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield told
    root.removeHandler(handler)
    root.setLevel(level)


def parsed(told: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in told.getvalue().splitlines()]


@pytest.fixture
def model() -> Quoting:
    return Quoting(DIM)


@pytest_asyncio.fixture
async def served(shop: Shop, tmp_path: Path, model: Quoting) -> AsyncIterator[Served]:
    key, text = make_key(MARK, set(SCOPES))
    KeyFile(tmp_path / "keys.json").add(key)
    (tmp_path / "key.txt").write_text(text)
    (tmp_path / "impressions").write_text("a file, so that no impression can be kept")
    made = await serve_here(
        shop.store(2), tmp_path / "state.sqlite3", model=model, api_keys=str(tmp_path / "keys.json"), cached_queries=0
    )
    yield made
    await made.stop()


async def ask_all(client: httpx.AsyncClient, key: str) -> list[int]:
    """Every route, rightly, with what it does not take, and with a key that is none."""
    statuses = []
    for path, body in BODIES.items():
        for headers in ({"x-api-key": key}, {"x-api-key": f"{key}{MARK}"}):
            for content in (body, {**body, MARK: TEXT}):
                statuses.append((await client.post(path, headers=headers, json=content)).status_code)
        broken = f'{{"{MARK}": "{TEXT}'.encode()
        statuses.append((await client.post(path, headers={"x-api-key": key}, content=broken)).status_code)
    return statuses


async def test_no_line_holds_what_a_caller_wrote(
    served: Served,
    model: Quoting,
    lines: io.StringIO,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    key = (tmp_path / "key.txt").read_text()
    assert set(BODIES) == set(NEEDED) - {"/metrics"}
    async with served.client() as client:
        statuses = await ask_all(client, key)
        model.is_broken = True
        statuses += await ask_all(client, key)
        model.is_broken = False
        for error in (RuntimeError(f"{PERSON} wants {TEXT}"), Unavailable("away"), Overloaded("full")):
            monkeypatch.setattr(served.recommender, "recommend", raising(error))
            statuses += await ask_all(client, key)
        assert served.front.impressions is not None
        await asyncio.to_thread(served.front.impressions.flush)
        await served.front.state.close()
        statuses += await ask_all(client, key)
    assert {200, 400, 401, 404, 422, 429, 500, 503} <= set(statuses)
    told = [line for line in parsed(lines) if line["logger"] != "raysys.audit"]
    assert {"raysys.serving.problems", "raysys.serving.impressions"} <= {line["logger"] for line in told}
    output = lines.getvalue() + "".join(capfd.readouterr())
    audited = f'"key":"{MARK}"'  # the name of a key is an operator's
    assert MARK not in output.replace(audited, "").replace(audited.replace('"', '\\"'), "")
    assert key.split("_", 2)[2] not in output  # the secret, which may hold another _


async def test_an_error_is_told_with_its_request_and_where_it_was_raised(
    served: Served, model: Quoting, lines: io.StringIO, tmp_path: Path
) -> None:
    model.is_broken = True
    headers = {"x-api-key": (tmp_path / "key.txt").read_text(), "x-request-id": "r-17"}
    async with served.client() as client:
        response = await client.post("/v1/search", headers=headers, json={"query": "tea"})
    assert (response.status_code, response.json()["request_id"]) == (500, "r-17")
    (line,) = [line for line in parsed(lines) if line["logger"] == "raysys.serving.problems"]
    assert (line["level"], line["request_id"]) == ("ERROR", "r-17")
    assert line["message"] == "unexpected error in request r-17"
    assert line["traceback"].endswith("builtins.ValueError")
    assert line["traceback"].index("builtins.KeyError") < line["traceback"].index('raise ValueError(f"cannot')
    assert CURRENT_ID.get() is None


async def test_requests_at_once_keep_their_ids(
    served: Served, lines: io.StringIO, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    met = asyncio.Barrier(8)

    async def meet(_: object) -> object:
        await met.wait()
        raise RuntimeError

    monkeypatch.setattr(served.recommender, "search", meet)
    key = (tmp_path / "key.txt").read_text()
    async with served.client() as client:
        ids = [f"r-{number}" for number in range(8)]
        await asyncio.gather(
            *(
                client.post("/v1/search", headers={"x-api-key": key, "x-request-id": i}, json={"query": "tea"})
                for i in ids
            )
        )
    errors = [line for line in parsed(lines) if line["level"] == "ERROR"]
    assert sorted(line["request_id"] for line in errors) == ids
    assert all(line["message"].endswith(line["request_id"]) for line in errors)


def test_what_is_no_text_is_a_line_all_the_same() -> None:
    record = logging.LogRecord("raysys", logging.WARNING, "", 0, "%s is gone\nor so", ("/tmp/\udcff",), None)
    line = json.loads(JsonLines().format(record))
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "WARNING", "logger": "raysys", "message": "/tmp/\\udcff is gone\nor so"}


@pytest.mark.parametrize("is_set_up", [False, True])
def test_the_lines_go_to_the_stderr_of_the_process_unless_somebody_has_a_handler(is_set_up: bool) -> None:
    script = f"""
import io, logging, sys
from raysys.serving import audit
from raysys.serving.logs import open_log
sys.stderr = io.StringIO()  # as Serve does
if {is_set_up}:
    logging.getLogger("raysys").addHandler(logging.NullHandler())
for _ in range(2):
    open_log()
    audit.open_log()
logging.getLogger("raysys.anything").warning("seen")
audit.record_refusal("why")
"""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    first, *rest = [json.loads(line) for line in run.stderr.splitlines()]
    if is_set_up:
        assert (first["refused"], rest) == ("why", [])
    else:
        assert (first["message"], first["logger"]) == ("seen", "raysys.anything")
        assert [line["refused"] for line in rest] == ["why"]
