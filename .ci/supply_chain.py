"""A bill of materials of an environment, and the known vulnerabilities of what is in it.

    python .ci/supply_chain.py VENV [--sbom FILE]

Fails on a known vulnerability. Where the advisory service cannot be reached, or knows none of the packages (some mirrors
of PyPI have no advisories), says so and passes: nothing was audited then.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path


def tool(venv: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """One of the environment's own programs."""
    return subprocess.run([venv / "bin" / command[0], *command[1:]], capture_output=True, text=True, check=False)


def bill_of_materials(venv: Path, out: Path) -> None:
    """CycloneDX 1.6 as JSON."""
    made = tool(venv, "cyclonedx-py", "environment", "--of", "JSON", "-o", str(out), str(venv / "bin" / "python"))
    if made.returncode:
        sys.exit(f"no bill of materials: {made.stderr.strip()}")
    print(f"bill of materials: {len(json.loads(out.read_text())['components'])} components in {out}")


def audit(venv: Path) -> None:
    """Exits with what was found."""
    done = tool(
        venv, "pip-audit", "--format", "json", "--progress-spinner", "off", "--skip-editable", "--timeout", "30"
    )
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        print(f"vulnerabilities: SKIPPED, pip-audit has no answer ({done.stderr.strip().splitlines()[-1:]})")
        return
    audited = [package for package in found if "vulns" in package]
    bad = [f"{package['name']} {package['version']}: {vuln['id']}" for package in audited for vuln in package["vulns"]]
    if bad:
        sys.exit("known vulnerabilities:\n" + "\n".join(bad))
    if not audited:
        print(
            f"vulnerabilities: SKIPPED, the package index in use has no advisories (0 of {len(found)} packages audited)"
        )
    else:
        print(f"vulnerabilities: none known in {len(audited)} of {len(found)} packages")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("venv", type=Path)
    parser.add_argument("--sbom", type=Path, help="default: VENV/sbom.json")
    chosen = parser.parse_args()
    bill_of_materials(chosen.venv, chosen.sbom or chosen.venv / "sbom.json")
    audit(chosen.venv)
