"""Two tenants with the same ids, each a gateway in a process of its own: neither sees or changes anything of the other.

South is asked just what north was asked before. Were anything of north to be found there, an answer would be another:
a duplicate, a higher version, a known person, another list. A new route must be given its place in ``SCRIPT``.
"""

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from chaos.chaos_tools import GatewayProcess, until
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm
from redis import Redis
from redis.exceptions import NoPermissionError
from redis_server import RedisServer, running_redis
from snapshot_shelf import A, B, copy_of
from support import Shop

from raysys.access import SCOPES, KeyFile, make_key
from raysys.index.store import SnapshotStore
from raysys.serving.guard import OPEN
from raysys.state.open import open_state
from raysys.types import Person

pytestmark = pytest.mark.redis

TENANTS = NORTH, SOUTH = "north", "south"  # as long as each other, so that what is measured is as well
HOURS_AGO_MS = round((time.time() - 7_200) * 1e3)
ANN, DEADLINE_S = {"user_id": "ann"}, 30.0
CANARY = {"snapshot_id": B, "share": 0.5, "force": True}
ISSUER_KEY = ec.generate_private_key(ec.SECP256R1())
Step = tuple[str, str, dict[str, Any]]


def event(tenant: str, number: int, kind: str, **more: Any) -> dict[str, Any]:
    who = {} if "session_id" in more else ANN
    return {"event_id": f"e{number}", "type": kind, "timestamp": HOURS_AGO_MS + number, **who, **more}


def writes(tenant: str) -> list[Step]:
    """What is asked first of nothing known, and then written. What says whose it is takes no part in scores."""
    item = {"item_id": "own-1", "title": "the old lighthouse", "owner_id": f"of-{tenant}", "year": 1999}
    events = [
        event(tenant, 1, "like", item_id="item-1"),
        event(tenant, 2, "purchase", item_id="item-2", properties={"shop": tenant}),
        event(tenant, 3, "search", text="harbours"),
        event(tenant, 4, "view", item_id="item-5", session_id="s1"),
    ]
    return [
        ("POST", "/v1/users:get", ANN),
        ("POST", "/v1/users:export", ANN),
        ("POST", "/v1/items:get", {"item_ids": ["own-1", "item-1"]}),
        ("POST", "/v1/items", {"items": [item]}),
        ("POST", "/v1/items:patch", {"items": [{"item_id": "item-6", "owner_id": f"of-{tenant}"}]}),
        ("POST", "/v1/items:hide", {"item_ids": ["item-7", "item-8"]}),
        ("POST", "/v1/items:unhide", {"item_ids": ["item-8"]}),
        ("POST", "/v1/events", {"events": events}),
        ("POST", "/v1/events", {"events": events[:2]}),
        ("POST", "/v1/users", {"users": [{**ANN, "description": "sails", "attributes": {"shop": tenant}}]}),
        ("POST", "/v1/users:merge", {"session_id": "s1", **ANN}),
        ("POST", "/v1/users:edit", {**ANN, "action": "mute", "evidence": ["item-2"]}),
    ]


def reads(tenant: str) -> list[Step]:
    return [
        ("POST", "/v1/users:get", ANN),
        ("POST", "/v1/users:get", {"session_id": "s1"}),
        ("POST", "/v1/users:export", ANN),
        ("POST", "/v1/items:get", {"item_ids": ["own-1", "item-1", "item-6", "item-7", "item-8"]}),
        ("POST", "/v1/recommendations", {**ANN, "limit": 20, "explain": True}),
        ("POST", "/v1/similar", {"item_id": "own-1"}),
        ("POST", "/v1/search", {"query": "lighthouse harbours"}),
        ("POST", "/v1/rank", {**ANN, "items": ["item-1", "own-1", "item-7", "item-9"]}),
        ("GET", "/v1/admin/snapshots", {}),
        ("GET", "/livez", {}),
        ("GET", "/readyz", {}),
    ]


