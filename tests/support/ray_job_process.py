"""One job on a Ray cluster, as a process of its own: `ADDRESS SPEC DIRECTORY`.

In the middle of the third block it prints a line and goes on when it is sent one. In the end it writes
what became of the job beside the directory, as JSON.
"""

import json
import sys
from pathlib import Path

from ray_jobs import RayJob

from bitpress.errors import BitpressError
from bitpress.jobs import JobSpec, Progress
from bitpress_workers.ray_fleet import RaySession


def pause_in_the_middle(job: RayJob, progress: Progress) -> None:
    if len(job.fleets) == 1 and progress.blocks_done == 2 and progress.linear == "fc1":
        print("in the middle", flush=True)
        sys.stdin.readline()


def main(address: str, spec: str, directory: str) -> None:
    result: dict[str, object] = {}
    with RaySession(address, None) as session:
        job = RayJob(session, Path(directory), pause_in_the_middle)
        try:
            report = job.run(JobSpec.model_validate_json(Path(spec).read_text()))
            result["ledger"] = [entry.model_dump() for entry in report.ledger]
        except BitpressError as error:
            result["error"] = [error.code, error.message]
        sizes = [fleet.size for fleet in job.fleets]
        result |= {"sizes": sizes, "lines": job.lines}
    Path(f"{directory}.json").write_text(json.dumps(result))
    sys.exit("error" in result)


if __name__ == "__main__":
    main(*sys.argv[1:])
