"""Every shell block of the README, in its order, as a newcomer would type them."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from clusters import poll

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```bash\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def environment(home: Path) -> dict[str, str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "HOME": str(home), "PATH": path}


def run(block: str, folder: Path) -> str:
    command = ["bash", "-euo", "pipefail", "-c", block]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_make_blocks_are_what_ci_runs() -> None:
    ci = (ROOT / ".ci" / "run").read_text()
    makes = {line for block in BLOCKS for line in block.splitlines() if line.startswith("make ")}
    assert makes == {"make demo", "make test", "make install"}
    assert all(line in ci for line in makes - {"make install"})  # make demo begins with make install


def test_the_blocks_work(tmp_path: Path) -> None:
    tried, built, serve, asked = (block for block in BLOCKS if not re.fullmatch(r"make \w+\n", block))
    hobbies = run("\n".join(line for line in tried.splitlines() if line.startswith("raysys")), tmp_path)
    assert {line.split()[1] for line in hobbies.splitlines() if line[:2] in ("1.", "2.")} == {"电影", "旅游"}
    assert "items 6 in 1 shard(s)" in run(built, tmp_path)

    assert serve == "raysys serve\n"
    said = tmp_path / "serve.txt"
    with (
        said.open("w") as output,
        subprocess.Popen(
            serve.split(), cwd=tmp_path, env=environment(tmp_path), start_new_session=True, stdout=output
        ) as server,
    ):
        try:
            # What it says itself: a signal before that comes while it starts, which is another way to end it.
            poll("the server is ready", lambda: "ready: " in said.read_text() or server.poll() is not None, 120)
            assert server.poll() is None, "raysys serve ended"
            answers = run(asked, tmp_path)
        finally:
            server.send_signal(signal.SIGINT)
            assert server.wait(60) == 0
    assert '"The Hound of the Baskervilles"' in answers
    assert answers.count('"recommendation_id"') == 6
    assert '"ready":true' in answers
    assert '"code"' not in answers, "no problem+json among the answers"