def moves(tenant: str) -> list[Step]:
    """Of snapshots. North has B as well."""
    return [
        ("POST", "/v1/admin/snapshots:verify", {}),
        ("POST", "/v1/admin/snapshots:activate", {"snapshot_id": B, "force": True}),
        ("POST", "/v1/admin/snapshots:rollback", {"published": B}),
        ("POST", "/v1/admin/snapshots:canary", CANARY),
        ("POST", "/v1/admin/snapshots:withdraw", {}),
        ("POST", "/v1/admin/snapshots:canary", CANARY),
        ("POST", "/v1/admin/snapshots:promote", {}),
        ("POST", "/v1/admin/snapshots:rollback", {"published": B}),
        ("POST", "/v1/admin/snapshots:gc", {"keep": 1, "dry_run": True}),
    ]


def erasures(tenant: str) -> list[Step]:
    return [
        ("POST", "/v1/items:delete", {"item_ids": ["own-1", "item-1"]}),
        ("POST", "/v1/users:delete", ANN),
        ("POST", "/v1/users:get", ANN),
        ("POST", "/v1/items:get", {"item_ids": ["own-1", "item-1"]}),
    ]


SCRIPT = [step for part in (writes, reads, moves, erasures) for step in part(NORTH)]
# Of the moment, or made up anew; the rest of an answer is the same wherever nobody else has been.
OF_THE_MOMENT = {"recommendation_id", "timings_ms", "receipt_id", "request_id", "at", "age_s", "updated_at", "arm"}
OF_THE_MOMENT |= {"old_ms", "new_ms", "explored", "propensity", "timestamp", "impressions", "created_at", "is_held"}
OF_THE_MOMENT |= {"state", "trending"}


def settled(value: Any, tenant: str) -> Any:
    """An answer without what differs between any two that were asked the same."""
    if isinstance(value, dict):
        return {key: settled(inner, tenant) for key, inner in value.items() if key not in OF_THE_MOMENT}
    if isinstance(value, list):
        return [settled(inner, tenant) for inner in value if not counts_lists(inner)]
    if isinstance(value, float):
        return round(value, 3)
    return value.replace(tenant, "TENANT") if isinstance(value, str) else value


def counts_lists(value: Any) -> bool:
    """Whether it is the line of a receipt about impressions: one tenant is asked for more lists than the other."""
    return isinstance(value, dict) and value.get("place") == "impressions"


