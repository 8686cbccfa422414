"""The `raysys snapshots` commands: which there are, whether they are whole, which is published, and what may go."""

import json
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from raysys.client import ApiError, Client
from raysys.clock import Clock, SystemClock
from raysys.config import DEFAULT_HOME, IndexSettings, ServeSettings, parse
from raysys.errors import ConfigError, SnapshotError, Unavailable
from raysys.index.inventory import readable_bytes
from raysys.index.store import SnapshotStore
from raysys.publishing.listing import Listing, Row, as_dict, listing

if TYPE_CHECKING:  # it brings FAISS
    from raysys.publishing.activate import Comparison

POLL_S = 0.2
MARKS = {"ok": "[green]ok[/]  ", "note": "[yellow]note[/]", "fail": "[red]FAIL[/]"}

app = typer.Typer(no_args_is_help=True, help=__doc__)
console = Console(highlight=False, soft_wrap=True)

Root = Annotated[str, typer.Option(help="The folder of the index, `index.root` of the build.")]
Wait = Annotated[
    str | None, typer.Option("--wait", help="Wait until the gateway at this URL answers from the new snapshot.")
]
Deadline = Annotated[float, typer.Option(min=0, help="Seconds that --wait waits.")]
PublicKeys = Annotated[
    list[str] | None,
    typer.Option(
        "--public-key", help="Take only what this key has signed; may be repeated. As `snapshot_public_keys`."
    ),
]
Id = Annotated[str, typer.Argument(help="The id of a snapshot.")]
ROOT, DEADLINE_S = f"{DEFAULT_HOME}/index", 120.0


