"""Three hosts, as far as the network goes, joined into one Ray cluster by the scripts that the containers start with;
one is cut off while a block is worked on.
"""

import json
import os
import re
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from namespaces import Hosts, connected_hosts
from pipeline_helpers import block_hashes, make_spec, run

from bitpress.jobs import JobSpec

pytestmark = pytest.mark.slow

SPQR = {"kind": "spqr", "bits": 3}
SUPPORT = Path(__file__).parents[1] / "support"
CONTAINERS = Path(__file__).parents[2] / "deploy" / "containers"
PORT = 6380  # that of the scripts
DASHBOARD, AGENTS = "8265", ("6383", "6386")
START_SECONDS = 1200.0
JOB_SECONDS = 1800.0
# What an operator sets for a host or a head that is gone to be gone after seconds; see docs/operations.md.
SOON = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "10",
}


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    several = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1"}  # this process may have set it to 0, for a Ray of its own
    paths = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": ":".join([*sys.path, str(SUPPORT)]),
    }
    return token | SOON | several | paths | {"RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    """Three hosts."""
    try:
        with connected_hosts(3) as hosts:
            yield hosts
    except OSError as error:
        pytest.skip(f"no network namespaces: {error}")


def start_ray(hosts: Hosts, number: int, environment: dict[str, str]) -> None:
    """Join the first so many hosts, with one core each, into a cluster; the first is its head as well."""
    # Ray's directory, /tmp/ray in a container, is where each host has one of its own.
    start(hosts, 0, "ray-head", environment | {"RAY_TMPDIR": str(hosts.own)})
    small = {"BITPRESS_CPUS": "1", "RAY_OBJECT_STORE_BYTES": str(80 * 2**20)}
    for host in range(number):
        start(hosts, host, "ray-worker", environment | small | {"RAY_ADDRESS": f"{hosts.address(0)}:{PORT}"})


def start(hosts: Hosts, host: int, script: str, environment: dict[str, str]) -> None:
    """Start a container's script on a host; returns when Ray runs."""
    written = len(hosts.output(host))
    hosts.start(host, ["sh", str(CONTAINERS / script)], environment | {"NODE_ADDRESS": hosts.address(host)})
    deadline = time.monotonic() + START_SECONDS
    while "Ray runtime started" not in hosts.output(host)[written:]:
        assert time.monotonic() < deadline, hosts.output(host)
        time.sleep(0.2)


def start_job(hosts: Hosts, environment: dict[str, str], spec: JobSpec, out: Path) -> subprocess.Popen[bytes]:
    """Start a job on the first host; returns its process in the middle of the third block."""
    path = out.with_name("spec.json")
    path.write_text(spec.model_dump_json())
    program = [sys.executable, str(SUPPORT / "ray_job_process.py"), f"{hosts.address(0)}:{PORT}", str(path), str(out)]
    job = hosts.start(0, program, environment, output=subprocess.PIPE)
    assert job.stdout is not None
    assert job.stdout.readline() == b"in the middle\n", hosts.output(0)
    return job


def go_on(job: subprocess.Popen[bytes]) -> int:
    """Let a job go on to its end; returns its exit code."""
    assert job.stdin is not None
    job.stdin.write(b"\n")
    job.stdin.flush()
    return job.wait(JOB_SECONDS)


def test_a_host_that_is_cut_off_costs_the_block_in_hand(
    hosts: Hosts, environment: dict[str, str], opt_mini: Path, texts: Path, tmp_path: Path
) -> None:
    spec = make_spec(opt_mini, texts, SPQR, devices=3, evaluation={"datasets": []})
    run(spec, tmp_path / "undisturbed")
    start_ray(hosts, 3, environment)
    job = start_job(hosts, environment, spec, tmp_path / "out")
    for host in range(3):
        check_listeners(hosts, host)
    check_strangers(hosts)
    hosts.cut_off(2)
    assert go_on(job) == 0, hosts.output(0)

    result = json.loads((tmp_path / "out.json").read_text())
    assert result["sizes"] == [3, 2], result
    assert block_hashes(tmp_path / "out") == block_hashes(tmp_path / "undisturbed")
    (loss,) = [entry for entry in result["ledger"] if entry["kind"] == "worker-replaced"]
    assert loss["where"] == "after 2 blocks"
    assert re.match(rf"shard \d on {hosts.address(2)} was lost: ", loss["detail"])


def check_listeners(hosts: Hosts, host: int) -> None:
    """What shards exchange through is for the cluster's network alone; Ray's own servers ask for the token."""
    ours, everywhere = hosts.address(host), ("*", "0.0.0.0", "[::]")
    of_shard = [address.rpartition(":")[0] for address, name in hosts.listeners(host) if name == "ray::_Actor"]
    assert ours in of_shard
    assert set(of_shard) <= {ours, *everywhere}
    assert len([address for address in of_shard if address in everywhere]) == 1  # Ray's calls


def check_strangers(hosts: Hosts) -> None:
    """Who has no token, or a guessed one, gets nothing out of the first host; no port answers it."""
    program = [sys.executable, str(SUPPORT / "stranger.py"), hosts.address(0), DASHBOARD, *AGENTS]
    stranger = hosts.start(1, program, {}, output=subprocess.PIPE)
    assert stranger.stdout is not None
    answers = json.loads(stranger.stdout.readline())
    assert set(answers["http"].values()) <= {None, 401}, answers
    assert all(code != 0 and "CPU" not in told for code, told in answers["ray"]), answers


def test_a_cluster_that_is_killed_as_a_whole_is_followed_by_another(
    hosts: Hosts, environment: dict[str, str], opt_mini: Path, texts: Path, tmp_path: Path
) -> None:
    spec = make_spec(opt_mini, texts, SPQR, devices=2, evaluation={"datasets": []})
    run(spec, tmp_path / "undisturbed")
    start_ray(hosts, 2, environment)
    job = start_job(hosts, environment, spec, tmp_path / "out")
    for host in range(2):
        hosts.kill(host, but=job.pid)
    assert go_on(job) != 0  # the driver is of no use any more; the dispatcher will start another
    assert len(block_hashes(tmp_path / "out")) == 2

    start_ray(hosts, 2, environment)
    assert go_on(start_job(hosts, environment, spec, tmp_path / "out")) == 0, hosts.output(0)
    assert block_hashes(tmp_path / "out") == block_hashes(tmp_path / "undisturbed")
