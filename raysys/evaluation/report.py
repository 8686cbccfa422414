"""What was measured as one page of HTML with plots, and the same as JSON. Both stand alone: nothing is fetched.

A report is plain values. ``rows``: name -> ``about``, ``chosen``, ``tried`` and, by part, a ``summary.summarise``.
``parts``: name -> ``fitted_on``, ``lists``, ... ``paired``: part -> row -> ``summary.compare``. ``curve``, where given:
row -> number of known events -> estimate of NDCG@10. ``learning``, where given: row -> [[step, value], ...].
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from raysys.evaluation.charts import Axes, Point, lines, scatter

Report = Mapping[str, Any]

SHOWN = (
    "hr@10",
    "ndcg@10",
    "mrr@10",
    "recall@10",
    "hr@20",
    "ndcg@20",
    "novelty@10",
    "similarity@10",
    "miscalibration@10",
)
SLICES = ("unseen", "tail", "middle", "head", "warm", "cold")
_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:1rem 0;font-size:13px;display:block;overflow-x:auto}
th,td{padding:4px 10px;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th:first-child,td:first-child{text-align:left}
svg{width:100%;max-width:720px;display:block;margin:1rem 0;font:12px system-ui,sans-serif}
.grid{stroke:#e3e3e3}.title{font-weight:600}.middle{text-anchor:middle}.end{text-anchor:end}
small{color:#666}pre{background:#f6f6f6;padding:1rem;overflow:auto;font-size:12px}
"""


def write_report(report: Report, folder: Path, name: str) -> tuple[Path, Path]:
    """Write NAME.json and NAME.html. Raises ValueError for a report that holds NaN: no figure may be one."""
    text = json.dumps(report, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    json_path, html_path = folder / f"{name}.json", folder / f"{name}.html"
    json_path.write_text(text, encoding="utf-8")
    html_path.write_text(page(report), encoding="utf-8")
    return json_path, html_path


def page(report: Report) -> str:
    """The report as HTML."""
    title = f"Accuracy on {report['dataset']}"
    body = [f"<h1>{escape(title)}</h1>", _about(report)]
    for part, about in report.get("parts", {}).items():
        body.append(_part(report, part, about))
    if "curve" in report:
        body += ["<h2>The same people with fewer events known</h2>", _curve(report["curve"])]
    if "learning" in report:
        body += ["<h2>Learning curves</h2>", _learning(report["learning"])]
    body.append(_how(report))
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{"".join(body)}</body></html>\n'


def figure(estimate: Mapping[str, float] | None) -> str:
    """``.1132 (.1091-.1175)``, or a dash where nothing was measured."""
    if estimate is None:
        return "–"
    return f"{estimate['mean']:.4f} <small>({estimate['low']:.4f}-{estimate['high']:.4f})</small>"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are HTML; the header is text."""
    top = "".join(f"<th>{escape(name)}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _about(report: Report) -> str:
    counts = ", ".join(f"{name} {value:,}" for name, value in report.get("counts", {}).items())
    lead = f"{report.get('users', 0):,} users, {report.get('items', 0):,} items; {report.get('split', '')}."
    return f"<p>{escape(lead)}</p><p><small>Input: {escape(counts)}.</small></p>"


def _part(report: Report, part: str, about: Mapping[str, Any]) -> str:
    rows = {name: row["parts"][part] for name, row in report["rows"].items() if part in row["parts"]}
    facts = f"{about['lists']:,} lists, fitted on {about['fitted_on']}"
    return "".join(
        [
            f"<h2>{escape(part)}</h2><p>{escape(facts)}. 95 % intervals from resampled users.</p>",
            _metrics(rows),
            _slices(rows),
            _by_history(rows),
            _coverage(rows),
            _paired(report.get("paired", {}).get(part, {})),
        ]
    )


def _metrics(rows: Mapping[str, Any]) -> str:
    names = [name for name in SHOWN if any(name in row["metrics"] for row in rows.values())]
    body = [
        [
            escape(row),
            *(figure(found["metrics"].get(name)) for name in names),
            f"{found['coverage@10']:.3f}",
            "–" if found["gini@10"] is None else f"{found['gini@10']:.3f}",
        ]
        for row, found in rows.items()
    ]
    return table(["", *names, "coverage@10", "gini@10"], body)


def _slices(rows: Mapping[str, Any]) -> str:
    body = [
        [escape(row), *(figure(found["slices"][name]["metrics"]["ndcg@10"]) for name in SLICES)]
        for row, found in rows.items()
    ]
    return table(["NDCG@10 of relevant items that are ...", *SLICES], body)


def _by_history(rows: Mapping[str, Any]) -> str:
    asked = next(iter(rows.values()))["history"]
    names = [name for name, group in asked.items() if group["users"]]
    series = {row: _points([found["history"][n]["metrics"]["ndcg@10"] for n in names]) for row, found in rows.items()}
    ticks = [f"{name} ({asked[name]['users']:,})" for name in names]
    return lines(Axes("NDCG@10 by length of the history", "events known (people)", "NDCG@10", ticks), series)


def _coverage(rows: Mapping[str, Any]) -> str:
    series = {
        row: [_point(found["coverage@10"], found["metrics"]["ndcg@10"])]
        for row, found in rows.items()
        if found["metrics"]["ndcg@10"] is not None
    }
    return scatter(Axes("Accuracy and coverage", "share of the catalogue shown", "NDCG@10"), series)


def _paired(tests: Mapping[str, Any]) -> str:
    body = [
        [escape(name), figure(t["difference"]), f"{t['p']:.4f}", f"{t['p_holm']:.4f}", f"{t['users']:,}"]
        for name, t in tests.items()
    ]
    return table(["the default less ...", "NDCG@10", "p", "p (Holm)", "users"], body) if body else ""


def _curve(curves: Mapping[str, Any]) -> str:
    names = list(next(iter(curves.values())))
    series = {row: _points([points[name] for name in names]) for row, points in curves.items()}
    return lines(Axes("NDCG@10 by events known", "last events known", "NDCG@10", names), series)


def _learning(curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    series = {name: [Point(step, value) for step, value in points] for name, points in curves.items()}
    return lines(Axes("Learning curves", "step", "value"), series)


def _how(report: Report) -> str:
    body = [
        [escape(name), escape(row["about"]), escape(json.dumps(row["chosen"])), str(len(row["tried"]))]
        for name, row in report.get("rows", {}).items()
    ]
    kept = {name: report[name] for name in ("settings", "encoder", "batch_and_single", "machine") if name in report}
    rest = escape(json.dumps(kept, indent=1, ensure_ascii=False))
    return f"<h2>How</h2>{table(['', 'what it is', 'chosen on validation', 'settings tried'], body)}<pre>{rest}</pre>"


def _points(estimates: Sequence[Mapping[str, float] | None]) -> list[Point]:
    return [_point(place, estimate) for place, estimate in enumerate(estimates) if estimate is not None]


def _point(x: float, estimate: Mapping[str, float]) -> Point:
    return Point(x, estimate["mean"], estimate["low"], estimate["high"])
