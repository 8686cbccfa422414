"""The served application in short: rows of ``serving.py`` and of ``overload.py``, over one start of it and of one peer.

    python benchmarks/smoke.py [--json FILE]

A smoke run that shows that all of it works. Its rounds are too few and too short to be figures.
"""

import json
import sys
from contextlib import ExitStack
from typing import Any

from contests import Plan
from figures import command_line
from http_load import load_process
from overload import Peak, overloaded
from processes import end_on_sigterm
from serving import PEER_MODES, agree, history_contests, measure, start_ours, start_peer, text_contests
from worlds import Prepared, prepare, synthetic

from raysys.errors import RaysysError

N_ITEMS = 500
PLAN = Plan(rounds=1, seconds=1.0, ramp_s=0.2, clients=(1, 4))
PEAK, OVERLOAD_S = Peak(rounds=1, seconds=1.0, clients=4), 3.0


def run(world: Prepared) -> dict[str, Any]:
    """What was answered. Everything started here has ended when this returns or raises."""
    with ExitStack() as stack:
        load = stack.enter_context(load_process())
        ours = start_ours(stack, world, "tiered")
        with ExitStack() as peer_stack:
            peers = {PEER_MODES[0]: start_peer(peer_stack, world, PEER_MODES[0])}
            agreement = agree(ours, peers[PEER_MODES[0]])
            contests = [*text_contests("text query", ours, peers, PLAN.clients), *history_contests(ours, peers, PLAN)]
            rows = [outcome.as_dict() for outcome in measure(contests, PLAN, load, world)]
        overload = overloaded(load, ours, world, 2.0, OVERLOAD_S, PEAK)
    return {"benchmark": "smoke", "agreement": agreement, "rows": rows, "overload": overload}


def main() -> int:
    parser = command_line(__doc__)
    given = parser.parse_args()
    end_on_sigterm()
    folder = given.home / f"synthetic-{N_ITEMS}"
    try:
        found = run(prepare("synthetic", folder, synthetic(folder, N_ITEMS)))
    except RaysysError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 1 if found["overload"]["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
