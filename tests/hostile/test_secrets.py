"""No secret stands in what a gateway writes or answers: keys, tokens of somebody else, the password of the store."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from redis_server import RedisServer, require_redis
from support import Shop
from typer.testing import CliRunner

from raysys.access import SCOPES, KeyFile, make_key
from raysys.cli import app
from raysys.config import ServeSettings, parse
from raysys.errors import ConfigError

pytestmark = pytest.mark.redis

MAIN = Path(__file__).parents[2] / "benchmarks" / "alone_server.py"
PASSWORD = "Pw-of-the-store-8f3c"
WRONG_PASSWORD = "Pw-that-is-wrong-77aa"
TOKEN = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJzZWNyZXQtcGVyc29uIn0.c2lnbmF0dXJlLW9mLXNvbWVib2R5"


@dataclass
class Gateway:
    """A gateway in a process of its own, and all that it has said."""

    folder: Path
    settings: dict[str, object]
    key: str
    said: list[str] = field(default_factory=list)
    statuses: set[int] = field(default_factory=set)

    def command(self) -> list[str]:
        self.folder.mkdir(exist_ok=True)
        (self.folder / "settings.json").write_text(json.dumps(self.settings))
        return [sys.executable, str(MAIN), str(self.folder / "settings.json")]

    def __enter__(self) -> "Gateway":
        with (self.folder.with_suffix(".err")).open("wb") as log:
            self.process = subprocess.Popen(self.command(), stdout=subprocess.PIPE, stderr=log, text=True)
        assert self.process.stdout is not None
        port = self.process.stdout.readline().strip()
        assert port, self.log()
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.communicate(timeout=30)
        self.http.close()

    def log(self) -> str:
        return self.folder.with_suffix(".err").read_text()

    def send(self, method: str, path: str, body: object = None, **headers: str) -> httpx.Response:
        answer = self.http.request(method, path, json=body, headers=headers)
        self.statuses.add(answer.status_code)
        self.said += [answer.text, *(f"{name}: {value}" for name, value in answer.headers.items())]
        return answer


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    require_redis()
    server = RedisServer(tmp_path / "redis", requirepass=PASSWORD).start()
    yield server
    server.kill()


@pytest.fixture
def gateway(shop: Shop, redis: RedisServer, tmp_path: Path) -> Gateway:
    file, (key, text) = KeyFile(tmp_path / "keys.json"), make_key("shop", set(SCOPES))
    file.add(key)
    settings = {
        "index_root": str(shop.store(1).root),
        "state": redis.url,
        "impressions": {"folder": str(tmp_path / "impressions")},
        "api_keys": str(file.path),
    }
    return Gateway(tmp_path / "gateway", settings, text)


def ask_everything(gateway: Gateway, authorization: str) -> None:
    """Every kind of request and of mistake, under these credentials."""
    headers = {"Authorization": authorization}
    event = {"event_id": "e1", "user_id": "ann", "type": "view", "item_id": "item-1"}
    for path, body in {
        "/v1/recommendations": {"user_id": "ann", "limit": 3},
        "/v1/search": {"query": "tea", "limit": "many"},
        "/v1/similar": {"item_id": "no such item"},
        "/v1/events": {"events": [event]},
        "/v1/users:get": {"user_id": "ann"},
        "/v1/users:export": {"user_id": "ann"},
        "/v1/users:delete": {"user_id": "bob"},
        "/v1/admin/snapshots:verify": {"snapshot_id": "20260101T000000-none"},
        "/v1/nothing": {},
    }.items():
        gateway.send("POST", path, body, **headers)
    for path in ("/livez", "/readyz", "/metrics", "/openapi.json", "/v1/admin/snapshots"):
        gateway.send("GET", path, **headers)
    gateway.send("GET", "/metrics", **{"X-API-Key": authorization.rpartition(" ")[2]})
    gateway.send("GET", "/metrics", **headers, **{"X-API-Key": TOKEN})


def assert_silent(text: str, *secrets: str) -> None:
    for secret in secrets:
        assert secret not in text, text[max(0, text.index(secret) - 300) :][:700]


def test_no_secret_is_answered_logged_or_measured(gateway: Gateway, redis: RedisServer) -> None:
    secret = gateway.key[12:]
    with gateway:
        for round_ in range(2):
            for credentials in (
                f"Bearer {gateway.key}",
                f"Bearer {gateway.key[:-1]}_",
                f"Bearer {TOKEN}",
                f"Basic {TOKEN}",
                TOKEN,
            ):
                ask_everything(gateway, credentials)
            if not round_:
                redis.kill()  # so that its errors are told as well
        # Who puts a key where none belongs may get it back, but nobody else is to read it.
        mine = len(gateway.said)
        gateway.send("POST", f"/v1/search?api_key={TOKEN}", {TOKEN: TOKEN}, Authorization=f"Bearer {gateway.key}")
        gateway.send("GET", f"/v1/{TOKEN}", Cookie=f"key={TOKEN}")
        gateway.said = gateway.said[:mine]
        gateway.send("GET", "/metrics", Authorization=f"Bearer {gateway.key}")
        gateway.send("GET", "/readyz", Authorization=f"Bearer {gateway.key}")
    assert {200, 401, 503} <= gateway.statuses
    said = "\n".join(gateway.said)
    assert "raysys_requests_total" in said
    assert "Redis at 127.0.0.1" in said + gateway.log()
    assert_silent(said, secret, gateway.key[:-1][12:], TOKEN, PASSWORD)
    assert '"audit"' in gateway.log()
    assert_silent(gateway.log(), secret, gateway.key[:-1][12:], TOKEN, PASSWORD)
    for file in gateway.folder.parent.glob("impressions/**/*.parquet"):
        assert_silent(file.read_bytes().decode("latin-1"), secret, TOKEN, PASSWORD)


def test_a_password_that_is_refused_is_not_repeated(gateway: Gateway, redis: RedisServer) -> None:
    gateway.settings["state"] = redis.url.replace(PASSWORD, WRONG_PASSWORD)
    ended = subprocess.run(gateway.command(), capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode != 0
    assert "refuses the user name or the password" in ended.stderr
    assert_silent(ended.stdout + ended.stderr, WRONG_PASSWORD, gateway.key[12:])


@pytest.mark.parametrize(
    "raw",
    [
        {"rate_limit": {"requests_per_s": 1, "burst": 1}, "state": f"redis://:{PASSWORD}@host:6379/0"},
        {"state": [f"redis://user:{PASSWORD}@host:6379/0"]},
        {"state": {"url": f"rediss://:{PASSWORD}@host"}},
        {"tracing": {"endpoint": f"otlp://collector:{PASSWORD}@host"}},
        {"stat": f"redis://:{PASSWORD}@host"},
    ],
)
def test_settings_that_are_wrong_are_quoted_without_passwords(raw: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as told:
        parse(ServeSettings, raw, "settings.yaml")
    assert_silent(str(told.value), PASSWORD)


def test_doctor_tells_no_secret(gateway: Gateway, tmp_path: Path) -> None:
    (tmp_path / ".raysys").mkdir()
    (tmp_path / ".raysys" / "keys.json").write_bytes((tmp_path / "keys.json").read_bytes())
    secret = {"RAYSYS_API_KEY": gateway.key, "RAY_AUTH_TOKEN": TOKEN, "WANDB_API_KEY": TOKEN}
    environment = {**os.environ, "HOME": str(tmp_path), **secret}
    found = CliRunner().invoke(app, ["doctor"], env=environment)
    assert "SQLite" in found.stdout
    hashes = [key.hash.hex() for key in KeyFile(tmp_path / "keys.json").read()]
    assert_silent(found.output, gateway.key[12:], TOKEN, *hashes)


def test_a_page_of_somebody_else_may_not_read_answers(gateway: Gateway) -> None:
    asked = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST"}
    with gateway:
        answers = [
            gateway.send("OPTIONS", "/v1/search", **asked),
            gateway.send("POST", "/v1/search", {"query": "tea"}, **asked, Authorization=f"Bearer {gateway.key}"),
            gateway.send("GET", "/livez", **asked),
        ]
    assert not [name for answer in answers for name in answer.headers if name.startswith("access-control-")]
