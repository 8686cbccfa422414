"""The audit log: who took out what, who asked for everything of a person, and who changed what is published.

JSON, one line an act, never a key.
"""

import logging
import sys
from collections.abc import Sequence
from datetime import UTC, datetime

import orjson
from pydantic import BaseModel
from starlette.types import Scope as Connection

from raysys.access import Caller, Key

ACTS = ("verify", "activate", "rollback", "canary", "promote", "withdraw", "gc")
SNAPSHOTS = frozenset(f"/v1/admin/snapshots:{act}" for act in ACTS)
# What cannot be undone, what gives a whole person away, and what concerns everybody.
AUDITED = SNAPSHOTS | {"/v1/items:delete", "/v1/users:edit", "/v1/users:export", "/v1/users:delete"}

log = logging.getLogger("raysys.audit")


def open_log() -> None:
    """Let the lines be seen: on the stderr of the process, unless this logger has a handler already.

    Not on ``sys.stderr``: Serve puts a logger there that keeps what it is given in memory until there is more of it.
    """
    log.setLevel(logging.INFO)
    if not log.handlers:
        handler = logging.StreamHandler(sys.__stderr__)
        handler.setFormatter(logging.Formatter("%(message)s"))
        log.addHandler(handler)


def record(request: Connection, status: int, tenant: str | None = None) -> None:
    """One line for a request to a route of ``AUDITED``, also for one that was refused. tenant: whose gateway it is.

    Of snapshots also what was asked; not of people, as an erased person would live on here.
    """
    key: Caller | None = request.get("raysys.key")
    asked: BaseModel | None = request.get("raysys.asked") if request["path"] in SNAPSHOTS else None
    _write(
        logging.INFO,
        tenant,
        act=request["path"],
        status=status,
        key=None if key is None else key.name,
        key_id=None if key is None else key.id,
        request_id=request["raysys.request_id"],
        **({} if asked is None else {"asked": asked.model_dump()}),
    )


def record_keys(keys: Sequence[Key], tenant: str | None = None) -> None:
    """One line for keys that are in use from now on."""
    _write(
        logging.INFO,
        tenant,
        act="keys",
        in_use=[{"key": key.name, "key_id": key.id, "scopes": sorted(key.scopes)} for key in keys],
    )


def record_refusal(why: str, tenant: str | None = None) -> None:
    """One line for a newer file of keys that cannot be used: those in use stay."""
    _write(logging.ERROR, tenant, act="keys", refused=why)


def _write(level: int, tenant: str | None, **what: object) -> None:
    whose = {} if tenant is None else {"tenant": tenant}
    log.log(level, orjson.dumps({"audit": datetime.now(UTC), **whose, **what}).decode())
