"""What `make bench` is asked for: figures of its JSON files, each with its bar, and which of them are reached."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from raysys.config import ServeSettings

NAMES = ("row", "name", "kind", "topology", "what", "dataset", "teacher")  # what a member of a list is called by
MAY_LOSE = 0.001  # of an accuracy that is asked to be as stored: another processor rounds otherwise


@dataclass(frozen=True)
class Bar:
    """A figure of ``STEP.json`` that is to be at least, or at most, so much; neither = as stored, or higher.

    path: the names on the way to it; * = all that are there, of which the worst counts.
    """

    what: str
    step: str
    path: str
    least: float | None = None
    most: float | None = None

    def figure(self, found: Any) -> float | None:
        """The worst of those that the path leads to; None = there is none."""
        values = [value for value in at(found, self.path.split(" / ")) if value is not None]
        if not values:
            return None
        return min(values) if self.most is None else max(values)


@dataclass(frozen=True)
class Judged:
    """A bar, and what came of it. is_new: it was measured now and not taken from what is stored."""

    bar: Bar
    least: float | None
    measured: float | None
    is_new: bool

    @property
    def asked(self) -> str:
        if self.bar.most is not None:
            return f"<= {self.bar.most:g}"
        return "" if self.least is None else f">= {round(self.least, 4):g}"

    @property
    def source(self) -> str:
        return "this run" if self.is_new else "stored"

    @property
    def is_met(self) -> bool | None:
        """None where nothing was measured."""
        if self.measured is None:
            return None
        if self.bar.most is not None:
            return self.measured <= self.bar.most
        return self.least is None or self.measured >= self.least


def judged(bar: Bar, stored: Any, measured: Any) -> Judged:
    """By what was measured now, or else by what is stored."""
    before, now = bar.figure(stored), bar.figure(measured)
    least = bar.least
    if least is None and bar.most is None and before is not None:
        least = before - MAY_LOSE
    return Judged(bar, least, before if now is None else now, now is not None)


def at(found: Any, path: list[str]) -> Iterator[Any]:
    """Every value that the path leads to."""
    if not path:
        yield found
        return
    for name, value in members(found):
        if path[0] in ("*", name):
            yield from at(value, path[1:])


def members(found: Any) -> Iterator[tuple[str, Any]]:
    """What is in an object or a list, by its name."""
    if isinstance(found, Mapping):
        yield from found.items()
    elif isinstance(found, list):
        yield from ((called(value, number), value) for number, value in enumerate(found))


def called(value: Any, number: int) -> str:
    named = [str(value[name]) for name in (*NAMES, "clients") if isinstance(value, Mapping) and name in value]
    return " ".join(named) or str(number)


def _serving() -> Iterator[Bar]:
    ratio, p99 = "sides / * / last_over_this / median", "sides / * / last_over_this_p99 / median"
    for layout, texts, histories in (
        ("tiered", "text query", "user history over the peers' texts"),
        ("one process a core", "text query, fused, one a core", "user history over the peers' texts, one a core"),
    ):
        yield Bar(f"texts/s, 32 clients, over both peers, {layout}", "serving", f"rows / {texts} 32 / {ratio}", 5)
        yield Bar(f"their p99, over both peers', {layout}", "serving", f"rows / {texts} 32 / {p99}", most=1)
        yield Bar(f"histories/s over the peers' texts/s, {layout}", "serving", f"rows / {histories} 32 / {ratio}", 12)
    yield Bar("a lone text, p50 over the peers', tiered", "serving", f"rows / text query, alone 1 / {ratio}", most=1.1)
    for layout, row in (("tiered", ""), ("one process a core", ", one a core")):
        path = f"rows / user history over no-op{row} 1 / {ratio}"
        yield Bar(f"a lone history, p50 over the no-op's, {layout}", "serving", path, most=8)
    for what in ("user history", "text query"):
        path = f"rows / {what}, fused over tiered 1 / {ratio}"
        yield Bar(f"a lone {what}, p50 of fused over tiered", "serving", path, most=0.5)


def _index() -> Iterator[Bar]:
    for n, vectors in (("100000", "100,000"), ("1000000", "1,000,000")):
        run = f"runs / {n}"
        for kind in ("ivf_sq8", "ivf_rabitq"):
            path = f"{run} / rows / {kind}"
            yield Bar(
                f"{vectors} vectors, {kind}, queries/s over hnswlib", "index", f"{path} / over_hnswlib / median", 1
            )
            yield Bar("its recall@10", "index", f"{path} / recall@10", 0.95)
        yield Bar(f"{vectors} vectors, recall@100 behind filters", "index", f"{run} / filtered / * / recall@100", 0.95)


def _overload() -> Iterator[Bar]:
    for layout, name in (("tiered", "tiered"), ("fused-per-core", "one process a core")):
        row, deadline_ms = f"rows / {layout}", ServeSettings().deadline_s * 1e3
        yield Bar(f"twice the peak, answers over the peak's, {name}", "overload", f"{row} / goodput", 0.9)
        yield Bar("their p99, ms", "overload", f"{row} / measured / p99_ms", most=deadline_ms)
        yield Bar("failed", "overload", f"{row} / n_failed", most=0)
        yield Bar("memory after over before", "overload", f"{row} / memory_over_before", most=1.05)


TEACHER = "sentence-transformers/all-MiniLM-L6-v2"
BARS = (
    *_serving(),
    Bar("the job's texts/s over the loop's", "embedding", "rows / without start-up, texts/s / ratio / median", 1.8),
    Bar("cosine to the loop's vectors", "embedding", "min_cosine", 0.999),
    Bar("the same in int8", "embedding", "rows / int8, without start-up, texts/s / ratio / median", 2.3),
    Bar("the student over MiniLM, texts/s", "student", f"results / films {TEACHER} / speed / ratio / median", 50),
    *_index(),
    *_overload(),
    Bar(
        "NDCG@10 of the defaults, films, validation",
        "accuracy-films",
        "rows / the default / parts / validation / metrics / ndcg@10 / mean",
    ),
)
