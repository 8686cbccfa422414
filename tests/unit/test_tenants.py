"""Tenants: where their things are by default, the Serve config of several, and the paths that a gateway of one sees."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from ray.serve.schema import ServeDeploySchema
from support import FixedClock, Shop, serve_here
from typer.testing import CliRunner

from raysys.access import SCOPES, KeyFile, make_key
from raysys.cli import app
from raysys.config import RESERVED, BuildSettings, ServeSettings, home_of, parse
from raysys.errors import ConfigError, Unauthenticated
from raysys.serving.app import build, deployment_names
from raysys.serving.configs import check_keys, tenants_config
from raysys.serving.consume import default_stream
from raysys.serving.edge import Metrics
from raysys.serving.guard import NEEDED, OPEN, Guard
from raysys.serving.logs import JsonLines
from raysys.serving.tenant import under
from raysys.state.open import open_state
from raysys.state.redis_scripts import prefix

NAMES = st.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?\Z").filter(lambda name: name not in RESERVED)


def served(**given: Any) -> ServeSettings:
    return parse(ServeSettings, given, "settings")


# Names and places


@pytest.mark.parametrize(
    "name", ["", "Shop", "a b", "-a", "a-", "a/b", "..", "a:b", "a#b", "a\n", "ü", "a" * 33, *RESERVED]
)
def test_what_cannot_name_a_tenant(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot name a tenant") as refused:
        served(tenant=name)
    assert len(str(refused.value).splitlines()) == 2  # and nothing of what could not be worked out without it
    with pytest.raises(ConfigError, match="cannot name a tenant"):
        make_key("shop", {"read"}, tenant=name)
    with pytest.raises(ConfigError, match="cannot name a tenant"):
        prefix(name)


def test_no_name_is_a_path_of_the_api() -> None:
    """Else ``/v1`` could be the root of a tenant and of everybody's routes at once."""
    assert {path.split("/")[1] for path in NEEDED.keys() | OPEN | {"/readyz"}} - {"openapi.json"} == set(RESERVED)


def test_what_is_not_given_is_in_a_folder_of_the_tenant() -> None:
    home = Path("~/.raysys/tenants/shop").expanduser()
    for settings in (served(tenant="shop"), served(tenant="shop", impressions={"keep_days": 3})):
        assert settings.index_root == str(home / "index")
        assert settings.state == str(home / "state.sqlite3")
        assert settings.impressions.folder == str(home / "impressions")
    assert settings.impressions.keep_days == 3
    built = parse(BuildSettings, {"tenant": "shop", "catalog": {"path": "x.csv"}, "index": {"shards": 2}}, "settings")
    assert (built.index.root, built.index.shards) == (settings.index_root, 2)
    assert home_of(None) == "~/.raysys"


def test_what_is_given_counts() -> None:
    given = {"index_root": "/i", "state": "/s.sqlite3", "impressions": {"folder": None}}
    settings = served(tenant="shop", **given)
    assert (settings.index_root, settings.state, settings.impressions.folder) == ("/i", "/s.sqlite3", None)
    index = {"catalog": {"path": "x.csv"}, "index": {"root": "/i"}}
    assert parse(BuildSettings, {"tenant": "shop", **index}, "settings").index.root == "/i"


def test_without_a_tenant_all_is_where_it_was() -> None:
    home, settings = Path("~/.raysys").expanduser(), ServeSettings()
    places = (settings.index_root, settings.state, settings.impressions.folder)
    assert places == tuple(str(home / name) for name in ("index", "state.sqlite3", "impressions"))
    assert served(state="redis://h:1/0").state == "redis://h:1/0"


def test_a_redis_has_a_namespace_for_each_that_is_written_and_read_again_as_it_is() -> None:
    settings = served(tenant="shop", state="redis://h:1/0")
    assert settings.state == "redis://h:1/0#shop"
    assert parse(ServeSettings, settings.model_dump(mode="json"), "settings") == settings
    built = parse(BuildSettings, {"tenant": "shop", "catalog": {"path": "x"}, "state": "redis://h:1/0"}, "settings")
    assert built.state == settings.state
    with pytest.raises(ConfigError, match="is not the tenant 'shop'"):
        served(tenant="shop", state="redis://h:1/0#till")


def test_a_password_that_is_taken_for_a_namespace_is_not_shown() -> None:
    url = "redis://:12#secret@h:1/0"
    for act in (lambda: open_state(url), lambda: served(tenant="shop", state=url)):
        with pytest.raises(ConfigError, match="after '#'") as caught:
            act()
        assert "secret" not in str(caught.value)


@given(NAMES, NAMES)
def test_no_key_of_one_namespace_is_in_another(one: str, other: str) -> None:
    prefixes = {None: prefix(None), one: prefix(one), other: prefix(other)}
    for mine, begins in prefixes.items():
        for its, other_begins in prefixes.items():
            assert mine == its or not begins.startswith(other_begins)
    assert default_stream(one).startswith(prefix(one))


