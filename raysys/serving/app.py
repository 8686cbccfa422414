"""The Serve application, built from one typed config by one function. ``build`` is what config files name."""

import os
from typing import Any

from ray import serve
from ray.serve import Application

from raysys.config import ServeSettings, TierSettings
from raysys.errors import ConfigError
from raysys.index.manifest import Manifest
from raysys.index.store import SnapshotStore
from raysys.serving.deployments import Encoder, Gateway, Ranker, ShardReplica
from raysys.serving.fused import FusedGateway

IMPORT_PATH = "raysys.serving.app:build"
HEALTH_CHECK_PERIOD_S = 2.0
HEALTH_CHECK_TIMEOUT_S = 10.0
FOLLOW = {"snapshot": "current"}  # the published one; another id pins that snapshot. Never in args: those restart.
BACKPRESSURE = {"status_code": 429, "retry_after_s": 1.0}


def shard_name(number: int) -> str:
    """The name of the deployment that holds this shard. Replicas are interchangeable, so a shard is a deployment."""
    return f"shard-{number:02d}"


def deployment_names(n_shards: int, topology: str) -> list[str]:
    """The names of all deployments of the application."""
    if topology == "fused":
        return ["gateway"]
    return ["gateway", "encoder", "ranker", *(shard_name(number) for number in range(n_shards))]


def options(tier: TierSettings) -> dict[str, Any]:
    """What one tier asks of Serve: size, limits, health checks, resources."""
    spread = tier.max_replicas_per_node
    return {
        **({} if spread is None else {"max_replicas_per_node": spread}),
        "autoscaling_config": {
            "min_replicas": tier.min_replicas,
            "max_replicas": tier.max_replicas,
            "target_ongoing_requests": tier.target_ongoing_requests,
            "upscale_delay_s": tier.upscale_delay_s,
            "downscale_delay_s": tier.downscale_delay_s,
            "look_back_period_s": tier.look_back_period_s,
        },
        "max_ongoing_requests": tier.max_ongoing_requests,
        "max_queued_requests": tier.max_queued_requests,
        "logging_config": {"enable_access_log": False},  # a line a call and tier would cost more than the call
        "health_check_period_s": HEALTH_CHECK_PERIOD_S,
        "health_check_timeout_s": HEALTH_CHECK_TIMEOUT_S,
        "ray_actor_options": actor_options(tier),
    }


def actor_options(tier: TierSettings) -> dict[str, Any]:
    """Resources of a replica, and one OpenMP pool of the size it may use."""
    return {
        "num_cpus": tier.num_cpus,
        "num_gpus": tier.num_gpus,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(tier.threads), "TOKENIZERS_PARALLELISM": "false"}},
        **({"resources": dict(tier.resources)} if tier.resources else {}),
    }


def build(args: ServeSettings) -> Application:
    """The application over the snapshot published under ``index_root``; Serve checks ``args`` against the annotation.

    The number of shards is that of that snapshot. Raises SnapshotError when nothing is published, ConfigError where the
    proxy in front would answer in plain text though ``tls`` is set.
    """
    check_proxy(args)
    store = SnapshotStore(args.index_root, args.snapshot_public_keys)
    manifest = store.manifest(store.current_id())
    return _fused(args) if args.topology == "fused" else _tiered(args, manifest)


def check_proxy(settings: ServeSettings) -> None:
    """Serve's own proxy takes the certificate from ``http_options``; HAProxy passes over it. Raises ConfigError."""
    if settings.tls is not None and os.environ.get("RAY_SERVE_ENABLE_HA_PROXY") == "1":
        raise ConfigError(
            "`tls` is set, and HAProxy, as Serve configures it, would answer in plain text. Start Ray on every node "
            "with RAY_SERVE_ENABLE_HA_PROXY=0, or take `tls` away and end TLS in front (docs/security.md)"
        )


def _tiered(settings: ServeSettings, manifest: Manifest) -> Application:
    n_shards = len(manifest.shards)
    encoder = _deploy(Encoder, "encoder", settings.encoder_tier, user_config=FOLLOW)
    ranker = _deploy(Ranker, "ranker", settings.ranker_tier)
    shards = [_deploy(ShardReplica, shard_name(n), settings.shard_tier, user_config=FOLLOW) for n in range(n_shards)]
    return _deploy(Gateway, "gateway", settings.gateway, user_config=FOLLOW, backpressure_config=BACKPRESSURE).bind(
        settings,
        encoder.bind(
            settings.encoder,
            settings.encoder_tier.threads,
            settings.index_root,
            settings.snapshot_public_keys,
            settings.tenant,
        ),
        ranker.bind(settings.ranking, settings.index_root, settings.tenant),
        *(shard.bind(number, n_shards, settings) for number, shard in enumerate(shards)),
    )


def _fused(settings: ServeSettings) -> Application:
    gateway = _deploy(FusedGateway, "gateway", settings.gateway, user_config=FOLLOW, backpressure_config=BACKPRESSURE)
    return gateway.bind(settings, settings.encoder)


def _deploy(kind: type, name: str, tier: TierSettings, **more: Any) -> serve.Deployment:
    return serve.deployment(kind).options(name=name, **options(tier), **more)
