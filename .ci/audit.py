"""`make audit`: known faults of the packages in requirements.lock, as pip-audit knows them. Advice: always passes."""

import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).parents[1] / "requirements.lock"
LIMIT_S = 120.0  # for all packages together
ANSWER_S = 10


def main() -> None:
    command = [sys.executable, "-m", "pip_audit", "-r", str(LOCK), "--disable-pip", "--no-deps"]
    command += ["--format", "json", "--progress-spinner", "off", "--timeout", str(ANSWER_S)]
    try:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=False)
        print("\n".join(lines(ended.stdout)))
    except subprocess.TimeoutExpired:
        print(f"audit: no answer within {LIMIT_S:.0f} s, so nothing is known")
    except ValueError:  # no report
        said = ended.stderr.strip().splitlines() or ["no reason given"]
        print(f"audit: the database of faults could not be asked ({said[-1][:200]})")


def lines(report: str) -> list[str]:
    """What a report says, a line a fault. Raises ValueError for one that is no JSON."""
    packages = json.loads(report)["dependencies"]
    faults = [
        f"audit: {package['name']} {package['version']}: {fault['id']}, mended in {fault['fix_versions']}"
        for package in packages
        for fault in package.get("vulns", ())
    ]
    unknown = sum("skip_reason" in package for package in packages)
    told = f"audit: {len(faults)} known faults in {len(packages) - unknown} packages"
    return [*faults, told + (f"; nothing could be learned of {unknown} others" if unknown else "")]


if __name__ == "__main__":
    main()