# Who opens what


def test_a_key_opens_the_gateways_of_its_tenant_alone(tmp_path: Path) -> None:
    file, place = KeyFile(tmp_path / "keys.json"), ("--file", str(tmp_path / "keys.json"))
    texts: dict[str | None, str] = {}
    for tenant in (None, "shop", "till"):
        option = () if tenant is None else ("--tenant", tenant)
        made = CliRunner().invoke(app, ["keys", "create", "--name", "k", "--scope", "read", *option, *place])
        texts[tenant] = made.stdout.strip()
    assert [key.tenant for key in file.read()] == list(texts)
    for here in texts:
        guard = Guard(str(file.path), FixedClock(), tenant=here)
        assert guard.status()["api_keys"] == {"in_use": 1, "refused": None}
        for tenant, text in texts.items():
            asked = {"path": "/v1/search", "headers": [(b"x-api-key", text.encode())]}
            if tenant == here:
                guard.check(asked)
                continue
            with pytest.raises(Unauthenticated, match="not known here"):
                guard.check(asked)
    listed = CliRunner().invoke(app, ["keys", "list", *place]).output
    assert all(word in listed for word in ("tenant", "shop", "till"))


def test_a_file_without_tenants_is_written_as_ever(tmp_path: Path) -> None:
    KeyFile(tmp_path / "keys.json").add(make_key("a", {"read"})[0])
    assert "tenant" not in (tmp_path / "keys.json").read_text()
    assert "tenant" not in CliRunner().invoke(app, ["keys", "list", "--file", str(tmp_path / "keys.json")]).output


# What says whose it is


def test_every_line_of_the_log_names_the_tenant() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines("shop"))
    handler.handle(logging.LogRecord("raysys.x", logging.INFO, "x.py", 1, "hello %s", ("you",), None))
    assert json.loads(stream.getvalue())["tenant"] == "shop"


def test_every_sample_names_the_tenant() -> None:
    metrics = Metrics("shop")
    metrics.events.labels("accepted").inc(3)
    metrics.latency_s.labels("/v1/search").observe(0.1)
    lines = [line for line in generate_latest(metrics.registry).decode().splitlines() if not line.startswith("#")]
    assert 'raysys_events_total{outcome="accepted",tenant="shop"} 3.0' in lines
    assert all('tenant="shop"' in line for line in lines)
    assert "tenant" not in generate_latest(Metrics().registry).decode()


# Under a route prefix


async def test_a_gateway_sees_its_paths_without_the_prefix_of_serve(shop: Shop, tmp_path: Path) -> None:
    key, text = make_key("all", set(SCOPES), tenant="shop")
    KeyFile(tmp_path / "keys.json").add(key)
    keys = {"tenant": "shop", "api_keys": str(tmp_path / "keys.json")}
    of_one = await serve_here(shop.store(1), tmp_path / "state.sqlite3", **keys)
    headers = {"x-api-key": text}
    transport = httpx.ASGITransport(of_one.app, root_path="/shop")  # as Serve: the path holds it as well
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        document = (await client.get("/shop/openapi.json")).json()
        assert document["servers"] == [{"url": "/shop"}]
        for path, methods in document["paths"].items():
            for method in methods:
                answer = await client.request(method, f"/shop{path}", content=b"{")
                assert answer.status_code == (400 if method == "post" else 200), path
                assert (await client.request(method, f"/shop/shop{path}")).status_code == 404
                assert (await client.request(method, f"/shop{path}/")).status_code == 404
        assert "/shop/openapi.json" in (await client.get("/shop/docs")).text
        assert (await client.get("/shop")).status_code == 404
        assert 'route="/v1/search"' in (await client.get("/shop/metrics")).text
        del client.headers["x-api-key"]
        for path in NEEDED:
            assert (await client.post(f"/shop{path}")).status_code == 401
    await of_one.stop()


@pytest.mark.parametrize(
    ("root", "path", "seen"),
    [
        ("/shop", "/shop/v1/search", "/v1/search"),
        ("/all/shop", "/all/shop/livez", "/livez"),
        ("/shop", "/shop/shop/livez", "/shop/shop/livez"),
        ("/shop", "/shopx/livez", "/shopx/livez"),
        ("/shop", "/shop", "/shop"),
        ("/till", "/till/livez", "/till/livez"),
        ("/xshop", "/xshop/livez", "/xshop/livez"),
        ("", "/shop/livez", "/shop/livez"),
        ("", "/livez", "/livez"),
    ],
)
async def test_only_its_own_prefix_comes_off_and_only_once(root: str, path: str, seen: str) -> None:
    paths = []

    async def inner(scope: Any, *_: Any) -> None:
        paths.append(scope["path"])

    await under("/shop", inner)({"type": "http", "root_path": root, "path": path}, None, None)
    assert paths == [seen]


