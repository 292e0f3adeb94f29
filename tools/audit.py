"""Known vulnerabilities of what the lock file names: `make audit`.

Exit codes: 0, none is known; 1, some are; 2, the audit failed; 75, the advisory service did not
answer, or not for every package, so nothing can be said.
"""

import json
import re
import subprocess
import sys
import tempfile
from typing import Any

from tools.declared import LOCK

FOUND, FAILED, UNREACHABLE = 1, 2, 75
"""Exit codes; the last is EX_TEMPFAIL of sysexits.h: try again later."""
_NO_CONNECTION = re.compile(
    r"^requests\.exceptions\.\w*(?:Connection|Proxy|SSL|Timeout)\w*|Could not connect", re.MULTILINE
)


def main() -> int:
    """Audit, print what was found, and return the exit code."""
    options = ["--require-hashes", "--disable-pip", "--progress-spinner=off", "--format=json"]
    with tempfile.TemporaryDirectory() as cache:
        done = subprocess.run(
            [sys.executable, "-m", "pip_audit", *options, "-r", LOCK, "--cache-dir", cache],
            capture_output=True,
            text=True,
            check=False,
        )
    try:
        code, text = verdict(json.loads(done.stdout)["dependencies"])
    except (ValueError, KeyError):
        unreachable = _NO_CONNECTION.search(done.stderr) is not None
        code, text = UNREACHABLE, skipped("cannot be reached")
        if not unreachable:
            code, text = FAILED, f"pip-audit failed:\n{done.stderr}"
    print(text)
    return code


def verdict(dependencies: list[dict[str, Any]]) -> tuple[int, str]:
    """Return the exit code and what to print for what pip-audit tells of each package.

    A package that the service does not know is no package without faults: pip-audit itself only
    leaves it out.
    """
    faults = [
        f"{package['name']} {package['version']}: {fault['id']}, mended in "
        f"{', '.join(fault['fix_versions']) or 'no version yet'}"
        for package in dependencies
        for fault in package.get("vulns", ())
    ]
    if faults:
        return FOUND, "\n".join([*faults, "`make lock` takes the versions of this environment"])
    unknown = [package["name"] for package in dependencies if "skip_reason" in package]
    if unknown:
        return UNREACHABLE, skipped(f"knows nothing of {len(unknown)} of {len(dependencies)}")
    return 0, f"no known vulnerability in {len(dependencies)} packages"


def skipped(reason: str) -> str:
    """Return the line that says why there is no answer."""
    return f"skipped: the advisory service {reason}; run `make audit` where it answers"


if __name__ == "__main__":
    sys.exit(main())
