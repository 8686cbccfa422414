"""Serve config files, generated from the typed settings and checked key by key.

Serve drops keys that it does not know without a word, and a dropped ``max_replicas`` means "never scales".
"""

import ipaddress
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

from pydantic import BaseModel
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import (
    DeploymentSchema,
    HTTPOptionsSchema,
    LoggingConfig,
    RayActorOptionsSchema,
    ServeApplicationSchema,
    ServeDeploySchema,
)

from raysys.config import ServeSettings, TlsSettings, parse
from raysys.errors import ConfigError
from raysys.serving.app import BACKPRESSURE, FOLLOW, IMPORT_PATH, options, shard_name

APPLICATION = "raysys"


def serve_config(
    args: Mapping[str, Any],
    n_shards: int,
    host: str = "127.0.0.1",
    port: int = 8000,
    every_node: bool = False,
    has_front: bool = False,
) -> dict[str, Any]:
    """The whole config of one application. ``args`` are the settings as in a file: only what differs from defaults.

    ``every_node``: a proxy on every node that runs a replica, or on the head alone. ``has_front``: ``proxy.set_front``
    has told the proxy where to listen and with which certificate; all else of Serve stays on loopback. Raises
    ConfigError, also that of ``check_closed``.
    """
    return tenants_config([(args, n_shards)], host, port, every_node, has_front)


def tenants_config(
    applications: Sequence[tuple[Mapping[str, Any], int]],
    host: str = "127.0.0.1",
    port: int = 8000,
    every_node: bool = False,
    has_front: bool = False,
) -> dict[str, Any]:
    """The whole config of several tenants, each with its settings and its number of shards; else as ``serve_config``.

    Raises ConfigError also for two that would share anything, or that want two certificates of one proxy.
    """
    settings = [parse(ServeSettings, dict(args), "serve settings") for args, _ in applications]
    for one in settings:
        check_closed(one, host)
    check_apart(settings)
    tls = _of_all(settings)
    if has_front:
        applications = [(_without_tls(args), n_shards) for args, n_shards in applications]
        host, tls = "127.0.0.1", None
    config = {
        "proxy_location": "EveryNode" if every_node else "HeadOnly",
        "http_options": {"host": host, "port": port, **_tls(tls)},
        "applications": [
            {
                "name": application_name(one.tenant),
                "route_prefix": route_prefix(one.tenant),
                "import_path": IMPORT_PATH,
                "args": dict(args),
                "deployments": list(_deployments(one, n_shards)),
            }
            for one, (args, n_shards) in zip(settings, applications, strict=True)
        ],
    }
    check_keys(config)
    return config


def _of_all(settings: Sequence[ServeSettings]) -> TlsSettings | None:
    """What the one proxy of them all answers with. Raises ConfigError where they do not agree."""
    wanted = {None if one.tls is None else (one.tls.certificate, one.tls.key) for one in settings}
    if len(wanted) > 1:
        raise ConfigError("one proxy answers for all of these settings: give all the same `tls`, or none")
    return settings[0].tls


def _without_tls(args: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in args.items() if name != "tls"}


def _tls(tls: TlsSettings | None) -> dict[str, str]:
    return {} if tls is None else {"ssl_keyfile": tls.key, "ssl_certfile": tls.certificate}


def application_name(tenant: str | None) -> str:
    """Of the application in Serve. Its deployments are known by it, so those of tenants never meet."""
    return APPLICATION if tenant is None else f"{APPLICATION}-{tenant}"


def route_prefix(tenant: str | None) -> str:
    """Under which path the API of a tenant is."""
    return "/" if tenant is None else f"/{tenant}"


def check_apart(settings: Sequence[ServeSettings]) -> None:
    """Raises ConfigError where several are not all of tenants of their own, or two would share files."""
    if len(settings) > 1 and any(one.tenant is None for one in settings):
        raise ConfigError("of several settings each needs a `tenant`: it names its application and its route prefix")
    for one, other in combinations(settings, 2):
        if one.tenant == other.tenant:
            raise ConfigError(f"two settings have the tenant {one.tenant!r}")
        for name, place in _places(one).items():
            taken = [its_name for its_name, its_place in _places(other).items() if _meet(place, its_place)]
            if taken:
                raise ConfigError(
                    f"{one.tenant!r} has {name} {place}, where {other.tenant!r} has {taken[0]}: give each its own"
                )


def _places(settings: ServeSettings) -> dict[str, str]:
    """What only one tenant may use. In a Redis each has a namespace already."""
    named = {
        "index_root": settings.index_root,
        "state": settings.state,
        "impressions.folder": settings.impressions.folder,
    }
    return {name: _without_links(place) for name, place in named.items() if place is not None}


def _without_links(place: str) -> str:
    return place if "://" in place else os.path.realpath(place)


def _meet(place: str, other: str) -> bool:
    """Whether they are one, or one is within the other."""
    return f"{place}/".startswith(f"{other}/") or f"{other}/".startswith(f"{place}/")


def check_closed(settings: ServeSettings, host: str) -> None:
    """Raises ConfigError where others reach this host, no keys are asked for, and nobody said that this is meant."""
    if _is_loopback(host) or settings.asks_who or settings.open:
        return
    raise ConfigError(
        f"whoever reaches {host} could read and delete everything. Make a key (`raysys keys create`) and name the file "
        "as `api_keys` in the settings, or take tokens (`jwt`); or, where something in front asks who they are, say "
        "`open: true` (--open)"
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _deployments(settings: ServeSettings, n_shards: int) -> Iterator[dict[str, Any]]:
    # Copies, because a YAML writer turns one object in two places into an anchor and an alias.
    backpressure = {"backpressure_config": dict(BACKPRESSURE)}
    yield {"name": "gateway", **options(settings.gateway), "user_config": dict(FOLLOW), **backpressure}
    if settings.topology == "fused":
        return
    yield {"name": "encoder", **options(settings.encoder_tier), "user_config": dict(FOLLOW)}
    yield {"name": "ranker", **options(settings.ranker_tier)}
    for number in range(n_shards):
        yield {"name": shard_name(number), **options(settings.shard_tier), "user_config": dict(FOLLOW)}


def check_keys(config: Mapping[str, Any]) -> None:
    """Raises ConfigError that names every key of a Serve config file that Serve would silently ignore."""
    unknown = list(_unknown_keys(config))
    if unknown:
        raise ConfigError("Serve would ignore these keys: " + ", ".join(unknown))


def _unknown_keys(config: Mapping[str, Any]) -> Iterator[str]:
    yield from _not_in(ServeDeploySchema, config, "")
    yield from _not_in(HTTPOptionsSchema, config.get("http_options", {}), "http_options.")
    for application in config.get("applications", []):
        path = f"{application.get('name')}."
        yield from _not_in(ServeApplicationSchema, application, path)
        for deployment in application.get("deployments", []):
            inner = f"{path}{deployment.get('name')}."
            yield from _not_in(DeploymentSchema, deployment, inner)
            yield from _not_in(AutoscalingConfig, deployment.get("autoscaling_config", {}), inner)
            yield from _not_in(LoggingConfig, deployment.get("logging_config", {}), inner)
            yield from _not_in(RayActorOptionsSchema, deployment.get("ray_actor_options", {}), inner)


def _not_in(schema: type[BaseModel], given: Mapping[str, Any], path: str) -> Iterator[str]:
    return (f"{path}{key}" for key in given if key not in schema.model_fields)
