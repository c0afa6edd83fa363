"""Plans of the published models from their configs and headers alone, against hand-made numbers."""

from pathlib import Path
from typing import Any

import pytest
from header_only import llama_65b, opt_66b, write_headers

from bitpress.errors import InvalidJob, OutOfMemory
from bitpress.jobs import JobSpec, parse_spec
from bitpress.plans import PlanReport, Rates, SweepPlanReport
from bitpress.sweeps import SweepSpec
from bitpress_workers.pipeline.costs import factor_flops, hessian_flops, loop_flops
from bitpress_workers.pipeline.outlook import outlook
from bitpress_workers.pipeline.plan import Devices
from bitpress_workers.pipeline.sweep_outlook import sweep_outlook

GIB = 2**30
H200 = Devices("cuda", 8, 141 * GIB)
TOKENS = 128 * 2048
SEPTQ = {"kind": "septq", "bits": 2}
SPQR = {"kind": "spqr", "bits": 3}


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_headers(opt_66b(), tmp_path_factory.mktemp("opt-66b"))


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_headers(llama_65b(2), tmp_path_factory.mktemp("llama-65b"))


def spec_of(model: Path, method: dict[str, Any], **more: Any) -> JobSpec:
    return parse_spec(
        {"model": {"uri": str(model)}, "method": method, "calibration": {"dataset": "c4"}, "devices": 1} | more
    )


def plan(spec: JobSpec, devices: Devices = H200, rates: Rates | None = None) -> PlanReport:
    return outlook(spec, devices, rates, "statement" if rates else "nowhere")


def test_the_formulas_by_hand() -> None:
    # 18 blocks of 2048 columns, on and above the diagonal: (n + 2048) / 2n of 2 n^2 T.
    assert hessian_flops(36864, TOKENS, "cuda") == TOKENS * 36864 * (36864 + 2048)
    assert hessian_flops(100, 10, "cpu") == 2 * 10 * 100 * 100  # one short block: nothing to leave out
    assert hessian_flops(300, 1, "cpu") == 2 * (256 * 300 + 44 * 44)
    assert factor_flops(36864) == 2 * 36864**3 // 3
    products, elementwise = loop_flops(9216, 36864, 128)
    assert products == 9216 * 36864 * (36864 - 128)
    assert elementwise == 9216 * 36864 * 128