@app.command("list")
def list_(
    root: Root = ROOT,
    as_json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """All snapshots, and what builds have left."""
    found = listing(SnapshotStore(root), SystemClock().now_s())
    if as_json:
        typer.echo(json.dumps(as_dict(found), indent=2))
        return
    if not found.snapshots:
        console.print(f"no snapshot under {found.root}; next: raysys build", markup=False)
    else:
        console.print(_table(found.snapshots))
    for line in _remarks(found):
        console.print(line, markup=False)
    if found.current is not None and not any(row.is_current for row in found.snapshots):
        console.print(f"{found.current} is published, and is not there", style="red", markup=False)


def _remarks(found: Listing) -> Iterator[str]:
    """What does not fit into the table."""
    if found.canary is not None:
        yield f"{found.canary.share:.1%} of the people get {found.canary.snapshot_id}, since {found.canary.at}"
    for row in found.snapshots:
        if row.state in ("damaged", "too new"):
            yield f"{row.snapshot_id} is {row.state}: {row.problem}"
        if row.refused_at is not None:
            yield f"{row.snapshot_id} was refused at {row.refused_at}: {'; '.join(row.refused)}"
    for one in found.leftovers:
        whose = "of a build that runs" if one.is_held else "may go: raysys snapshots gc"
        yield f"{one.path}: {readable_bytes(one.size_bytes)}, {whose}"


def _table(found: Sequence[Row]) -> Table:
    """Within 80 columns: what does not fit, such as the encoder, is in --json."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("snapshot", "", "state", "age", "items", "shards", "size"):
        # An id that is cut cannot be copied. What a snapshot is marked with may take two lines.
        table.add_column(name, justify="right" if name in {"age", "items", "size"} else "left", no_wrap=name != "")
    for row in found:
        table.add_row(
            row.snapshot_id,
            row.marks(),
            row.state,
            readable_age(row.age_s),
            "" if row.items is None else f"{row.items:,}",
            "" if row.shards is None else f"{row.shards} {', '.join(row.index)}",
            readable_bytes(row.size_bytes),
        )
    return table


def readable_age(age_s: float) -> str:
    """As in "3 h"."""
    for unit, seconds in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if age_s >= 2 * seconds:
            return f"{age_s / seconds:.0f} {unit}"
    return f"{max(age_s, 0):.0f} s"


@app.command()
def verify(
    snapshot_id: Annotated[str, typer.Argument(help="The id of a snapshot.")] = "current",
    root: Root = ROOT,
    encoder: Annotated[bool, typer.Option(help="Encode some texts again, where the model can be loaded.")] = True,
    public_key: PublicKeys = None,
) -> None:
    """Look through all of a snapshot: files, shards, index, encoder. Exit code 1 where something fails."""
    from raysys.publishing.verify import failed, look_through

    found = []
    for check in look_through(SnapshotStore(root, public_key or ()), snapshot_id, encoder):
        found.append(check)
        where = f" [{check.file}]" if check.file else ""
        console.print(MARKS[check.level], end=" ")
        console.print(f"{check.what}: {check.found}{where}", markup=False)
    raise typer.Exit(1 if failed(found) else 0)


@app.command()
def activate(
    snapshot_id: Id,
    root: Root = ROOT,
    force: Annotated[bool, typer.Option("--force", help="Also where it differs from the published one.")] = False,
    impressions: Annotated[str, typer.Option(help="The impression log: who asks.")] = f"{DEFAULT_HOME}/impressions",
    state: Annotated[str, typer.Option(help="The store that knows them.")] = f"{DEFAULT_HOME}/state.sqlite3",
    wait: Wait = None,
    deadline_s: Deadline = DEADLINE_S,
    public_key: PublicKeys = None,
) -> None:
    """Publish a snapshot: verified, compared with the published one, then by one move of the pointer."""
    from raysys.publishing.activate import activate as run

    places = _places(root, state, impressions)
    store = SnapshotStore(places.index_root, public_key or ())
    done = run(store, snapshot_id, places.impressions.folder, places.state, force)
    _say_compared(done.comparison, done.forced)
    was = f", was {done.before}" if done.before not in (None, snapshot_id) else ""
    console.print(f"published {snapshot_id}{was}", markup=False)
    _wait(wait, snapshot_id, deadline_s)


def _say_compared(comparison: "Comparison | None", forced: Sequence[str]) -> None:
    for line in () if comparison is None else comparison.lines():
        console.print(line, markup=False)
    for reason in forced:
        console.print(f"forced: {reason}", markup=False, style="yellow")


def _say_moved(moved: tuple[str, str], wait: str | None, deadline_s: float) -> None:
    left, taken = moved
    console.print(f"published {taken}, was {left}", markup=False)
    _wait(wait, taken, deadline_s)


@app.command()
def canary(
    snapshot_id: Id,
    share: Annotated[float, typer.Option(help="Of the people, above 0 and at most 1.")] = 0.05,
    root: Root = ROOT,
    force: Annotated[bool, typer.Option("--force", help="Also where it differs from the published one.")] = False,
    impressions: Annotated[str, typer.Option(help="The impression log: who asks.")] = f"{DEFAULT_HOME}/impressions",
    state: Annotated[str, typer.Option(help="The store that knows them.")] = f"{DEFAULT_HOME}/state.sqlite3",
    public_key: PublicKeys = None,
) -> None:
    """Answer a share of the people from a snapshot, verified and compared as by `activate`; again: another share."""
    from raysys.publishing.activate import start_canary

    if not 0 < share <= 1:
        raise ConfigError(f"--share {share:g}: a share of the people is above 0 and at most 1")
    places = _places(root, state, impressions)
    store = SnapshotStore(places.index_root, public_key or ())
    done = start_canary(store, snapshot_id, share, places.impressions.folder, places.state, force)
    _say_compared(done.comparison, done.canary.forced)
    console.print(f"{share:.1%} of the people get {snapshot_id}, the others {done.canary.beside}", markup=False)


@app.command()
def promote(
    root: Root = ROOT, wait: Wait = None, deadline_s: Deadline = DEADLINE_S, public_key: PublicKeys = None
) -> None:
    """Publish the canary: everybody is answered from it."""
    _say_moved(SnapshotStore(root, public_key or ()).promote(), wait, deadline_s)


@app.command()
def withdraw(root: Root = ROOT) -> None:
    """End the canary: everybody is answered from the published snapshot."""
    ended = SnapshotStore(root).withdraw()
    console.print(f"everybody gets {ended.beside}; {ended.snapshot_id} stays, unpublished", markup=False)


@app.command()
def rollback(
    root: Root = ROOT, wait: Wait = None, deadline_s: Deadline = DEADLINE_S, public_key: PublicKeys = None
) -> None:
    """Publish again what was published before; each further time one step further back."""
    _say_moved(SnapshotStore(root, public_key or ()).rollback(), wait, deadline_s)


@app.command()
def sign(
    snapshot_id: Id,
    key: Annotated[str, typer.Option(help="The file of the key that signs; `raysys keys signing` makes one.")],
    root: Root = ROOT,
) -> None:
    """Sign a snapshot, once every file of it was compared with its manifest."""
    SnapshotStore(root).sign(snapshot_id, key)
    console.print(f"signed {snapshot_id}", markup=False)


@app.command()
def gc(
    root: Root = ROOT,
    keep: Annotated[int, typer.Option(min=1, help="So many complete snapshots stay, the newest.")] = (
        IndexSettings.model_fields["keep"].default
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    embeddings: Annotated[
        bool, typer.Option("--embeddings", help="Also vectors that no snapshot needs; a build encodes them anew.")
    ] = False,
) -> None:
    """Remove old snapshots and what killed builds have left. What is in use, published, or newer stays."""
    from raysys.index.retention import collect, said

    removals = collect(SnapshotStore(root), keep, embeddings, dry_run)
    for removal in removals:
        console.print(f"{removal.path}: {readable_bytes(removal.size_bytes)}, {removal.why}", markup=False)
    console.print(said(removals, dry_run))


def _places(root: str, state: str, impressions: str) -> ServeSettings:
    return parse(ServeSettings, {"index_root": root, "state": state, "impressions": {"folder": impressions}}, "options")


def _wait(url: str | None, snapshot_id: str, deadline_s: float) -> None:
    if url is not None:
        took_s = wait_for(url, snapshot_id, deadline_s)
        console.print(f"{url} answers from {snapshot_id} after {took_s:.1f} s", markup=False)


def wait_for(url: str, snapshot_id: str, deadline_s: float, clock: Clock | None = None) -> float:
    """Wait until the gateway at this URL is ready with the snapshot. Returns the seconds it took.

    Raises SnapshotError at the deadline, with what it says instead: the pointer has moved by then, and the servers
    go on trying.
    """
    clock = SystemClock() if clock is None else clock
    start_s = clock.monotonic_s()
    with Client(url) as api:
        while True:
            ready = _readiness(api)
            if ready.get("ready") and ready.get("snapshot_id") == snapshot_id:
                return clock.monotonic_s() - start_s
            if clock.monotonic_s() - start_s >= deadline_s:
                raise SnapshotError(_not_taken(url, snapshot_id, deadline_s, ready))
            time.sleep(POLL_S)


def _readiness(api: Client) -> dict[str, Any]:
    try:
        return api.get("/readyz")
    except ApiError as error:  # it is not ready, and says what it has
        return error.problem
    except Unavailable as error:
        return {"refused": str(error)}


def _not_taken(url: str, snapshot_id: str, deadline_s: float, ready: dict[str, Any]) -> str:
    why = [ready.get("refused"), *(shard.get("refused") for shard in ready.get("shards", {}).values())]
    said = "; ".join(dict.fromkeys(filter(None, why)))
    return (
        f"{url} has not taken up {snapshot_id} within {deadline_s:g} s and answers from {ready.get('snapshot_id')}"
        f"{': ' + said if said else ''}. The pointer has moved; `raysys snapshots rollback` moves it back"
    )
