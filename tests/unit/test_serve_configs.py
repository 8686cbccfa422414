"""The Serve config files: generated, complete, and free of keys that Serve would drop without a word."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema
from typer.testing import CliRunner

from raysys.cli import app
from raysys.config import ServeSettings, load
from raysys.errors import ConfigError
from raysys.serving.app import deployment_names, options
from raysys.serving.configs import check_keys, serve_config

FOLDER = Path(__file__).parents[2] / "serve_configs"
# How each file was made; the same command stands in its settings file.
MADE_BY = {
    "local": "raysys config serve_configs/local.settings.yaml --shards 1",
    "cluster": "raysys config serve_configs/cluster.settings.yaml --shards 4 --host 0.0.0.0",
}
# Dictionaries whose keys are not Serve's: ours, or checked by somebody else.
OTHERS = {"args", "resources", "runtime_env", "user_config", "backpressure_config"}
Path_ = tuple[str | int, ...]


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / f"{name}.yaml").read_text())


def key_paths(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """The way to every key whose name is Serve's."""
    if isinstance(value, list):
        for number, inner in enumerate(value):
            yield from key_paths(inner, (*path, number))
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield (*path, key)
            if key not in OTHERS:
                yield from key_paths(inner, (*path, key))


def renamed(config: dict[str, Any], path: Path_, name: str) -> dict[str, Any]:
    """A copy of the config with one key spelt differently."""
    changed = copy.deepcopy(config)
    inner: Any = changed
    for step in path[:-1]:
        inner = inner[step]
    inner[name] = inner.pop(path[-1])
    return changed


@pytest.mark.parametrize("name", MADE_BY)
def test_the_file_is_what_its_settings_give(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(FOLDER.parent)
    made = CliRunner().invoke(app, MADE_BY[name].split()[1:], catch_exceptions=False)
    assert made.stdout == (FOLDER / f"{name}.yaml").read_text(), f"run {MADE_BY[name]} > serve_configs/{name}.yaml"
    assert f"#   {MADE_BY[name]} > serve_configs/{name}.yaml\n" in (FOLDER / f"{name}.settings.yaml").read_text()


@pytest.mark.parametrize("name", MADE_BY)
def test_serve_accepts_the_file_and_drops_nothing(name: str) -> None:
    config = read(name)
    check_keys(config)
    ServeDeploySchema.model_validate(config)


@pytest.mark.parametrize("name", MADE_BY)
def test_the_deployments_are_those_of_the_application(name: str) -> None:
    deployments = read(name)["applications"][0]["deployments"]
    assert [d["name"] for d in deployments] == deployment_names({"local": 1, "cluster": 4}[name], "tiered")


@pytest.mark.parametrize("name", MADE_BY)
def test_actor_options_are_complete_because_the_file_replaces_those_of_the_code(name: str) -> None:
    settings = load(ServeSettings, FOLDER / f"{name}.settings.yaml")
    tiers = {"gateway": settings.gateway, "encoder": settings.encoder_tier, "ranker": settings.ranker_tier}
    for deployment in read(name)["applications"][0]["deployments"]:
        tier = tiers.get(deployment["name"], settings.shard_tier)
        assert options(tier).items() <= deployment.items()


@pytest.mark.parametrize("name", MADE_BY)
def test_a_letter_missing_in_any_key_is_caught(name: str) -> None:
    config = read(name)
    paths = [path for path in key_paths(config) if isinstance(path[-1], str)]
    assert len(paths) > 50
    for path in paths:
        typo = path[-1][:-1]
        with pytest.raises(ConfigError, match=typo):
            check_keys(renamed(config, path, typo))


@pytest.mark.parametrize(
    ("path", "typo"),
    [
        (("proxy_location",), "proxy_locations"),
        (("http_options", "port"), "prot"),
        (("applications", 0, "route_prefix"), "route_prefx"),
        (("applications", 0, "deployments", 0, "max_ongoing_requests"), "max_ongoing_request"),
        (("applications", 0, "deployments", 0, "max_ongoing_requests"), "max_concurrent_queries"),
        (("applications", 0, "deployments", 1, "autoscaling_config", "max_replicas"), "max_replica"),
        (
            ("applications", 0, "deployments", 1, "autoscaling_config", "target_ongoing_requests"),
            "target_num_ongoing_requests_per_replica",
        ),
        (("applications", 0, "deployments", 3, "ray_actor_options", "num_cpus"), "num_cpu"),
    ],
)
def test_typos_that_people_make_are_named_with_their_place(path: Path_, typo: str) -> None:
    with pytest.raises(ConfigError, match=typo) as caught:
        check_keys(renamed(read("cluster"), path, typo))
    if path[0] == "applications":
        assert "raysys." in str(caught.value)


def test_every_typo_is_named_at_once() -> None:
    config = renamed(read("local"), ("proxy_location",), "proxy_locatoin")
    with pytest.raises(ConfigError, match=r"proxy_locatoin, http_options\.prot"):
        check_keys(renamed(config, ("http_options", "port"), "prot"))


def test_serve_itself_refuses_a_typo_in_the_backpressure_config() -> None:
    path = ("applications", 0, "deployments", 0, "backpressure_config", "status_code")
    with pytest.raises(ValidationError):
        ServeDeploySchema.model_validate(renamed(read("cluster"), path, "status"))


def test_a_typo_in_the_settings_is_refused_before_anything_is_written() -> None:
    with pytest.raises(ConfigError, match=r"shard_tier\.min_replica"):
        serve_config({"shard_tier": {"min_replica": 2}}, n_shards=1)


def test_a_fused_application_has_one_deployment() -> None:
    config = serve_config({"topology": "fused"}, n_shards=3)
    assert [d["name"] for d in config["applications"][0]["deployments"]] == ["gateway"]


def test_replicas_a_node_are_limited_only_where_asked() -> None:
    config = serve_config({"shard_tier": {"max_replicas_per_node": 1}}, n_shards=1)
    gateway, _, _, shard = config["applications"][0]["deployments"]
    assert shard["max_replicas_per_node"] == 1
    assert "max_replicas_per_node" not in gateway


def test_a_proxy_on_every_node_is_asked_for() -> None:
    assert serve_config({}, 1)["proxy_location"] == "HeadOnly"
    assert serve_config({}, 1, every_node=True)["proxy_location"] == "EveryNode"


def test_only_the_cluster_listens_beyond_its_own_machine() -> None:
    assert read("local")["http_options"] == {"host": "127.0.0.1", "port": 8000}
    assert read("cluster")["http_options"] == {"host": "0.0.0.0", "port": 8000}


def test_a_config_that_would_be_open_to_others_is_not_made() -> None:
    words = ["config", "--shards", "1", "--host", "0.0.0.0"]
    asked = CliRunner().invoke(app, words)
    assert isinstance(asked.exception, ConfigError)
    assert "api_keys" in str(asked.exception)
    assert asked.stdout == ""
    meant = yaml.safe_load(CliRunner().invoke(app, [*words, "--open"], catch_exceptions=False).stdout)
    assert meant["applications"][0]["args"]["open"] is True


def test_the_cluster_asks_for_keys() -> None:
    args = read("cluster")["applications"][0]["args"]
    assert args["api_keys"] == "/mnt/raysys/keys/keys.json"
    assert "open" not in args
