"""Serve config files, generated from the typed settings and checked key by key.

Serve drops keys that it does not know without a word, and a dropped ``max_replicas`` means "never scales".
"""

import ipaddress
from collections.abc import Iterator, Mapping
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
    settings = parse(ServeSettings, dict(args), "serve settings")
    check_closed(settings, host)
    if has_front:
        args, host = {name: value for name, value in args.items() if name != "tls"}, "127.0.0.1"
    config = {
        "proxy_location": "EveryNode" if every_node else "HeadOnly",
        "http_options": {"host": host, "port": port, **_tls(None if has_front else settings.tls)},
        "applications": [
            {
                "name": APPLICATION,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": dict(args),
                "deployments": list(_deployments(settings, n_shards)),
            }
        ],
    }
    check_keys(config)
    return config


def _tls(tls: TlsSettings | None) -> dict[str, str]:
    return {} if tls is None else {"ssl_keyfile": tls.key, "ssl_certfile": tls.certificate}


def check_closed(settings: ServeSettings, host: str) -> None:
    """Raises ConfigError where others reach this host, no keys are asked for, and nobody said that this is meant."""
    if _is_loopback(host) or settings.api_keys is not None or settings.open:
        return
    raise ConfigError(
        f"whoever reaches {host} could read and delete everything. Make a key (`raysys keys create`) and name the file "
        "as `api_keys` in the settings; or, where something in front asks who they are, say `open: true` (--open)"
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
