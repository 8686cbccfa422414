"""The log of a serving replica: a line of JSON a record, for machines to read and for strangers to see.

No line holds what a caller wrote. Messages of ours are made so; messages of other people's exceptions may quote any
value, so of an exception only its kind is told, and where it was raised.
"""

import logging
import sys
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime

import orjson

from raysys.serving import audit

CURRENT_ID: ContextVar[str | None] = ContextVar("request_id", default=None)  # of the request that is being answered


class JsonLines(logging.Formatter):
    """``time``, ``level``, ``logger``, ``message``; ``tenant``, ``request_id``, ``traceback`` where there is one."""

    def __init__(self, tenant: str | None = None) -> None:
        super().__init__()
        self._tenant = tenant

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage().encode(errors="backslashreplace").decode(),  # as of a path that is no UTF-8
        }
        if self._tenant is not None:
            line["tenant"] = self._tenant
        request_id = CURRENT_ID.get()
        if request_id is not None:
            line["request_id"] = request_id
        if record.exc_info is not None and record.exc_info[1] is not None:
            line["traceback"] = "".join(_traceback(record.exc_info[1])).rstrip()
        return orjson.dumps(line).decode()


def open_log(tenant: str | None = None) -> None:
    """Let the lines of ``raysys.*`` be seen: on the stderr of the process, unless that logger has a handler already.

    tenant: whose process this is; a replica is of one tenant.
    Not on ``sys.stderr``, for the reason in ``audit.open_log``; the lines of the audit log have their own form.
    """
    log = logging.getLogger("raysys")
    if log.level == logging.NOTSET:
        log.setLevel(logging.INFO)
    if not log.handlers:
        handler = logging.StreamHandler(sys.__stderr__)
        handler.setFormatter(JsonLines(tenant))
        handler.addFilter(lambda record: record.name != audit.log.name)
        log.addHandler(handler)


def _traceback(error: BaseException) -> Iterator[str]:
    """As Python prints it, what came first at the top, without the messages."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _traceback(before)
    yield from traceback.format_tb(error.__traceback__)
    yield f"{type(error).__module__}.{type(error).__qualname__}\n"
