"""cluster.yaml, as far as it can be checked without an AWS account: Ray's own checks, and ours."""

import logging
import re
import shlex
import subprocess
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from raysys.config import BuildSettings, ServeSettings, load, parse
from raysys.serving.local_head import FAST_PATH

ROOT = Path(__file__).parents[2]
TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "$HOME/.ray/auth_token"}
START = {"head": "head_start_ray_commands", "worker": "worker_start_ray_commands"}


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "cluster.yaml").read_text())


@pytest.fixture(scope="module")
def tiers() -> dict[str, dict[str, Any]]:
    """The deployments of the Serve config that belongs to this cluster, by name."""
    config = yaml.safe_load((ROOT / "serve_configs/cluster.yaml").read_text())
    return {deployment["name"]: deployment for deployment in config["applications"][0]["deployments"]}


def environment(command: str) -> dict[str, str]:
    """What the `export` at the head of a start command sets."""
    exported = shlex.split(command.partition("&&")[0])
    assert exported[0] == "export"
    return dict(word.split("=", 1) for word in exported[1:])


def all_commands(cluster: dict[str, Any]) -> list[str]:
    return [command for key, value in cluster.items() if key.endswith("_commands") for command in value]


def test_ray_accepts_it(cluster: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    prepared = prepare_config(cluster)
    validate_config(prepared)
    assert prepared["max_workers"] >= sum(t["max_workers"] for t in prepared["available_node_types"].values())


def test_it_leaves_nothing_to_defaults_that_differ(cluster: dict[str, Any]) -> None:
    # What is missing here comes from Ray's defaults: a nightly wheel, an open dashboard, an image of 2018.
    assert {"setup_commands", "head_setup_commands", *START.values()} <= cluster.keys()
    assert all("ImageId" in t["node_config"] for t in cluster["available_node_types"].values())
    assert all("SecurityGroupIds" in t["node_config"] for t in cluster["available_node_types"].values())
    assert cluster["provider"]["cache_stopped_nodes"] is False


@pytest.mark.parametrize("role", START)
def test_every_node_starts_ray_in_the_same_environment(cluster: dict[str, Any], role: str) -> None:
    command = cluster[START[role]][-1]
    assert environment(command).items() >= {**FAST_PATH, **TOKEN}.items()
    assert "ray start" in command.rpartition("&&")[2]


def test_head_and_workers_export_the_same(cluster: dict[str, Any]) -> None:
    head, worker = (environment(cluster[key][-1]) for key in START.values())
    assert head == worker


def test_the_dashboard_is_on_loopback(cluster: dict[str, Any]) -> None:
    assert "--dashboard-host=127.0.0.1" in cluster["head_start_ray_commands"][-1]


def test_ray_is_the_version_of_the_project_and_nothing_is_nightly(cluster: dict[str, Any]) -> None:
    pinned = next(line for line in requires("raysys") or [] if line.startswith("ray["))
    extras, version = re.fullmatch(r"ray\[([a-z,]+)\]==(\S+)", pinned).groups()
    installed = [match for command in all_commands(cluster) for match in re.findall(r"ray\[(.*?)\]==([\d.]+)", command)]
    assert [(set(names.split(",")), number) for names, number in installed] == [(set(extras.split(",")), version)]
    assert not any(word in command for command in all_commands(cluster) for word in ("nightly", "latest", ".dev0"))


def test_the_tokens_way_ends_where_ray_looks(cluster: dict[str, Any]) -> None:
    assert cluster["file_mounts"]["/home/ubuntu/.ray/auth_token"] == "~/.ray/auth_token"
    assert cluster["auth"]["ssh_user"] == "ubuntu"
    assert any("chmod 600 ~/.ray/auth_token" in command for command in cluster["setup_commands"])


def test_every_mounted_file_is_in_the_project(cluster: dict[str, Any]) -> None:
    local = [path for path in cluster["file_mounts"].values() if not path.startswith("~")]
    assert [path for path in local if not (ROOT / path).exists()] == []


def test_what_the_package_needs_to_build_is_mounted(cluster: dict[str, Any]) -> None:
    assert {"raysys", "pyproject.toml", "README.md", "LICENSE", "constraints.txt"} <= {*cluster["file_mounts"].values()}


def test_embedding_nodes_are_spot_and_start_from_zero(cluster: dict[str, Any]) -> None:
    node = cluster["available_node_types"]["embedding_node"]
    assert node["min_workers"] == 0
    assert node["resources"]["GPU"] >= 1
    assert node["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert 0 < cluster["idle_timeout_minutes"] <= 30


def test_what_serves_is_on_demand(cluster: dict[str, Any]) -> None:
    for name in ("head", "shard_node"):
        assert "InstanceMarketOptions" not in cluster["available_node_types"][name]["node_config"]
    assert cluster["available_node_types"]["shard_node"]["min_workers"] >= 1


def test_resources_are_whole_numbers(cluster: dict[str, Any]) -> None:
    amounts = [amount for t in cluster["available_node_types"].values() for amount in t["resources"].values()]
    assert all(type(amount) is int for amount in amounts)


def test_every_tier_is_kept_off_the_spot_nodes(cluster: dict[str, Any], tiers: dict[str, dict[str, Any]]) -> None:
    types = cluster["available_node_types"]
    for name, tier in tiers.items():
        marks = tier["ray_actor_options"]["resources"].keys()
        assert marks <= types["head" if name == "gateway" else "shard_node"]["resources"].keys()
        assert not marks <= types["embedding_node"]["resources"].keys()


def test_all_gateways_fit_on_the_head_where_their_store_is(
    cluster: dict[str, Any], tiers: dict[str, dict[str, Any]]
) -> None:
    head = cluster["available_node_types"]["head"]["resources"]
    actor = tiers["gateway"]["ray_actor_options"]
    largest = tiers["gateway"]["autoscaling_config"]["max_replicas"]
    assert actor["resources"]["gateway_node"] * largest <= head["gateway_node"]
    assert actor["num_cpus"] * largest <= head["CPU"]


@pytest.mark.parametrize("size", ["min", "max"])
def test_the_other_tiers_fit_on_the_shard_nodes(
    cluster: dict[str, Any], tiers: dict[str, dict[str, Any]], size: str
) -> None:
    node = cluster["available_node_types"]["shard_node"]
    inner = [tier for name, tier in tiers.items() if name != "gateway"]
    cpus = [t["autoscaling_config"][f"{size}_replicas"] * t["ray_actor_options"]["num_cpus"] for t in inner]
    assert sum(cpus) <= node[f"{size}_workers"] * node["resources"]["CPU"]


def test_both_copies_of_a_shard_are_on_different_nodes_from_the_start(
    cluster: dict[str, Any], tiers: dict[str, dict[str, Any]]
) -> None:
    nodes = cluster["available_node_types"]["shard_node"]["min_workers"]
    shards = [tier for name, tier in tiers.items() if name.startswith("shard-")]
    assert len(shards) == 4
    for shard in shards:
        copies = shard["autoscaling_config"]["min_replicas"]
        assert shard["max_replicas_per_node"] == 1
        assert 2 <= copies <= nodes


def test_every_node_reaches_what_the_service_shares(cluster: dict[str, Any]) -> None:
    settings = load(ServeSettings, ROOT / "serve_configs/cluster.settings.yaml")
    mounts = [command for command in cluster["initialization_commands"] if "mount -t nfs4" in command]
    assert len(mounts) == 1
    shared = mounts[0].split()[-1]
    assert Path(settings.index_root).is_relative_to(shared)
    assert settings.impressions.folder is not None
    assert Path(settings.impressions.folder).is_relative_to(shared)
    assert settings.api_keys is not None
    keys = Path(settings.api_keys).parent
    assert keys.is_relative_to(shared)
    assert any(f"install -d -m 700 -o ubuntu -g ubuntu {keys}" in c for c in cluster["initialization_commands"])
    assert settings.state.startswith("redis://")  # a file would be another one on each node
    assert any("project[redis]" in command for command in cluster["setup_commands"])


def test_the_commands_are_valid_shell(cluster: dict[str, Any]) -> None:
    for command in all_commands(cluster):
        subprocess.run(["bash", "-n", "-c", command], check=True)


def test_the_docs_name_every_value_to_replace(cluster: dict[str, Any]) -> None:
    wanted = set(re.findall(r"[\w-]*REPLACE_ME[\w-]*", yaml.safe_dump(cluster, width=10_000)))
    assert wanted
    docs = (ROOT / "docs/cluster.md").read_text()
    assert [value for value in wanted if value not in docs] == []


def test_the_build_settings_in_the_docs_are_valid_and_fit_the_service(
    cluster: dict[str, Any], tiers: dict[str, dict[str, Any]]
) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/cluster.md").read_text(), re.DOTALL)
    settings = parse(BuildSettings, yaml.safe_load(block), "docs/cluster.md")
    assert settings.index.shards == sum(name.startswith("shard-") for name in tiers)
    assert settings.index.root == load(ServeSettings, ROOT / "serve_configs/cluster.settings.yaml").index_root
    node = cluster["available_node_types"]["embedding_node"]
    wanted = settings.workers.encoders * settings.workers.gpus_per_encoder
    assert wanted <= node["max_workers"] * node["resources"]["GPU"]
