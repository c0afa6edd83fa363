"""A tour of Bitpress in ten short stops, in the order in which a job meets them. Read this first.

Every stop uses the real thing; nothing is mocked.
"""

import asyncio
import itertools
import json
from pathlib import Path

import pytest
import torch
from pipeline_helpers import block_hashes, make_spec, run

from bitpress.errors import InvalidJob, NumericalError
from bitpress.formats import from_tensors
from bitpress.jobs import JobState, parse_spec
from bitpress.loading import load
from bitpress.methods import RTNConfig, SEPTQConfig, SpQRConfig
from bitpress_service import embedded_redis
from bitpress_service.jobstore import Fenced
from bitpress_service.redis_jobstore import RedisJobStore
from bitpress_workers.methods import compress, create
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.skeleton import Skeleton, tap_inputs
from bitpress_workers.numerics.hessian import Gram, GramTree, reduce_tree
from oracles.examples import golden_sequences, golden_weight


def example_hessian() -> torch.Tensor:
    return sum((x_TI.T @ x_TI for x_TI in golden_sequences()), torch.zeros(64, 64))


def test_1_a_spec_says_what_is_to_be_done_and_every_mistake_has_a_path() -> None:
    spec = {
        "model": {"uri": "org/model"},
        "method": {"kind": "spqr", "bits": 3},
        "calibration": {"dataset": "c4"},
    }
    assert parse_spec(spec).calibration.num_sequences == 128
    with pytest.raises(InvalidJob) as caught:
        parse_spec(spec | {"method": {"kind": "spqr", "bits": 17}, "colour": "red"})
    assert {path for path, _ in caught.value.details} == {"/method/bits", "/colour"}


def test_2_a_grid_has_few_values_and_rounding_to_the_nearest_is_the_baseline() -> None:
    weight = torch.tensor([[-1.0, 0.5, 2.0]])
    compressed = compress(weight, None, RTNConfig(bits=2))
    # Range -1 .. 2 in three steps of 1; halves are rounded to even, so 0.5 becomes 0.
    assert compressed.dequantize().tolist() == [[-1.0, 0.0, 2.0]]


def test_3_a_tap_is_one_input_of_several_linears_and_has_one_hessian(opt_mini: Path) -> None:
    skeleton = Skeleton(Checkpoint.open(str(opt_mini)))
    block = skeleton.load_block(0)
    hidden_BSD, arguments = skeleton.enter(torch.arange(24).view(2, 12))
    grams: dict[str, Gram] = {}

    def gather(tap: str, x_TI: torch.Tensor) -> None:
        grams.setdefault(tap, Gram.zeros(x_TI.shape[1])).accumulate(x_TI, num_sequences=2)

    with tap_inputs(block, skeleton.family.taps, gather):
        skeleton.run_block(block, 0, hidden_BSD, arguments)
    assert [len(tap.linears) for tap in skeleton.family.taps] == [3, 1, 1, 1]  # q, k and v share theirs
    assert {name: gram.num_tokens for name, gram in grams.items()} == dict.fromkeys(grams, 24)


def test_4_sums_are_merged_in_a_fixed_tree_so_the_fleet_does_not_change_a_bit() -> None:
    def slice_gram(index: int) -> Gram:
        gram = Gram.zeros(64)
        gram.accumulate(golden_sequences()[index % 4] * (1 + index), 1)
        return gram

    def total(borders: list[int]) -> torch.Tensor:
        nodes: dict[tuple[int, int], Gram] = {}
        for first, last in itertools.pairwise(borders):
            tree = GramTree()
            for index in range(first, last):
                tree.add(index, slice_gram(index))
            nodes |= tree.nodes
        return reduce_tree(nodes, 8).xtx_II

    assert torch.equal(total([0, 8]), total([0, 3, 5, 8]))


