"""What Ray costs while the encoders are at work: the encode stage of the job against loops without Ray.

Both encode the same files of texts with the same encoder, one thread a process, in as many processes. The loop
(``file_loop.py``) reads, encodes and saves; ours also counts tokens and stores each vector under its key, safe from a
power cut. Start-up is left out of both: ours is told by the report (``encoding``), from the first text to the last.
"""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from figures import Spread, ratios
from processes import run, script

from raysys.index.store import SnapshotStore

SHARDS = 1  # as by default


@dataclass(frozen=True)
class SteadyRound:
    """texts per second without start-up, and the share of the encoders' time that was spent encoding."""

    loop: float
    ours: float
    loop_busy_share: float
    busy_share: float
    start_up_s: float
    load: float


def write_settings(folder: Path, given: Sequence[str], encoders: int, kind: str) -> Path:
    """A catalogue of these texts, and the settings that build it."""
    pq.write_table(
        pa.table({"item_id": [str(n) for n in range(len(given))], "title": list(given)}), folder / "c.parquet"
    )
    settings: dict[str, Any] = {
        "catalog": {"path": str(folder / "c.parquet"), "template": "{title}"},
        "encoder": {"kind": "hash"} if kind == "hash" else {"model": "minilm", "device": "cpu"},
        "index": {"root": str(folder / "index"), "shards": SHARDS},
        "workers": {"encoders": encoders},
    }
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def ours(settings: Path) -> dict[str, Any]:
    """The figures of the encode stage of one build."""
    run([str(Path(sys.executable).with_name("raysys")), "build", str(settings)])
    store = SnapshotStore(settings.parent / "index")
    report = json.loads((store.folder(store.current_id()) / "report.json").read_text(encoding="utf-8"))
    return {"texts": report["texts"], **report["encoding"]}


def one_round(given: Sequence[str], encoders: int, kind: str) -> SteadyRound:
    with tempfile.TemporaryDirectory(prefix="raysys-steady-") as folder:
        settings = write_settings(Path(folder), given, encoders, kind)
        loop = json.loads(run(script("file_loop.py", settings, str(encoders)))[0].splitlines()[-1])
        mine = ours(settings)
    if loop["texts"] != mine["texts"]:
        raise RuntimeError(f"the loop encoded {loop['texts']} texts, the job {mine['texts']}")
    speeds = (side["texts"] / side["steady_s"] for side in (loop, mine))
    return SteadyRound(*speeds, loop["busy_share"], mine["busy_share"], mine["start_up_s"], os.getloadavg()[0])


def steady_rounds(given: Sequence[str], n_rounds: int, kind: str) -> list[SteadyRound]:
    """One encoder a core. The two sides take turns."""
    encoders = len(os.sched_getaffinity(0))
    return [one_round(given, encoders, kind) for _ in range(n_rounds)]


def steady_lines(rounds: Sequence[SteadyRound]) -> list[str]:
    """For people; goal of the ratio: >= .95."""
    loop, mine = [one.loop for one in rounds], [one.ours for one in rounds]
    return [
        f"steady state, texts/s: loops without Ray {Spread.of(loop).text(1)}, the job {Spread.of(mine).text(1)}",
        f"ratio {ratios(mine, loop).text(3)}, goal >= .95",
        f"encoders at work {Spread.of([one.loop_busy_share for one in rounds]).text(3)} and "
        f"{Spread.of([one.busy_share for one in rounds]).text(3)} of the time; start-up of the job "
        f"{Spread.of([one.start_up_s for one in rounds]).text(1)} s; load of the machine "
        f"{Spread.of([one.load for one in rounds]).text(1)}",
    ]
