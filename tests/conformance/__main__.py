"""`python -m tests.conformance [--data FOLDER]`: hold the core and the checker to others' data.

Exit status 0 when all passed, 1 when something failed, 2 when there is no data.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from tests.conformance.suite import DEFAULT_FOLDER, PARTS, Check


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help=f"default: {DEFAULT_FOLDER}")
    root: Path = parser.parse_args().data or DEFAULT_FOLDER
    if not root.is_dir():
        print(f"*** NO CONFORMANCE DATA: {root} is not there. NOTHING WAS CHECKED. ***", file=sys.stderr)
        return 2
    print(f"data: {root.resolve()}")
    totals: Counter[bool] = Counter()
    for part in PARTS:
        checks = part.find(root)
        if not checks:
            print(f"*** NOTHING IN {part.folder}: this part was NOT CHECKED ***")
            continue
        outcomes = Counter(_run(check) for check in checks)
        print(f"{part.folder}: {outcomes[True]} passed, {outcomes[False]} failed\n")
        totals += outcomes
    print(f"conformance: {totals[True]} files passed, {totals[False]} failed")
    if not totals:
        return 2
    return 1 if totals[False] else 0


def _run(check: Check) -> bool:
    try:
        found = check.run()
    except Exception as error:  # noqa: BLE001 - whatever a file brings about, the others are played too
        print(f"FAILED  {check.name}\n{type(error).__name__}: {error}")
        return False
    print(f"passed  {check.name}: {found}")
    return True


if __name__ == "__main__":
    sys.exit(main())