def test_opt_66b_with_septq(opt: Path) -> None:
    report = plan(spec_of(opt, SEPTQ))
    (shape,) = report.blocks
    assert shape.blocks == tuple(range(64))
    assert shape.linears["fc2"] == (9216, 36864)
    # q, k and v share one Hessian: three of 9216 columns are left, and that of fc2.
    narrow, wide = hessian_flops(9216, TOKENS, "cuda"), hessian_flops(36864, TOKENS, "cuda")
    assert shape.flops["hessian"] == 3 * narrow + wide
    assert shape.flops["factor"] == 3 * factor_flops(9216) + factor_flops(36864)
    # Four stages and the advance, each two operations for each of 12 x 9216^2 weights, and attention.
    assert shape.flops["forward"] == 5 * TOKENS * (2 * 12 * 9216**2 + 4 * 2048 * 9216)
    assert report.flops == 64 * sum(shape.flops.values())
    assert report.checkpoint_bytes == (opt / "model.safetensors").stat().st_size - header_bytes(opt)
    # 2 bits, 1 % of the weights in 32 bits, a row offset (32), scale (16) and zero (2) a row.
    shapes = {(9216, 9216): 4, (36864, 9216): 1, (9216, 36864): 1}
    bits = sum(
        count * (2 * m * n + 32 * (m * n // 100 + 1) + 32 * (m + 1) + 18 * m) for (m, n), count in shapes.items()
    )
    assert report.bits_per_weight == bits / (12 * 9216**2)
    assert shape.artifact_bytes == pytest.approx(report.bits_per_weight / 16 * shape.checkpoint_bytes, rel=1e-3)


def header_bytes(directory: Path) -> int:
    with (directory / "model.safetensors").open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def test_llama_65b_with_spqr(llama: Path) -> None:
    report = plan(spec_of(llama, SPQR))
    (shape,) = report.blocks
    narrow, wide = hessian_flops(8192, TOKENS, "cuda"), hessian_flops(22016, TOKENS, "cuda")
    assert shape.flops["hessian"] == 3 * narrow + wide
    assert shape.flops["forward"] == 2 * TOKENS * (2 * (4 * 8192**2 + 3 * 8192 * 22016) + 4 * 2048 * 8192)
    # 3 bits, two statistics of 3 bits for 16 weights, four 16-bit numbers for 256, 32 bits for 1 % of the weights.
    assert report.bits_per_weight == pytest.approx(3 + 6 / 16 + 64 / 256 + 0.32, abs=0.01)
    assert "1% of the weights are outliers; the threshold and the data decide" in report.assumptions


def test_times_follow_from_stated_rates_and_shrink_with_devices_where_work_can_be_shared(opt: Path) -> None:
    rates = Rates(gemm_gflops=50e3, half_gemm_gflops=600e3, loop_gflops=1000)
    one, eight = (plan(spec_of(opt, SEPTQ, devices=devices), H200, rates) for devices in (1, 8))
    assert one.phases["hessian"].seconds == pytest.approx(one.phases["hessian"].flops / 600e12)
    assert one.phases["factor"].seconds == pytest.approx(one.phases["factor"].flops / 50e12)
    for name in ("hessian", "forward"):
        assert eight.phases[name].seconds == pytest.approx((one.phases[name].seconds or 0) / 8)
    for name in ("solve", "evidence"):  # every tap has a multiple of sixteen tiles
        assert eight.phases[name].seconds == pytest.approx((one.phases[name].seconds or 0) / 8)
    assert eight.phases["factor"] == one.phases["factor"]  # SEPTQ's stages have one tap each
    assert one.seconds == pytest.approx(sum(phase.seconds or 0 for phase in one.phases.values()))
    assert plan(spec_of(opt, SEPTQ)).seconds is None


def test_shards_take_the_factors_of_a_stage_in_turn(llama: Path) -> None:
    rates = Rates(gemm_gflops=50e3, loop_gflops=1000)
    one, two, four = (plan(spec_of(llama, SPQR, devices=devices), H200, rates) for devices in (1, 2, 4))
    narrow, wide = 8192**3, 22016**3
    assert one.phases["factor"].seconds == pytest.approx(2 * 2 / 3 * (3 * narrow + wide) / 50e12)
    assert two.phases["factor"].seconds == pytest.approx(2 * 2 / 3 * (narrow + wide) / 50e12)
    assert four.phases["factor"].seconds == pytest.approx(2 * 2 / 3 * wide / 50e12)


def test_what_passes_between_shards_takes_time_where_a_link_is_stated(opt: Path) -> None:
    rates = Rates(gemm_gflops=50e3, loop_gflops=1000)
    assert "exchange" not in plan(spec_of(opt, SEPTQ), H200, rates).phases
    unlinked = plan(spec_of(opt, SEPTQ, devices=4), H200, rates)
    assert unlinked.phases["exchange"].seconds is None
    assert "times leave out what passes between shards: rates.link_gigabits is not stated" in unlinked.assumptions
    linked = plan(spec_of(opt, SEPTQ, devices=4), H200, rates.model_copy(update={"link_gigabits": 100}))
    # Half a matrix and half of the blocks on its diagonal, for each tap: three other Grams, a Gram and a factor.
    halves = sum(2 * n * (n + 2048) for n in (9216, 9216, 9216, 36864))
    dead, rows = 3 * 9216 + 36864, linked.artifact_bytes / 64
    seconds = 64 * 8 * ((3 + 2) * halves + dead + rows) / 100e9
    assert linked.phases["exchange"].seconds == pytest.approx(seconds, rel=1e-2)
    assert linked.phases["exchange"].bytes == pytest.approx(64 * ((3 + 3 * 2) * halves + 3 * (dead + rows)), rel=1e-2)
    assert linked.seconds == pytest.approx((unlinked.seconds or 0) + (linked.phases["exchange"].seconds or 0))


def test_independent_blocks_are_passed_once_or_twice_and_need_all_activations_on_every_device(opt: Path) -> None:
    rates = Rates(gemm_gflops=50e3, half_gemm_gflops=600e3, loop_gflops=1000)
    method = SEPTQ | {"propagation": "block"}
    exact, alone, eight = (
        plan(spec_of(opt, method, strategy=strategy, devices=devices), H200, rates)
        for strategy, devices in (("exact", 8), ("independent", 1), ("independent", 8))
    )
    one_pass = TOKENS * (2 * 12 * 9216**2 + 4 * 2048 * 9216)
    assert exact.blocks[0].flops["forward"] == 2 * one_pass
    assert alone.blocks[0].flops["forward"] == one_pass
    assert eight.blocks[0].flops["forward"] == int(one_pass * (2 - 1 / 8))
    # Ranges begin when those before them are passed: the forwards take as long as on one device, all else an eighth.
    seconds = [{name: phase.seconds for name, phase in report.phases.items()} for report in (alone, eight)]
    assert seconds[1]["forward"] == pytest.approx(seconds[0]["forward"])
    assert seconds[1]["hessian"] == pytest.approx(seconds[0]["hessian"] / 8)
    assert seconds[1]["factor"] == pytest.approx(seconds[0]["factor"] / 8)
    calibration = {"dataset": "c4", "num_sequences": 64}
    half = plan(spec_of(opt, method, strategy="independent", devices=8, calibration=calibration))
    assert eight.peak_device_bytes - half.peak_device_bytes >= TOKENS * 9216  # 2 bytes each, of half the tokens
    assert eight.bytes_read < exact.bytes_read * 0.4  # in both one shard reads all once more, for the artifact's check
    assert "exchange" not in alone.phases
    assert eight.phases["exchange"].bytes == 7 * 2 * TOKENS * 9216


def test_evaluation_costs_two_passes_and_the_head(opt: Path) -> None:
    evaluation = {"datasets": ["c4"], "max_sequences": 10}
    report = plan(spec_of(opt, SEPTQ, evaluation=evaluation))
    tokens = 10 * 2048
    blocks = 64 * tokens * (2 * 12 * 9216**2 + 4 * 2048 * 9216)
    assert report.phases["evaluation"].flops == 2 * (blocks + tokens * 2 * 50272 * 9216)
    assert "c4: 10 windows of 2048 tokens; the text is not read" in report.assumptions


def test_more_accelerators_than_there_are_is_no_plan(opt: Path) -> None:
    with pytest.raises(InvalidJob, match="asks for 9 devices; there are 8"):
        plan(spec_of(opt, SEPTQ, devices=9))


def refusal(spec: JobSpec, devices: Devices) -> str:
    with pytest.raises(OutOfMemory) as caught:
        plan(spec, devices)
    return caught.value.message


def test_shards_without_a_slice_send_no_grams(opt: Path) -> None:
    many = Devices("cuda", 64, 141 * GIB)
    assert (
        plan(spec_of(opt, SEPTQ, devices=64), many).peak_device_bytes
        <= plan(spec_of(opt, SEPTQ, devices=9), many).peak_device_bytes
    )


def test_a_refusal_names_the_smallest_change_that_fits(opt: Path) -> None:
    """Each is tried: what it names fits, and one less of the change does not."""
    spec = spec_of(opt, SEPTQ)
    needed, host = plan(spec, H200).peak_device_bytes, plan(spec, H200).peak_host_bytes
    enough = plan(spec_of(opt, SEPTQ, devices=2), H200).peak_device_bytes
    assert enough < needed
    message = refusal(spec, Devices("cuda", 8, enough, 2 * host))
    assert f"{needed / GIB:.1f} GiB on a device, which has {enough / GIB:.1f} GiB" in message
    assert message.endswith('it fits with "devices": 2')

    def shorter(sequences: int) -> JobSpec:
        return spec_of(opt, SEPTQ, calibration={"dataset": "c4", "num_sequences": sequences})

    fits = plan(shorter(40), H200).peak_device_bytes
    full = Devices("cuda", 1, fits, host)  # which has no room for activations
    assert refusal(spec, full).endswith("it fits with calibration.num_sequences 40, not 128")
    refusal(shorter(41), full)
    assert "it takes devices with more memory" in refusal(spec, Devices("cuda", 1, GIB))


def test_a_refusal_names_the_windows_that_fit_before_it_touches_the_calibration(llama: Path) -> None:
    calibration = {"dataset": "c4", "num_sequences": 8}
    evaluation = {"datasets": ["c4"], "max_sequences": 256}
    calibrated = plan(spec_of(llama, SPQR, calibration=calibration))
    enough, full = calibrated.peak_device_bytes, calibrated.peak_host_bytes
    devices = Devices("cuda", 1, enough, full)
    message = refusal(spec_of(llama, SPQR, calibration=calibration, evaluation=evaluation), devices)
    windows = int(message.split("it fits with ")[1].split()[0])
    fitting, one_more = (
        spec_of(llama, SPQR, calibration=calibration, evaluation=evaluation | {"max_sequences": number})
        for number in (windows, windows + 1)
    )
    assert plan(fitting, devices).peak_device_bytes <= enough
    refusal(one_more, devices)


def test_activations_wait_on_the_host_when_a_device_does_not_hold_them(opt: Path) -> None:
    spec = spec_of(opt, SEPTQ)
    kept = plan(spec)
    offloaded = plan(spec, Devices("cuda", 1, kept.peak_device_bytes - 1))
    assert (kept.activations, offloaded.activations) == ("device", "host")
    activations = 2 * TOKENS * 9216
    micro_batch = 2 * 2048 * 9216
    assert kept.peak_device_bytes - offloaded.peak_device_bytes == activations - 2 * micro_batch
    # Pinned memory is rounded up to powers of two, here from 36 MiB to 64.
    assert offloaded.peak_host_bytes - kept.peak_host_bytes == 128 * 64 * 2**20
    tight = offloaded.peak_host_bytes - 1
    message = refusal(spec, Devices("cuda", 1, kept.peak_device_bytes - 1, tight))
    assert message.startswith(f"the job needs about {kept.peak_device_bytes / GIB:.1f} GiB on a device, which has")
    assert f", or {offloaded.peak_host_bytes / GIB:.1f} GiB on this host, which has {tight / GIB:.1f} GiB" in message
    # What helps to no avail is counted all the same: no device with less could ever do.
    small = Devices("cuda", 1, offloaded.peak_device_bytes - 1)
    least = f"{offloaded.peak_device_bytes / GIB:.1f} GiB on a device, which has {small.memory_bytes / GIB:.1f} GiB"
    assert refusal(spec, small).startswith(f"the job needs about {least} (")
    assert plan(spec, Devices("cuda", 1, offloaded.peak_device_bytes)).activations == "host"


def test_no_more_is_taken_of_a_device_than_the_operator_says(opt: Path) -> None:
    spec = spec_of(opt, SEPTQ)
    assert "on a device, which has 10.0 GiB" in refusal(spec, H200.within(10))
    assert H200.within(1000) == H200.within(None) == H200


def test_on_a_host_fewer_shards_need_less(opt: Path) -> None:
    two = plan(spec_of(opt, SEPTQ, devices=2), Devices("cpu", 8, 2**50)).peak_host_bytes
    message = refusal(spec_of(opt, SEPTQ, devices=None), Devices("cpu", 8, two))
    assert message.endswith('it fits with "devices": 2')


def sweep(model: Path, methods: list[dict[str, Any]], on: Devices = H200, **more: Any) -> SweepPlanReport:
    spec = spec_of(model, methods[0], **more).model_dump() | {"method": methods}
    rates = Rates(gemm_gflops=50e3, loop_gflops=1000)
    return sweep_outlook(SweepSpec.model_validate(spec), on, rates, "statement")


GPTQ = {"kind": "gptq", "bits": 3, "propagation": "block", "order": "natural"}
EVALUATION = {"datasets": ["c4"], "max_sequences": 16}


def test_members_that_go_through_the_blocks_one_by_one_share_what_is_read_and_the_dense_model(opt: Path) -> None:
    methods = [SEPTQ, GPTQ, GPTQ | {"bits": 2}]
    found = sweep(opt, methods, evaluation=EVALUATION)
    alone = [plan(spec_of(opt, method, evaluation=EVALUATION)) for method in methods]
    for phase in ("forward", "hessian", "factor", "solve"):
        assert found.phases[phase].flops == sum(report.phases[phase].flops for report in alone)
    # One pass of the dense model, one of each member; each job alone has one of both.
    assert found.phases["evaluation"].flops == 2 * alone[0].phases["evaluation"].flops
    files = [report.artifact_bytes for report in alone]
    assert found.bytes_written == sum(files) == found.artifact_bytes
    outer = files[0] - sum(len(shape.blocks) * shape.artifact_bytes for shape in alone[0].blocks)
    read = alone[0].bytes_read + files[1] + files[2] - 2 * outer
    assert found.bytes_read == pytest.approx(read, rel=1e-7)  # headers of blocks differ by a digit
    assert found.peak_device_bytes > max(report.peak_device_bytes for report in alone)
    assert found.seconds == pytest.approx(sum(phase.seconds or 0 for phase in found.phases.values()))


def test_members_that_are_calibrated_independently_share_grams_and_factors_that_are_alike(opt: Path) -> None:
    methods = [GPTQ, GPTQ | {"bits": 2}, GPTQ | {"damping": 0.1}]
    found = sweep(opt, methods, strategy="independent", devices=4)
    alone = plan(spec_of(opt, GPTQ, strategy="independent", devices=4), rates=Rates(gemm_gflops=50e3, loop_gflops=1000))
    assert {name: found.phases[name].flops / phase.flops for name, phase in alone.phases.items() if phase.flops} == {
        "forward": 1, "hessian": 1, "factor": 2, "solve": 3, "evidence": 3,
    }  # fmt: skip
    assert found.phases["exchange"] == alone.phases["exchange"]
    assert found.phases["factor"].seconds == pytest.approx(2 * (alone.phases["factor"].seconds or 0))


def test_a_sweep_that_does_not_fit_may_fit_with_fewer_members(opt: Path) -> None:
    methods = [GPTQ | {"bits": bits} for bits in (2, 3, 4, 5)]
    one, host = plan(spec_of(opt, GPTQ)), plan(spec_of(opt, GPTQ)).peak_host_bytes
    with pytest.raises(OutOfMemory, match="it fits as a job of its own, and with fewer methods in one sweep"):
        sweep(opt, methods, Devices("cuda", 1, one.peak_device_bytes, host))
