"""The dashboard, the alerts and the runbooks speak of metrics, labels, commands and tests that there are."""

import json
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
import typer
import yaml
from prometheus_client.parser import text_string_to_metric_families
from support import Shop, post, raising, serve_here

from raysys.access import KeyFile, make_key
from raysys.cli import app
from raysys.config import RateLimit, ServeSettings
from raysys.errors import Unavailable
from raysys.recommender import Recall
from raysys.serving.sides import SIDES

ROOT = Path(__file__).parents[2]
RUNBOOKS = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
ALERTS = [
    rule
    for group in yaml.safe_load((ROOT / "deploy/observability/alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]
DASHBOARD = json.loads((ROOT / "deploy/observability/dashboard.json").read_text(encoding="utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

SELECTOR = re.compile(r"\b([a-z][a-z0-9_]*)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)(=~|!~|!=|=)"([^"]*)"')
GROUPING = re.compile(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)")
LANGUAGE = {"sum", "max", "rate", "increase", "scalar", "histogram_quantile", "unless", "and", "clamp_min"}
OF_PROMETHEUS = {"instance", "job"}  # labels that the scrape adds


class Missing:
    """Shards of which the first does not answer."""

    def __init__(self, shards: Recall) -> None:
        self._shards = shards

    async def recall(self, *asked: Any) -> Any:
        found, _ = await self._shards.recall(*asked)
        return found[1:], ["shard-00"]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def series(
    shop: Shop, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, list[dict[str, str]]]]:
    """The label sets of each metric that a gateway tells, once it has met everything that it counts."""
    folder = tmp_path_factory.mktemp("observed")
    key, text = make_key("all", {"read", "write", "metrics"})
    slow, slow_text = make_key("slow", {"read"}, rate_limit=RateLimit(requests_per_s=0.001, burst=1))
    KeyFile(folder / "keys.json").add(key)
    KeyFile(folder / "keys.json").add(slow)
    served = await serve_here(
        shop.store(2), folder / "state.sqlite3", probe_every_s=3_600, api_keys=str(folder / "keys.json")
    )
    async with served.client() as client:
        client.headers["x-api-key"] = text
        await everything(client, served.front.probe)
        limited = {"x-api-key": slow_text}
        answers = [await client.post("/v1/search", json={"query": "b"}, headers=limited) for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 429]
        await without_parts(client, served.front, served.recommender)
        exported = (await client.get("/metrics")).text
    await served.stop()
    found: dict[str, list[dict[str, str]]] = defaultdict(list)
    for family in text_string_to_metric_families(exported):
        for sample in family.samples:
            found[sample.name].append(sample.labels)
    found["up"] = [{}]  # Prometheus's own
    yield found


async def everything(client: httpx.AsyncClient, probe: Any) -> None:
    """Requests of every kind, and a round of the probe."""
    await post(client, "/v1/recommendations", user_id="ann", query="quasar zeppelin", history=["item-1"], explain=True)
    await post(client, "/v1/search", query="bababa")
    await post(client, "/v1/items", items=[{"item_id": "new-1", "title": "bababa"}])
    assert (await client.post("/v1/search", json={})).status_code == 422
    await probe._measure("event_to_effect", probe._send, probe._has_counted)
    await probe._measure("item_to_live", probe.publish, probe.is_found)
    await probe._measure("delete_to_gone", probe.delete, probe._is_gone)


async def without_parts(client: httpx.AsyncClient, front: Any, recommender: Any) -> None:
    """Requests while each part is away."""
    away = raising(Unavailable("away"))

    class Ranker:
        score = staticmethod(away)

    await front.take(recommender.catalogue, away, Missing(recommender._shards), Ranker())
    await front.state.close()
    answer = await post(client, "/v1/recommendations", user_id="ann", query="a text that nobody has asked yet")
    assert {"encoder", "shard-00", "ranker", "profile"} <= set(answer["degraded"])
    assert (await client.post("/v1/events", json={"events": [{}]})).status_code in {200, 503}
    assert (await client.post("/v1/search", json={"query": "another"})).status_code == 503


def expressions() -> Iterator[tuple[str, str, str]]:
    """(where, expression, texts that name its labels) of all panels and alerts."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"], target["legendFormat"]
    for alert in ALERTS:
        yield alert["alert"], alert["expr"], " ".join(alert["annotations"].values())


def labels_in(text: str) -> set[str]:
    """The labels that a legend or an annotation shows."""
    return set(re.findall(r"\{\{\s*(\w+)\s*\}\}", text)) | set(re.findall(r"\$labels\.(\w+)", text))


def names_in(expression: str) -> list[str]:
    """The metrics of an expression: whatever in it is neither language, nor in braces, nor a label of a grouping."""
    plain = GROUPING.sub(
        "", re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(?:by|on|unless)\b(?=\s*\()", "", GROUPING.sub("", expression))
    )
    return [name for name in re.findall(r"[a-zA-Z_]\w*", plain) if name not in LANGUAGE]


Series = dict[str, list[dict[str, str]]]


def complaints(expression: str, shown: str, series: Series) -> list[str]:
    """What of an expression is not in the metrics."""
    names = names_in(expression)
    wrong = [f"no metric {name}" for name in names if name not in series]
    known = {label for name in names for labels in series.get(name, ()) for label in labels} | OF_PROMETHEUS
    grouped = {label.strip() for labels in GROUPING.findall(expression) for label in labels.split(",")}
    wrong += [f"no label {label}" for label in sorted((grouped | labels_in(shown)) - known - {""})]
    for name, matchers in SELECTOR.findall(expression):
        for label, operator, value in MATCHER.findall(matchers):
            if label in OF_PROMETHEUS:
                continue
            values = {labels[label] for labels in series.get(name, ()) if label in labels}
            found = {v for v in values if (re.fullmatch(value, v) if "~" in operator else v == value)}
            if not values or (operator in {"=", "=~"} and not found):
                wrong.append(f"{name} has no {label}{operator}{value!r}, but {sorted(values)}")
    return wrong


@pytest.mark.asyncio(loop_scope="module")
async def test_every_metric_and_label_is_one_that_a_gateway_tells(series: Series) -> None:
    told = {where: complaints(expression, shown, series) for where, expression, shown in expressions()}
    assert {where: wrong for where, wrong in told.items() if wrong} == {}
    assert len(told) > 30


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "expression",
    [
        "raysys_reqests_total",
        "rate(raysys_requests_total{rout='x'}[5m])".replace("'", '"'),
        'sum(rate(raysys_requests_total{status=~"7.."}[5m]))',
        'raysys_stage_seconds_count{stage="reckon"}',
        "sum by (ruote) (rate(raysys_requests_total[5m]))",
        "up unless on (snapshot) raysys_snapshot_info",
    ],
)
async def test_a_renamed_one_is_found_out(series: Series, expression: str) -> None:
    assert complaints(expression, "", series)


@pytest.mark.asyncio(loop_scope="module")
async def test_what_the_dashboard_chooses_gateways_by_is_there(series: Series) -> None:
    (query,) = [v["query"]["query"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]
    name, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", query).groups()  # type: ignore[union-attr]
    assert (name in series, label) == (True, "instance")
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(PANELS))) - {"__rate_interval"}
    assert used == {v["name"] for v in DASHBOARD["templating"]["list"]}


@pytest.mark.asyncio(loop_scope="module")
async def test_the_runbooks_speak_of_metrics_that_there_are(series: Series) -> None:
    named = set(re.findall(r"raysys_\w+", RUNBOOKS + (ROOT / "docs/observability.md").read_text(encoding="utf-8")))
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in series} | set(series)
    assert named - families == set()


def test_panels_do_not_lie_on_each_other() -> None:
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    cells = [
        (x, y)
        for panel in DASHBOARD["panels"]
        for at in (panel["gridPos"],)
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def anchors(page: str) -> set[str]:
    """Those that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", page, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_says_what_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    told = alert["annotations"]
    assert told["summary"]
    assert "{{" in told["description"]
    page, anchor = told["runbook"].split("#")
    assert (ROOT / page).samefile(ROOT / "docs/operations.md")
    assert anchor in anchors(RUNBOOKS)
    assert f"`{alert['alert']}`" in RUNBOOKS  # so that who comes from the alert sees that this is the place


def test_what_is_said_of_a_canary_is_said_beside_the_published_one() -> None:
    of_sides = [alert["expr"] for alert in ALERTS if "raysys_side_" in alert["expr"]]
    assert len(of_sides) == 4
    for expression in of_sides:
        compared = expression.split(" and ")[0]
        canary, current = (re.findall(rf'(\w+){{snapshot="{side}"}}', compared) for side in SIDES[::-1])
        assert canary == current


def test_slow_means_after_the_deadline() -> None:
    (slow,) = [alert for alert in ALERTS if alert["alert"] == "RaysysSlow"]
    assert float(slow["expr"].rsplit(">")[-1]) == ServeSettings().deadline_s


def commands() -> list[str]:
    """The commands of raysys in the runbooks."""
    code = re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", RUNBOOKS, flags=re.DOTALL))
    blocks = re.findall(r"```bash\n(.*?)```", RUNBOOKS, re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return sorted({line for line in [*code, *lines] if line.startswith("raysys ")})


@pytest.mark.parametrize("line", commands())
def test_every_command_is_there_with_its_options(line: str) -> None:
    command: Any = typer.main.get_command(app)
    words = line.split()[1:]
    while hasattr(command, "commands"):  # a group of them
        command = command.commands[words.pop(0)]
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word.split("=")[0] for word in words if word.startswith("-")} <= options


def test_every_test_that_is_named_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", RUNBOOKS)
    assert len(named) > 12
    missing = [(path, name) for path, name in named if f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8")]
    assert missing == []
