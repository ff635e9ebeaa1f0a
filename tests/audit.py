"""Is a package that we install known to be vulnerable? `make audit` asks pip-audit, and says so when nobody answers.

It fails for one thing: a vulnerability that a newer version mends. Where no advisory service can be reached, or the
index knows of no advisories (a mirror; pip-audit itself then finds nothing wrong), one line says that nothing was
audited, and that is no failure: a build without a network is not to stop.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

TIMEOUT_S = 60
SOCKET_TIMEOUT_S = 10
OURS = {"luna-pipeline"}  # on no index
# Vulnerabilities that we know of and live with: id -> why it cannot harm luna, and until when. None now.
ACCEPTED: Mapping[str, str] = {}


def main() -> int:
    """Audit the environment that this runs in; 1 when a vulnerability can be mended by an upgrade."""
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    try:
        ended = subprocess.run(
            [*command, "--timeout", str(SOCKET_TIMEOUT_S)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return _not_audited(f"no answer within {TIMEOUT_S} s")
    try:
        packages = json.loads(ended.stdout)["dependencies"]
    except (ValueError, KeyError, TypeError):
        said = [line.strip() for line in ended.stderr.splitlines() if line.strip()]
        return _not_audited(said[-1][:200] if said else f"pip-audit ended with exit status {ended.returncode}")
    return judge(packages, ACCEPTED)


def judge(packages: list[dict[str, Any]], accepted: Mapping[str, str]) -> int:
    """Print what pip-audit found, and say whether that is a failure.

    Args:
        packages: its report: name and version, and `vulns` or a `skip_reason`.
        accepted: see `ACCEPTED`.

    Returns:
        exit status.
    """
    packages = [package for package in packages if package["name"] not in OURS]
    audited = [package for package in packages if "vulns" in package]
    if not audited:
        return _not_audited(f"the index has advisories on none of {len(packages)} packages")
    failed, seen = 0, set()
    for package in audited:
        for found in package["vulns"]:
            names = {found["id"], *found.get("aliases", [])}
            seen |= names
            known = sorted(names & set(accepted))
            fixed = ", ".join(found.get("fix_versions", []))
            verdict = f"accepted: {accepted[known[0]]}" if known else f"fixed in {fixed}" if fixed else "no fix yet"
            failed += bool(fixed and not known)
            print(f"{package['name']} {package['version']}: {found['id']}, {verdict}")
    skipped = [package["name"] for package in packages if "vulns" not in package]
    print(
        f"{len(audited)} packages audited, {failed} to upgrade"
        + (f"; not audited: {', '.join(skipped)}" * bool(skipped))
    )
    for name in sorted(set(accepted) - seen):
        print(f"{name} is accepted and found no more: take it off the list in tests/audit.py")
    return int(failed > 0)


def _not_audited(why: str) -> int:
    print(f"not audited: {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
