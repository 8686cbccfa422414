"""Deploying by Serve's declarative path: the same as `serve deploy`, with a wait and a readable failure."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx

from raysys.errors import Unavailable
from raysys.serving.configs import APPLICATION, check_keys

POLL_S = 0.25
MOST_CHARS = 3_000  # of what Serve says, the end
FAILED = {"DEPLOY_FAILED", "UNHEALTHY"}


def deploy(dashboard_url: str, token: str, config: dict[str, Any], timeout_s: float = 180.0) -> None:
    """Hand the config to the head and wait until its applications run. Raises Unavailable that says what failed."""
    check_keys(config)
    with _client(dashboard_url, token) as client:
        answer = client.put("/api/serve/applications/", json=config)
        if answer.is_error:
            said = answer.text[-MOST_CHARS:]
            raise Unavailable(f"Serve did not take the application ({answer.status_code}): {said}")
        for application in config["applications"]:
            _wait(partial(_state, client, application["name"]), timeout_s)


def replica_pids(dashboard_url: str, token: str) -> dict[str, list[int]]:
    """The process ids of the running replicas of each deployment."""
    with _client(dashboard_url, token) as client:
        deployments = _state(client)["deployments"]
    return {
        name: sorted(replica["pid"] for replica in deployment["replicas"] if replica["state"] == "RUNNING")
        for name, deployment in deployments.items()
    }


def shut_down(dashboard_url: str, token: str) -> None:
    """Remove all applications and let go of the HTTP port."""
    with _client(dashboard_url, token) as client:
        client.delete("/api/serve/applications/").raise_for_status()


def _client(dashboard_url: str, token: str) -> httpx.Client:
    return httpx.Client(base_url=dashboard_url, headers={"Authorization": f"Bearer {token}"}, timeout=60)


def _state(client: httpx.Client, name: str = APPLICATION) -> dict[str, Any]:
    applications = client.get("/api/serve/applications/").raise_for_status().json()["applications"]
    state: dict[str, Any] = applications.get(name, {"status": "NOT_STARTED", "message": ""})
    return state


def _wait(state: Callable[[], dict[str, Any]], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while (now := state())["status"] != "RUNNING":
        if now["status"] in FAILED:
            raise Unavailable(f"the application did not start: {_why(now)}")
        if time.monotonic() > deadline:
            raise Unavailable(f"the application is {now['status']} after {timeout_s:.0f} s: {_why(now)}")
        time.sleep(POLL_S)


def _why(state: dict[str, Any]) -> str:
    """The message of the application and of each deployment that is not healthy."""
    parts = [state.get("message", "")]
    for name, deployment in state.get("deployments", {}).items():
        if deployment.get("status") != "HEALTHY":
            parts.append(f"{name} is {deployment.get('status')}: {deployment.get('message', '')}")
    return "\n".join(part for part in parts if part)
