"""Keep what a run of test-compose.sh has measured: lines of a name and a number, in the file that is named."""

import json
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from machine import save

numbers = {name: json.loads(value) for name, value in map(str.split, Path(sys.argv[1]).read_text().splitlines())}
numbers["job_over_run"] = round(numbers["job_seconds"] / numbers["run_seconds"], 2)
save("compose", numbers | {"load": round(os.getloadavg()[2], 1)})
