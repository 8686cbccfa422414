"""People who ask and act at a steady pace, whether or not they are answered, and what became of each request."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
from kill_load import event

RATE_PER_S = 20.0
GIVE_UP_S = 10.0
KINDS = ("list", "search", "event", "list", "list", "search", "event", "list", "search", "list")
MARK = "zweitens"  # in each title of the second catalogue, and in none of the first


@dataclass(frozen=True)
class Sample:
    """One request. asked_s, took_s: monotonic and seconds. status: 0 = no answer.

    missing: the parts that the answer lacks. is_mixed: it has items of another snapshot than it says. detail: of an
    error, what it says.
    """

    kind: str
    asked_s: float
    took_s: float
    status: int
    coverage: float = 1.0
    missing: tuple[str, ...] = ()
    snapshot_id: str | None = None
    is_mixed: bool = False
    detail: str = ""

    @property
    def end_s(self) -> float:
        return self.asked_s + self.took_s

    @property
    def is_error(self) -> bool:
        return self.status != 200

    @property
    def is_whole(self) -> bool:
        return not (self.is_error or self.missing)


class SteadyLoad:
    """Half lists, three in ten searches for words never asked before, two in ten events; in a thread of its own.

    acknowledged: the events that were, id to user. marked: the snapshots whose titles have ``MARK``.
    """

    def __init__(self, url: str, name: str) -> None:
        self.acknowledged: dict[str, str] = {}
        self.marked: set[str] = set()
        self._url, self._name, self._samples = url, name, list[Sample]()
        self._waiting: dict[int, float] = {}  # since when
        self._done = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()

    def stop(self) -> None:
        """Returns when every request is answered or given up."""
        self._done.set()
        self._thread.join()

    def since(self, start_s: float) -> list[Sample]:
        """Those that ended after this time, in the order in which they ended."""
        return [sample for sample in list(self._samples) if sample.end_s >= start_s]

    def longest_wait_s(self) -> float:
        """Of those who are not answered yet."""
        now_s = time.monotonic()
        return now_s - min(list(self._waiting.values()), default=now_s)

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=20)
        async with httpx.AsyncClient(base_url=self._url, timeout=GIVE_UP_S, limits=limits) as http:
            start_s, number = time.monotonic(), 0
            async with asyncio.TaskGroup() as group:
                while not self._done.is_set():
                    group.create_task(self._ask_and_wait(http, number))
                    number += 1
                    await asyncio.sleep(max(start_s + number / RATE_PER_S - time.monotonic(), 0.0))

    async def _ask_and_wait(self, http: httpx.AsyncClient, number: int) -> None:
        self._waiting[number] = time.monotonic()
        try:
            await self._ask(http, number)
        finally:
            del self._waiting[number]

    async def _ask(self, http: httpx.AsyncClient, number: int) -> None:
        kind, start_s = KINDS[number % len(KINDS)], time.monotonic()
        path, body = self._request(kind, number)
        try:
            answer = await http.post(path, json=body)
        except httpx.TransportError as error:
            self._samples.append(Sample(kind, start_s, time.monotonic() - start_s, 0, detail=repr(error)))
            return
        took_s = time.monotonic() - start_s
        if answer.status_code != 200:
            self._samples.append(Sample(kind, start_s, took_s, answer.status_code, detail=answer.text))
            return
        content = answer.json()
        said = () if kind == "event" else self._said(content)
        self._samples.append(Sample(kind, start_s, took_s, answer.status_code, *said))
        if kind == "event" and content["accepted"] + content["duplicates"] == 1:
            self.acknowledged[body["events"][0]["event_id"]] = body["events"][0]["user_id"]

    def _request(self, kind: str, number: int) -> tuple[str, dict[str, Any]]:
        if kind == "event":
            return "/v1/events", {"events": [event(f"{self._name}-{number}", number)]}
        if kind == "search":
            return "/v1/search", {"query": f"words {self._name} {number}", "limit": 10}
        return "/v1/recommendations", {"user_id": f"u{number % 20}", "limit": 10}

    def _said(self, content: dict[str, Any]) -> Iterator[Any]:
        marks = {MARK in item["metadata"]["title"] for item in content["items"]}
        yield from (content["coverage"], tuple(content["degraded"]), content["snapshot_id"])
        yield bool(marks) and marks != {content["snapshot_id"] in self.marked}


@dataclass(frozen=True)
class Row:
    """What a fault did. while_s: it lasted from the fault until all was replaced and answers lacked nothing.

    partial: answers that lack a part, be it the encoder; n_incomplete: those that lack a shard.
    recovery_s: from the fault to the end of the last request that lacked something. replaced_s: from the fault until
    Serve had the new replicas, None = nothing was to be replaced. later: errors in the seconds
    after. latest_s: the longest that anybody waited for a list. details: what the first errors said.
    """

    fault: str
    n: int
    errors: int
    statuses: dict[int, int]
    partial: int
    n_incomplete: int
    lowest_coverage: float
    while_s: float
    recovery_s: float
    replaced_s: float | None
    later: int
    latest_s: float
    mixed: int
    details: tuple[str, ...]

    @property
    def share(self) -> float:
        return self.errors / max(self.n, 1)

    def __str__(self) -> str:
        replaced = "-" if self.replaced_s is None else f"{self.replaced_s:.1f} s"
        return (
            f"| {self.fault} | {self.errors} of {self.n} ({self.share:.1%}) {self.statuses or ''} | {self.partial}"
            f" (coverage {self.lowest_coverage:.2f}) | {self.recovery_s:.1f} s | {replaced} | {self.latest_s:.2f} s |"
            f" {self.later} |"
        )


def row(fault: str, samples: Sequence[Sample], start_s: float, end_s: float, replaced_s: float | None) -> Row:
    """The figures of a fault at ``start_s`` that was over at ``end_s``; what ended after that is later."""
    during = [sample for sample in samples if sample.end_s <= end_s]
    failed = [sample.status for sample in during if sample.is_error]
    partial = [sample for sample in during if not sample.is_error and sample.missing]
    return Row(
        fault,
        len(during),
        len(failed),
        {status: failed.count(status) for status in sorted(set(failed))},
        len(partial),
        sum(sample.coverage < 1 for sample in during),
        min((sample.coverage for sample in during), default=1.0),
        end_s - start_s,
        max((sample.end_s - start_s for sample in samples if not sample.is_whole), default=0.0),
        replaced_s,
        sum(sample.is_error for sample in samples if sample.end_s > end_s),
        max((sample.took_s for sample in samples if sample.kind != "event"), default=0.0),
        sum(sample.is_mixed for sample in samples),
        tuple(sample.detail for sample in samples if sample.is_error)[:3],
    )
