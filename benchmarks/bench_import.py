"""How long the light client takes to be there: importing it, and importing the command line.

Each in a process of its own, without what the interpreter itself takes; the median of several.
"""

import statistics
import subprocess
import sys
import time

from machine import save

RUNS = 15
STATEMENTS = {"interpreter": "pass", "client": "import bitpress.client", "command line": "import bitpress.cli"}


def main() -> None:
    seconds: dict[str, list[float]] = {name: [] for name in STATEMENTS}
    for _ in range(RUNS):
        for name, statement in STATEMENTS.items():
            begin = time.perf_counter()
            subprocess.run([sys.executable, "-c", statement], check=True)
            seconds[name].append(time.perf_counter() - begin)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    bare = medians.pop("interpreter")
    save("import", {"milliseconds": {name: round(1000 * (value - bare), 1) for name, value in medians.items()}})


if __name__ == "__main__":
    main()
