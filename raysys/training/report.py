"""What a build did: for machines as JSON beside the snapshot, for people as a few lines."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from raysys.clock import Clock
from raysys.index.choose import Trial
from raysys.index.manifest import Manifest
from raysys.training import prices
from raysys.training.encoding import MIN_TEXTS_FOR_SPEED, Encoding

PROGRESS_EVERY_S = 2.0
MIN_TEXTS_FOR_RATIO = 20  # of tokens to characters
_STAGED = ("read", "kept", "kept_bytes", "erased", "folded")


class Report:
    """Counts and seconds, gathered while the build runs."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self._start_s = clock, clock.monotonic_s()
        self.stages_s: dict[str, float] = {}
        self.counts: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.learned: Mapping[str, Any] = {}  # the report on the ranking
        self.student: Mapping[str, Any] = {}  # the report on the student
        self.encoding: Mapping[str, Any] = {}  # ``Encoding.figures``

    def elapsed_s(self) -> float:
        """Since the build began."""
        return self.clock.monotonic_s() - self._start_s

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage; one that is entered again adds up."""
        start_s = self.clock.monotonic_s()
        try:
            yield
        finally:
            self.stages_s[name] = round(self.stages_s.get(name, 0.0) + self.clock.monotonic_s() - start_s, 3)

    def add(self, counts: Mapping[str, int], prefix: str = "") -> None:
        """Add counts of one task."""
        for name, n in counts.items():
            self.counts[prefix + name] += n

    def follow(self, encoding: Encoding, results: Iterable[Mapping[str, Any]], say: Callable[[str], None]) -> None:
        """Take the counts of each file as it is encoded, and say now and then how far it is. Raises OverBudget."""
        said_s = self.clock.monotonic_s()
        for counts in results:
            self.add_encoded(counts)
            encoding.add(counts)
            now_s = self.clock.monotonic_s()
            if now_s - said_s >= PROGRESS_EVERY_S or encoding.is_done:
                said_s = now_s
                say(encoding.text())
        self.encoding = encoding.figures()

    def add_encoded(self, counts: Mapping[str, Any]) -> None:
        """Add what ``encode_file`` has counted."""
        self.add({name: n for name, n in counts.items() if name not in {"begun_s", "seconds"}})

    def add_staged(self, counts: Mapping[str, Any], prefix: str) -> None:
        """Add what a stage that reads has counted; ``rejected``: reason -> rows."""
        self.add({name: counts[name] for name in _STAGED if counts.get(name) is not None}, prefix)
        self.rejected.update(counts["rejected"])

    def as_dict(self) -> dict[str, Any]:
        """Everything, as plain values."""
        encode_s = self.stages_s.get("encode", 0.0)
        texts = self.counts["texts"]
        return {
            **self.counts,
            "rejected": dict(self.rejected),
            "ranking": dict(self.learned),
            "student": dict(self.student),
            "encoding": dict(self.encoding),
            "unchanged_tokens_about": self._unchanged_tokens(),
            "stages_s": self.stages_s,
            "total_s": round(self.elapsed_s(), 3),
            "texts_per_s": round(texts / encode_s, 1) if texts >= MIN_TEXTS_FOR_SPEED and encode_s > 0 else None,
        }

    def _unchanged_tokens(self) -> int | None:
        """By the characters of the texts that an earlier build encoded, as this one met so many tokens in so many.

        None where too few were encoded to say.
        """
        if self.counts["texts"] < MIN_TEXTS_FOR_RATIO or not self.counts["chars"]:
            return None
        return round(self.counts["unchanged_chars"] * self.counts["tokens"] / self.counts["chars"])


def readable(report: Mapping[str, Any], manifest: Manifest) -> Iterable[str]:
    """The report as lines for people."""
    get, n_shards, recall = report.get, len(manifest.shards), manifest.recall_at_10
    yield f"rows read {get('items_read', 0):,}, kept {get('items_kept', 0):,}"
    for reason, n in sorted(report["rejected"].items()):
        yield f"  quarantined {n:,}: {reason}"
    if get("duplicates", 0):
        yield f"  {get('duplicates'):,} rows repeat an item_id: the last of each was kept"
    if get("changes_folded", 0):
        yield (
            f"changes folded {get('changes_folded'):,}: items of the catalogue replaced "
            f"{get('replaced_by_change', 0):,}, deleted {get('deleted_by_change', 0):,}"
        )
    if get("events_read", 0):
        yield f"events read {get('events_read', 0):,}, kept {get('events_kept', 0):,}"
    if get("events_erased", 0):
        yield f"  {get('events_erased'):,} events left out: their people were erased"
    if get("ridge_items", 0):
        yield f"next items by ridge regression over {get('ridge_items'):,} items"
    if get("ridge_too_many", 0):
        yield (
            f"no ridge regression: {get('ridge_too_many'):,} items were met twice or more, and behaviour.ridge_items "
            "allows fewer"
        )
    if get("factors_items", 0):
        yield f"who likes what by factors of {get('factors_items'):,} items and {get('factors_people'):,} people"
    if get("sequence_epochs", 0):
        yield (
            f"sequence model over {get('sequence_items'):,} items: best after {get('sequence_best_epoch')} of "
            f"{get('sequence_epochs')} epochs"
        )
    yield from _ranking(report.get("ranking", {}))
    yield from _student(report.get("student", {}))
    speed = "" if get("texts_per_s") is None else f" at {get('texts_per_s'):,.0f} texts/s, start-up included"
    yield f"texts encoded {get('texts', 0):,} ({get('tokens', 0):,} tokens){speed}; unchanged {get('unchanged', 0):,}"
    yield from _costs(report)
    exactness = "" if recall is None else f", recall@10 {recall:.3f} against exact search"
    yield f"items {get('items', 0):,} in {n_shards} shard(s){exactness}"
    yield from _indexes(manifest)
    if n_shards > get("items", 0):
        yield f"  fewer items than shards: {n_shards - get('items', 0)} shard(s) or more are empty"
    stages = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in report["stages_s"].items())
    yield f"seconds: {stages}; {report['total_s']:.1f} s in all"


def _student(student: Mapping[str, Any]) -> Iterable[str]:
    if "why_not" in student:
        yield f"no student of the encoder: {student['why_not']}"
    elif student:
        yield (
            f"student of the encoder, from {student['texts']:,} texts and {student['queries']:,} queries: cosine "
            f"{student['cosine']:.3f}, and {student['overlap@10']:.1%} of the encoder's ten nearest items, by "
            f"{student['held_out']:,} other queries"
        )


def _indexes(manifest: Manifest) -> Iterable[str]:
    """What was measured for the indexes, where anything was tried."""
    for shard in manifest.shards:
        if shard.effort is None or shard.index_kind == "flat":
            continue
        yield f"  {shard.folder}: {shard.index_kind}, breadth {shard.effort.breadth}, refined {shard.effort.refined}"
        for trial in map(Trial.from_dict, shard.tried):
            yield f"    {trial.text()}"


def _costs(report: Mapping[str, Any]) -> Iterable[str]:
    """What encoding took, and what it did not take because an earlier build had the vectors."""
    about = report.get("unchanged_tokens_about")
    tokens = "" if about is None else f", about {about:,} tokens"
    if report.get("unchanged", 0):
        spared = f"{report['unchanged']:,} texts of {report['unchanged_chars']:,} characters{tokens}"
        yield f"  not encoded, as an earlier build had them: {spared}"
    encoding = report.get("encoding", {})
    if encoding.get("texts_per_s") is None:
        return
    speed = f"{encoding['texts_per_s']:,.0f} texts/s, {encoding['texts_per_unit_s']:,.1f} a {encoding['unit']}-second"
    yield (
        f"  start-up {encoding['start_up_s']:.1f} s, then {encoding['steady_s']:.1f} s of {encoding['encoders']} "
        f"encoder(s): {speed}"
    )
    dollars = ", ".join(f"{name} ${usd:.2f}" for name, usd in encoding["usd_per_million_texts"].items())
    yield f"  a million such texts, an estimate by list prices of {prices.AS_OF} and the speed here: {dollars}"
    if encoding["usd_up_to_here"] is not None:
        yield f"  ${encoding['usd_up_to_here']:.2f} up to the last text, by workers.usd_per_hour"


def _ranking(learned: Mapping[str, Any]) -> Iterable[str]:
    if "why_not" in learned:
        yield f"ranking by the settings, nothing was learned: {learned['why_not']}"
    elif learned:
        figures = ", ".join(f"{name} {value:.4f}" for name, value in learned["ndcg@10"].items())
        yield (
            f"ranking by {learned['chosen']}: NDCG@10 of {figures}; "
            f"of {learned['people']:,} people, by what was learned from others"
        )
        if learned["without_trees"] is not None:
            yield f"  without trees: {learned['without_trees']}"