# In one Serve config


def config_of(*settings: dict[str, Any], n_shards: int = 2, host: str = "127.0.0.1") -> dict[str, Any]:
    return tenants_config([(one, n_shards) for one in settings], host)


def test_several_tenants_are_applications_of_one_config(tmp_path: Path) -> None:
    for name in ("shop", "till"):
        text = yaml.safe_dump({"tenant": name, "state": "redis://h:1/0", "api_keys": "/keys.json"})
        (tmp_path / f"{name}.yaml").write_text(text)
    files = [str(tmp_path / f"{name}.yaml") for name in ("shop", "till")]
    made = CliRunner().invoke(app, ["config", *files, "--shards", "2", "--host", "0.0.0.0"], catch_exceptions=False)
    config = yaml.safe_load(made.stdout)
    check_keys(config)
    parsed = ServeDeploySchema.model_validate(config)
    assert [(a.name, a.route_prefix) for a in parsed.applications] == [
        ("raysys-shop", "/shop"),
        ("raysys-till", "/till"),
    ]
    for application, name in zip(config["applications"], ("shop", "till"), strict=True):
        assert application["args"]["tenant"] == name
        assert [d["name"] for d in application["deployments"]] == deployment_names(2, "tiered")
        assert served(**application["args"]).state == f"redis://h:1/0#{name}"


def test_one_tenant_alone_has_its_prefix_as_well() -> None:
    (application,) = config_of({"tenant": "shop"})["applications"]
    assert (application["name"], application["route_prefix"]) == ("raysys-shop", "/shop")
    (application,) = config_of({})["applications"]
    assert (application["name"], application["route_prefix"]) == ("raysys", "/")


@pytest.mark.parametrize(
    ("of_a", "of_b", "told"),
    [
        ({"tenant": None}, {}, "each needs a `tenant`"),
        ({"tenant": "b"}, {}, "two settings have the tenant 'b'"),
        ({"index_root": "/x/i"}, {"index_root": "/x/i"}, "'a' has index_root /x/i, where 'b' has index_root"),
        ({"index_root": "/x/i"}, {"index_root": "/x/i/inner"}, "where 'b' has index_root"),
        ({"index_root": "/x/i/"}, {"index_root": "/x/../x/i"}, "where 'b' has index_root"),
        ({"state": "/x/s.sqlite3"}, {"state": "/x/s.sqlite3"}, "'a' has state /x/s.sqlite3, where 'b' has state"),
        ({"impressions": {"folder": "/x/f"}}, {"impressions": {"folder": "/x/f"}}, "where 'b' has impressions.folder"),
        ({"index_root": "/x"}, {"impressions": {"folder": "/x/f"}}, "'a' has index_root /x, where 'b' has impressions"),
    ],
)
def test_two_that_would_share_anything_are_refused(of_a: dict[str, Any], of_b: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        config_of({"tenant": "a", **of_a}, {"tenant": "b", **of_b})


def test_a_link_to_the_folder_of_another_is_that_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with pytest.raises(ConfigError, match="where 'b' has index_root"):
        config_of(*({"tenant": n, "index_root": str(tmp_path / place)} for n, place in (("a", "real"), ("b", "link"))))


def test_one_redis_does_for_all_and_names_that_begin_alike_are_apart() -> None:
    assert (
        len(config_of(*({"tenant": name, "state": "redis://h:1/0"} for name in ("a", "a-b", "ab")))["applications"])
        == 3
    )


def test_each_is_closed_by_itself() -> None:
    closed = {"tenant": "a", "open": True}
    with pytest.raises(ConfigError, match="raysys keys create"):
        config_of(closed, {"tenant": "b"}, host="0.0.0.0")
    assert config_of(closed, {"tenant": "b", "api_keys": "/k.json"}, host="0.0.0.0")


@pytest.mark.parametrize("topology", ["tiered", "fused"])
def test_what_the_config_names_builds_the_application_of_each(shop: Shop, topology: str) -> None:
    for name in ("a", "b"):
        settings = served(tenant=name, index_root=str(shop.store(2).root), topology=topology)
        ingress = build(settings)._bound_deployment
        assert ingress.name == "gateway"
        assert ingress.init_args[0].tenant == name
        inner = [a._bound_deployment for a in ingress.init_args[1:] if hasattr(a, "_bound_deployment")]
        assert ["gateway", *(deployment.name for deployment in inner)] == deployment_names(2, topology)
        for deployment in inner:
            of = [a.tenant if isinstance(a, ServeSettings) else a for a in deployment.init_args]
            assert name in of, f"{deployment.name} does not know whose it is"