def test_5_error_feedback_beats_rounding_and_outliers_beat_both() -> None:
    weight, hessian = golden_weight(), example_hessian()

    def output_error(config: RTNConfig | SEPTQConfig | SpQRConfig) -> float:
        difference = weight - compress(weight, hessian, config).dequantize()
        return float(torch.trace(difference @ hessian @ difference.T))

    rounded = output_error(RTNConfig(bits=3))
    fed_back = output_error(SEPTQConfig(bits=3, retained_percent=0))
    retained = output_error(SEPTQConfig(bits=3, retained_percent=5))
    grouped = output_error(SpQRConfig(bits=3, outlier_threshold=0.05))
    assert rounded > 2 * fed_back > 2 * retained
    assert fed_back > grouped


def test_6_a_method_solves_a_format_stores_and_every_stored_bit_is_counted() -> None:
    compressed = compress(golden_weight(), example_hessian(), SpQRConfig())
    again = from_tensors(json.loads(json.dumps(compressed.header())), compressed.tensors())
    assert torch.equal(again.dequantize(), compressed.dequantize())
    stored = sum(tensor.numel() * tensor.element_size() for tensor in compressed.tensors().values())
    assert compressed.stored_bits() == 8 * stored


def test_7_rows_are_shared_out_and_what_crosses_rows_is_agreed_on() -> None:
    weight, method = golden_weight(), create(SEPTQConfig(bits=3))
    factor = method.factor(Gram.of(example_hessian(), num_sequences=4, num_tokens=384))
    shards = [method.begin([rows], factor, row_tile=8) for rows in (weight[:8], weight[8:])]
    agreed = None
    for _ in range(method.survey_rounds):
        surveys = [survey for shard in shards for survey in shard.survey(agreed)[0]]
        agreed = [method.agree(surveys, agreed and agreed[0])]
    parts = [next(shard.solve(agreed)).compressed for shard in shards]
    whole = compress(weight, example_hessian() / 4, SEPTQConfig(bits=3))
    assert torch.equal(torch.cat([part.dequantize() for part in parts]), whole.dequantize())


def test_8_nothing_is_papered_over() -> None:
    hessian = example_hessian()
    hessian[3, 3] = float("nan")
    with pytest.raises(NumericalError, match="not finite"):
        compress(golden_weight(), hessian, SpQRConfig())


def test_9_a_job_is_run_under_a_lease_and_who_lost_it_can_write_no_more(tmp_path: Path) -> None:
    spec = parse_spec(
        {
            "model": {"uri": "org/model"},
            "method": {"kind": "rtn", "bits": 4},
            "calibration": {"dataset": "c4"},
        }
    )

    async def story(url: str) -> None:
        store = RedisJobStore.from_url(url)
        job, _ = await store.create("tenant", spec, idempotency_key="once")
        same, replayed = await store.create("tenant", spec, idempotency_key="once")
        assert (same.id, replayed) == (job.id, True)
        frozen = await store.claim("frozen worker", lease_seconds=0.01)
        assert frozen is not None
        await asyncio.sleep(0.05)
        assert list(await store.reap()) == [job.id]
        with pytest.raises(Fenced):
            await store.record(job.id, frozen.fence, log="I am back")
        taken_over = await store.claim("another worker", lease_seconds=60)
        assert taken_over is not None
        assert taken_over.fence > frozen.fence
        assert (await store.get(job.id)).state is JobState.RUNNING
        await store.aclose()

    url = embedded_redis.start(tmp_path / "redis")  # a real server, private to this directory
    try:
        asyncio.run(story(url))
    finally:
        embedded_redis.stop(tmp_path / "redis")


def test_10_the_artifact_is_a_working_model_packed_and_any_fleet_makes_the_same(
    opt_mini: Path, texts: Path, tmp_path: Path
) -> None:
    method = {"kind": "spqr", "bits": 3}
    report = run(make_spec(opt_mini, texts, method, devices=1), tmp_path / "one")
    run(make_spec(opt_mini, texts, method, devices=2, evaluation={"datasets": []}), tmp_path / "two")
    assert block_hashes(tmp_path / "one") == block_hashes(tmp_path / "two")
    assert 3 < report.bits_per_weight < 5
    model = load(tmp_path / "one")
    written = model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=4, do_sample=False, pad_token_id=1)
    assert written.shape == (1, 7)
