"""`make demo`: the whole system on real films, and the Chinese example, on this machine, in a few minutes.

Films as Parquet -> `ray job submit` of the indexing job -> Serve -> HTTP, told on one screen.
"""

import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from rich.console import Console

from raysys.cli import answer_table, wait_for_signal
from raysys.client import Client
from raysys.config import DEFAULT_HOME, EventsSettings, ProfileSettings
from raysys.data.films import Films, write_films
from raysys.doctor import holder_of
from raysys.errors import ConfigError, RaysysError, Unavailable
from raysys.profile.imports import import_events
from raysys.profile.sqlite import SqliteProfileStore
from raysys.serving.local_head import is_free
from raysys.serving.session import LocalService, local_service

PORT = 8000
USER = "15"
NEWCOMER = "films about space travel and robots, with a good laugh"
FILM, FILM_TITLE = "1", "Toy Story"
HOBBIES = ["电影", "旅游", "运动", "美食", "音乐"]
SENTENCE = "我喜欢看电影和旅游"
TIMED_REQUESTS = 100

console = Console(highlight=False, soft_wrap=True)


@contextmanager
def step(what: str) -> Iterator[None]:
    """Say what is being done, then how long it took."""
    start_s = time.monotonic()
    console.print(f"[bold cyan]>[/] {what}")
    yield
    console.print(f"  [dim]{time.monotonic() - start_s:.1f} s[/]")


def run(keep: bool) -> None:
    """The demo from start to end. Everything it started is gone afterwards."""
    start_s = time.monotonic()
    if not is_free(PORT):
        raise ConfigError(f"port {PORT} is in use by {holder_of(PORT)}: stop it, then run make demo again")
    home = Path(DEFAULT_HOME).expanduser() / "demo"
    with step("films and ratings as Parquet"):
        films = write_films(home / "films")
    with local_service() as service:
        _films(service, home, films)
        _hobbies(service, home)
        console.print(f"\n[bold]All of it took {time.monotonic() - start_s:.0f} s.[/] {_WHERE_TO_GO}")
        if keep:
            url = _serve(service, home, "films")
            console.print(f"[bold]{url}[/] stays up until Ctrl-C (API: {url}/docs)")
            wait_for_signal()
        with step("stopping everything"):
            service.stop_serving()


_WHERE_TO_GO = (
    "Next: `make demo KEEP=1` leaves the server up; README.md has your own catalogue in ten lines, and the HTTP calls."
)


def _films(service: LocalService, home: Path, films: Films) -> None:
    settings: dict[str, Any] = {
        "catalog": {"path": str(films.catalog), "columns": {"categories": "genres"}, "attributes": {"year": "year"}},
        "events": {
            "path": str(films.events),
            "columns": {"value": "rating"},
            "default_kind": "rating",
        },
        "index": {"root": str(home / "films" / "index"), "shards": 2},
        # The ratings span twenty years, and a film does not age in a month.
        "behaviour": {"popularity_half_life_days": 1_000},
        "workers": {"encoders": 2},
    }
    with step("ray job submit: embed 9,066 films with MiniLM, count who watched what, build 2 FAISS shards"):
        _submit(service, home / "films.yaml", settings)
    with step("past ratings into the profile store"):
        _import_ratings(settings["events"], home / "films" / "state.sqlite3")
    with step("serve deploy: gateway, encoder, 2 shards, ranker"):
        url = _serve(service, home, "films")
    with Client(url) as api:
        _tour(api)


def _tour(api: Client) -> None:
    """What a caller sees: five requests, one event, and its effect."""
    console.print(answer_table(api.recommend(user_id=USER, limit=5), f"A known user ({USER})"))
    newcomer = api.recommend(user_id=f"new-{uuid.uuid4().hex[:6]}", query=NEWCOMER, limit=5)
    console.print(answer_table(newcomer, f'A newcomer who only wrote: "{NEWCOMER}"'))
    console.print(answer_table(api.similar(FILM, limit=5), f"Films like {FILM_TITLE}"))
    nineties = {
        "must": [{"field": "categories", "match": "Comedy"}, {"field": "year", "range": {"gte": 1990, "lt": 1995}}]
    }
    console.print(
        answer_table(api.recommend(user_id=USER, filter=nineties, limit=5), "The same user: comedies of 1990-94")
    )
    _event(api)
    _latency(api)