@dataclass
class Tenant:
    """A gateway of one tenant, and what it shows who asks."""

    name: str
    gateway: GatewayProcess
    key: str
    told: list[str] = field(default_factory=list)

    def ask(self, method: str, path: str, body: dict[str, Any], key: str | None = None) -> httpx.Response:
        headers = {"authorization": f"Bearer {self.key if key is None else key}"}
        sent = None if method == "GET" else body
        answer = self.gateway.http.request(method, path, json=sent, headers=headers)
        self.told.append(answer.text)
        return answer

    def go_through(self, steps: list[Step]) -> list[Any]:
        """The answers, as far as they can be compared."""
        answers = [self.ask(*step) for step in steps]
        self.wait_until_calm()
        return [(a.request.url.path, a.status_code, settled(a.json(), self.name)) for a in answers]

    def wait_until_calm(self) -> None:
        """Until all texts are encoded, and all changes are known."""
        until(lambda: self.sample("raysys_texts_waiting") == 0, DEADLINE_S)

    def trends(self) -> bool:
        """Whether what the people of this tenant met counts for strangers by now."""
        (item,) = self.ask("POST", "/v1/rank", {"items": ["item-1"]}).json()["items"]
        return "trending" in item["sources"]

    def metrics(self) -> str:
        return self.ask("GET", "/metrics", {}).text

    def sample(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name with these labels."""
        wanted = [f'{key}="{value}"' for key, value in {**labels, "tenant": self.name}.items()]
        lines = [line for line in self.metrics().splitlines() if line.startswith((f"{name}{{", f"{name} "))]
        return sum(float(line.rpartition(" ")[2]) for line in lines if all(part in line for part in wanted))

    def token(self, **claims: Any) -> str:
        usual = {"iss": "id", "aud": "raysys", "tenant": self.name, "scope": " ".join(SCOPES), "exp": time.time() + 600}
        return jwt.encode(usual | claims, ISSUER_KEY, "ES256")


@dataclass
class World:
    """Both tenants, and where their things are."""

    home: Path
    north: Tenant
    south: Tenant
    redis: RedisServer | None


@pytest.fixture(scope="module", params=["redis", "sqlite"])
def world(request: pytest.FixtureRequest, shop: Shop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(folder))
        if request.param == "sqlite":
            yield from served(shop, folder, None)
        else:
            with running_redis(folder / "redis") as server:
                yield from served(shop, folder, server)


def served(shop: Shop, folder: Path, redis: RedisServer | None) -> Iterator[World]:
    """Two gateways with one file of keys and one issuer, all else where it is by default."""
    public = ECAlgorithm.to_jwk(ISSUER_KEY.public_key(), as_dict=True)
    (folder / "jwks.json").write_text(json.dumps({"keys": [public]}))
    (folder / "jwks.json").chmod(0o644)
    shop.snapshot(1)  # before the threads
    with ThreadPoolExecutor() as threads:  # as most of a start is waiting
        made = list(threads.map(lambda name: started(name, shop, folder, redis), TENANTS))
    yield World(folder, *made, redis)
    for tenant in made:
        tenant.gateway.kill()


def started(name: str, shop: Shop, folder: Path, redis: RedisServer | None) -> Tenant:
    store = SnapshotStore(folder / ".raysys/tenants" / name / "index")
    for snapshot_id in (A, B) if name == NORTH else (A,):
        copy_of(shop.snapshot(1), store, snapshot_id)
    store.publish(A)
    key, text = make_key("operator", set(SCOPES), tenant=name)
    KeyFile(folder / "keys.json").add(key)
    return Tenant(name, GatewayProcess(folder / name, **settings_of(name, folder, redis)), text)


def settings_of(name: str, folder: Path, redis: RedisServer | None) -> dict[str, Any]:
    return {
        "tenant": name,
        "api_keys": folder / "keys.json",
        "jwt": {"issuer": "id", "audience": "raysys", "keys": str(folder / "jwks.json")},
        "ranking": {"learned": False, "trending": 0.0},  # how much it counts changes by the second
        "impressions": {"seconds_per_file": 0.2},
        "experiments": [{"name": f"of-{name}", "arms": [{"name": "a"}, {"name": "b"}]}],
        **({} if redis is None else {"state": redis.url}),
    }


def test_every_route_is_here(world: World) -> None:
    document = world.north.ask("GET", "/openapi.json", {}).json()
    assert set(document["paths"]) == {path for _, path, _ in SCRIPT} | {"/metrics"}


def test_what_opens_one_is_unknown_at_the_other_on_every_route(world: World) -> None:
    nobodys, text = make_key("operator", set(SCOPES))
    KeyFile(world.home / "keys.json").add(nobodys)
    document = world.north.ask("GET", "/openapi.json", {}).json()["paths"]
    operations = [(method.upper(), path) for path, methods in document.items() for method in methods]
    assert len(operations) > 20
    until(lambda: '"in_use":1' in world.south.ask("GET", "/readyz", {}).text, DEADLINE_S)
    for here, there in ((world.north, world.south), (world.south, world.north)):
        for method, path in operations:
            for key in (there.key, there.token(), here.token(tenant=None), here.token(tenant=[here.name]), text):
                answer = here.ask(method, path, {"no": "such field"}, key)
                if path == "/readyz":
                    assert answer.json() == {"ready": True}  # as to anybody
                elif path not in OPEN:
                    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated"), path
            for key in (here.key, here.token()):
                assert here.ask(method, path, {"no": "such field"}, key).status_code in (200, 422), path
    told = "the token is 'north', wanted 'south'"
    assert told in world.south.ask("POST", "/v1/search", {"query": "x"}, world.north.token()).json()["detail"]
    world.north.told.clear()  # which names the other, as it was asked with its token
    world.south.told.clear()


def test_each_is_as_if_it_were_alone(world: World) -> None:
    north, south = world.north, world.south
    written = north.go_through(writes(NORTH))
    until(north.trends, DEADLINE_S)
    assert not south.trends()
    read = north.go_through(reads(NORTH))
    assert read[0][2]["profile_version"] > 0
    assert [i["item_id"] for i in read[3][2]["items"]] == ["own-1", "item-1", "item-6", "item-7", "item-8"]
    assert north.sample("raysys_events_total", outcome="accepted") == 4
    assert south.sample("raysys_events_total") == 0

    assert south.go_through(writes(SOUTH)) == written
    until(south.trends, DEADLINE_S)
    assert without_b(south.go_through(reads(SOUTH))) == without_b(read)
    north.go_through(moves(NORTH)[:2])
    until(lambda: north.ask("GET", "/readyz", {}).json()["snapshot_id"] == B, DEADLINE_S)
    for verb, body, code in (
        ("activate", {"snapshot_id": B}, "unknown_snapshot"),
        ("canary", CANARY, "unknown_snapshot"),
        ("promote", {}, "snapshot_conflict"),
        ("withdraw", {}, "snapshot_conflict"),
    ):
        assert south.ask("POST", f"/v1/admin/snapshots:{verb}", body).json()["code"] == code
    assert B not in south.ask("GET", "/v1/admin/snapshots", {}).text
    assert south.ask("GET", "/readyz", {}).json()["snapshot_id"] == A
    assert {status for _, status, _ in north.go_through(moves(NORTH)[2:])} == {200}
    until(lambda: north.ask("GET", "/readyz", {}).json()["snapshot_id"] == A, DEADLINE_S)

    before = [step for step in reads(NORTH) if step[1] != "/v1/admin/snapshots"]
    as_it_was = north.go_through(before)
    erased = south.go_through(erasures(SOUTH))
    assert north.go_through(before) == as_it_was  # what the other erases stays here
    assert north.go_through(erasures(NORTH)) == erased


def without_b(answers: list[Any]) -> list[Any]:
    """What both can have: the list of snapshots is looked at by itself."""
    return [answer for answer in answers if answer[0] != "/v1/admin/snapshots"]


def test_no_answer_and_no_line_of_the_log_names_the_other(world: World) -> None:
    for here, other in ((world.north, SOUTH), (world.south, NORTH)):
        lines = [json.loads(line) for line in here.gateway.log.read_text().splitlines()]
        audited = [line for line in lines if "audit" in line]
        assert {line["tenant"] for line in lines} == {here.name}
        assert {line["act"] for line in audited} >= {"keys", "/v1/users:delete", "/v1/items:delete"}
        assert not [text for text in here.told if other in text]


def test_metrics_are_of_one_and_say_whose(world: World) -> None:
    for tenant in (world.north, world.south):
        samples = [line for line in tenant.metrics().splitlines() if not line.startswith("#")]
        assert samples
        assert not [line for line in samples if f'tenant="{tenant.name}"' not in line]
        assert tenant.sample("raysys_requests_total", route="/v1/users:delete", status="200") == 1


def test_everything_lies_where_only_one_tenant_has_things(world: World) -> None:
    for name in TENANTS:
        folder = world.home / ".raysys/tenants" / name
        until(lambda folder=folder: any((folder / "impressions").rglob("*.parquet")), DEADLINE_S)
        places = {path.name for path in folder.iterdir()}
        assert ("state.sqlite3" in places) == (world.redis is None)
    assert {path.name for path in (world.home / ".raysys").iterdir()} <= {"tenants", "encoders"}
    if world.redis is not None:
        with Redis.from_url(world.redis.url) as client:
            assert {key.split(b":")[0] for key in client.scan_iter()} == {b"raysys@north", b"raysys@south"}


async def test_a_user_of_redis_may_be_kept_to_one_namespace(world: World) -> None:
    if world.redis is None:
        pytest.skip("files have owners")
    with Redis.from_url(world.redis.url) as client:
        client.execute_command("ACL", "SETUSER", NORTH, "on", ">pw", "~raysys@north:*", "+@all", "-@dangerous", "+info")
    url = world.redis.url.replace("redis://", f"redis://{NORTH}:pw@")
    mine, others, nobodys = (open_state(place) for place in (f"{url}#north", f"{url}#south", url))
    assert await mine.put_person(Person("u:bob")) > 0
    for state in (others, nobodys):
        for call in (state.identity, state.erased, state.last_sequence, lambda s=state: s.history("u:ann", 1)):
            with pytest.raises(NoPermissionError):
                await call()
    for state in (mine, others, nobodys):
        await state.close()
