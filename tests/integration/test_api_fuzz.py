"""Requests that nobody thought of: the whole OpenAPI document by schemathesis, job specs by hypothesis."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from api_process import ApiProcess
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from bitpress.errors import InvalidJob, OutOfMemory
from bitpress.jobs import parse_spec
from bitpress.methods import METHODS
from bitpress.plans import PlanAnswer
from bitpress_service.redis_jobstore import RedisJobStore

SCHEMATHESIS = "from schemathesis.cli import schemathesis; schemathesis()"
# A stream of events that has nothing to say would be read for as long as any answer may take.
TIMEOUTS = """
request-timeout = 60
[[operations]]
include-path = "/v1/jobs/{job_id}/events"
request-timeout = 2
"""
FUZZED = int(os.environ.get("BITPRESS_FUZZED_SPECS", "200"))  # for an hour's worth: 20,000 of each of twenty seeds
FUZZ_SEED = int(os.environ.get("BITPRESS_FUZZ_SEED", "0"))
LEFT_OUT = {
    "positive_data_acceptance": "a schema cannot say which exports a method has, which cursors and jobs there are",
    "negative_data_rejection": "numbers are read from strings as well, as pydantic does by default",
    "missing_required_header": "no header but the key is required, and ignored_auth looks at that",
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiProcess]:
    service = ApiProcess(tmp_path_factory.mktemp("service"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITPRESS_WAITING_JOBS_PER_TENANT", "1000000")
        service.start()
    yield service
    service.stop()


@contextmanager
def refused_plans(service: ApiProcess) -> Iterator[None]:
    """A dispatcher that finds every plan too large."""
    stop, worker = threading.Event(), service.worker()

    async def answer(store: RedisJobStore) -> None:
        while order := await store.claim_plan():
            await store.answer_plan(order.id, PlanAnswer.refusal(OutOfMemory("it needs 3 GiB")))

    def run() -> None:
        while not stop.wait(0.1):
            worker.run(answer)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def test_schemathesis_finds_nothing_in_the_whole_document(service: ApiProcess, tmp_path: Path) -> None:
    pytest.importorskip("jsonschema_rs", reason="schemathesis is not installed")
    command = [
        sys.executable, "-c", SCHEMATHESIS, "run", f"{service.url}/openapi.json",
        "--header", f"Authorization: Bearer {service.key}",
        "--exclude-checks", ",".join(LEFT_OUT), "--phases", "examples,coverage,fuzzing",
        "--max-examples", "15", "--seed", "1", "--no-color",
    ]  # fmt: skip
    (tmp_path / "schemathesis.toml").write_text(TIMEOUTS)
    with refused_plans(service):
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, cwd=tmp_path, env=os.environ | {"COLUMNS": "200"}
        )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=6,
)


def spec_of(kind: str) -> dict[str, Any]:
    """A job spec with every field written out."""
    method = {"kind": kind} | ({"bits": 3} if "bits" in METHODS[kind].model_fields else {})
    return parse_spec(
        {
            "model": {"uri": "/models/some"},
            "method": method,
            "calibration": {"dataset": "c4"},
            "evaluation": {"datasets": ["wikitext2"]},
            "labels": {"team": "nlp"},
        }
    ).model_dump(mode="json")


def paths(node: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    yield path
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for name, child in children:
        yield from paths(child, (*path, name))


@st.composite
def changed_specs(draw: st.DrawFn) -> Any:
    """A valid spec of which up to three places hold something else."""
    spec = spec_of(draw(st.sampled_from(sorted(METHODS))))
    for _ in range(draw(st.integers(0, 3))):
        *parents, last = draw(st.sampled_from([path for path in paths(spec) if path]))
        node: Any = spec
        for name in parents:
            node = node[name]
        node[last] = draw(JSON)
    return spec


def test_no_job_spec_breaks_the_service(service: ApiProcess) -> None:
    headers = {"Authorization": f"Bearer {service.key}", "Content-Type": "application/json"}
    with httpx2.Client(base_url=service.url, headers=headers, trust_env=False, timeout=60) as client:

        @settings(max_examples=FUZZED, deadline=None, suppress_health_check=list(HealthCheck))
        @seed(FUZZ_SEED)
        @given(changed_specs())
        def check(spec: Any) -> None:
            text = json.dumps(spec)  # with NaN and lone surrogates, as careless clients write them
            response = client.post("/v1/jobs", content=text)
            try:
                parse_spec(json.loads(text))
            except InvalidJob:
                assert response.status_code == 422, response.text
                assert response.json()["errors"], response.text
            else:
                assert response.status_code == 202, response.text

        check()