def _event(api: Client) -> None:
    """One event of a new person, and the order before and after it."""
    user = f"new-{uuid.uuid4().hex[:6]}"
    before = api.recommend(user_id=user, limit=5)
    event = {
        "event_id": uuid.uuid4().hex,
        "type": "like",
        "user_id": user,
        "item_id": FILM,
        "timestamp": datetime.now(UTC).isoformat(),
    }
    start_s = time.perf_counter()
    api.send([event])
    after = api.recommend(user_id=user, limit=5)
    took_ms = (time.perf_counter() - start_s) * 1e3
    console.print(
        f"\n[bold]One event[/]: {user} likes {FILM_TITLE}. Event and next answer took [bold]{took_ms:.0f} ms[/]."
    )
    console.print(f"  before: {_titles(before)}")
    console.print(f"  after:  {_titles(after)}")
    if _ids(before) == _ids(after):
        raise Unavailable("the event did not change the answer: this is a bug, please report it")


def _latency(api: Client) -> None:
    def p50_ms(**body: Any) -> float:
        times = []
        for _ in range(TIMED_REQUESTS):
            start_s = time.perf_counter()
            api.recommend(limit=10, **body)
            times.append((time.perf_counter() - start_s) * 1e3)
        return median(times)

    by_history, by_text = p50_ms(user_id=USER), p50_ms(query=NEWCOMER)
    console.print(
        f"\n[bold]Latency[/] over HTTP, one client, p50 of {TIMED_REQUESTS}: "
        f"user with history {by_history:.1f} ms, free text through the language model {by_text:.1f} ms"
    )


def _hobbies(service: LocalService, home: Path) -> None:
    """The Chinese example as a catalogue of its own, with an encoder that reads many languages."""
    folder = home / "hobbies"
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"item_id": HOBBIES, "title": HOBBIES}), folder / "hobbies.parquet")
    settings = {
        "catalog": {"path": str(folder / "hobbies.parquet"), "template": "{title}"},
        "encoder": {"kind": "usem3"},
        "index": {"root": str(folder / "index"), "shards": 1},
        "workers": {"encoders": 1},
    }
    with step(f"another catalogue: {' '.join(HOBBIES)}, with a multilingual encoder"):
        _submit(service, home / "hobbies.yaml", settings)
        url = _serve(service, home, "hobbies", fused=True)
    with Client(url) as api:
        console.print(answer_table(api.recommend(query=SENTENCE, limit=2), f'"{SENTENCE}"'))


def _serve(service: LocalService, home: Path, name: str, fused: bool = False) -> str:
    folder = home / name
    args = {"index_root": str(folder / "index"), "state": str(folder / "state.sqlite3")}
    return service.serve({**args, "topology": "fused"} if fused else args, PORT)


def _import_ratings(settings: dict[str, Any], state: Path) -> None:
    store = SqliteProfileStore(state, ProfileSettings())
    try:
        import_events(EventsSettings(**settings), store, say=lambda _: None)
    finally:
        store.close()


def _submit(service: LocalService, path: Path, settings: dict[str, Any]) -> None:
    """`ray job submit` with these settings; the job's own lines are shown, Ray's about the job are not."""
    path.write_text(yaml.safe_dump(settings, allow_unicode=True))
    for line in service.submit(path):
        if line.startswith(("read ", "rows ", "encoded ", "every ", "shards: ", "texts ", "items ", "seconds: ", "  ")):
            console.print(f"  {line}", markup=False, soft_wrap=True)


def _ids(answer: dict[str, Any]) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def _titles(answer: dict[str, Any]) -> str:
    return " | ".join(str(item["metadata"].get("title")) for item in answer["items"])


def main() -> None:
    """Entry point of `python -m raysys.demo [--keep]`."""
    try:
        run(keep="--keep" in sys.argv[1:])
    except RaysysError as error:
        console.print(f"error: {error}", style="red", markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("stopped")
        sys.exit(130)


if __name__ == "__main__":
    main()
