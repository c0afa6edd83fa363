"""PTQ1.61's restorative stage: documents, adapter, merge, and jobs with a second pass on the merged model."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import bucket
import obstore
import pytest
import torch
from obstore.store import from_url
from pipeline_helpers import block_hashes, make_spec, run
from small_models import build
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from bitpress.errors import CalibrationError, NumericalError, OutOfMemory, UnsupportedModel
from bitpress.formats import CompressedLinear
from bitpress.jobs import JobSpec, Progress
from bitpress.methods import LoRAPreprocessing, PTQ161Config, RTNConfig
from bitpress_service.artifactstore import ArtifactStore
from bitpress_workers.local_run import DirectoryRecorder, run_local
from bitpress_workers.methods import compress, create
from bitpress_workers.models.checkpoint import Checkpoint
from bitpress_workers.models.outline import Outline
from bitpress_workers.models.skeleton import Skeleton
from bitpress_workers.pipeline.fleet import local_devices, make_local_fleet
from bitpress_workers.pipeline.plan import Devices, make_plan
from bitpress_workers.pipeline.preprocessing import check_adapters, training_documents
from bitpress_workers.pipeline.restoration import Restoration, adapted_linears, save_checkpoint
from bitpress_workers.pipeline.run import Site, run_job
from bitpress_workers.pipeline.sizes import model_sizes

CONFIG = LoRAPreprocessing(rank=2, alpha=4, steps=6, learning_rate=1e-2)
DOCUMENT = torch.randint(0, 61, (24,), generator=torch.Generator().manual_seed(0))
METHOD: dict[str, Any] = {"kind": "ptq161", "epochs": 1}
PREPROCESSING = {"rank": 2, "alpha": 4, "steps": 3, "learning_rate": 1e-3}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("llama")
    build("llama").save_pretrained(path)
    return Checkpoint.open(str(path))


def first_pass(skeleton: Skeleton) -> dict[str, CompressedLinear]:
    """Every linear at 4 bits, by its full name."""
    linears = {}
    for index in range(skeleton.num_blocks):
        block, prefix = skeleton.load_block(index), skeleton.block_name(index)
        for tap in skeleton.family.taps:
            for name in tap.linears:
                weight_OI = block.get_parameter(f"{name}.weight").data
                linears[f"{prefix}.{name}"] = compress(weight_OI, None, RTNConfig(bits=4))
    return linears


def begun(checkpoint: Checkpoint) -> tuple[Restoration, dict[str, CompressedLinear]]:
    skeleton = Skeleton(checkpoint)
    linears = first_pass(skeleton)
    return Restoration(skeleton.assemble(), linears, CONFIG, torch.device("cpu")), linears


def trained(checkpoint: Checkpoint) -> tuple[list[float], dict[str, Tensor]]:
    restoration, _ = begun(checkpoint)
    losses = [restoration.train(step, [DOCUMENT, DOCUMENT]) for step in range(CONFIG.steps)]
    return losses, restoration.merge()


@pytest.mark.parametrize(
    ("model", "expected"),
    [("llama", {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj", "down_proj"}),
     ("opt", {"q_proj", "k_proj", "v_proj"}), ("bloom", {"query_key_value"})],
)  # fmt: skip
def test_attention_s_output_and_plain_mlps_get_no_adapter(model: str, expected: set[str], tmp_path: Path) -> None:
    build(model).save_pretrained(tmp_path)
    linears = list(first_pass(Skeleton(Checkpoint.open(str(tmp_path)))))
    assert {name.rpartition(".")[2] for name in adapted_linears(linears)} == expected


def test_an_adapter_that_was_not_trained_changes_nothing(llama: Checkpoint) -> None:
    restoration, linears = begun(llama)
    merged = restoration.merge()
    assert merged.keys() == linears.keys()
    assert all(torch.equal(merged[name], linear.dequantize()) for name, linear in linears.items())


def test_training_lowers_the_loss_and_changes_adapted_linears_by_a_low_rank(llama: Checkpoint) -> None:
    losses, merged = trained(llama)
    _, linears = begun(llama)
    assert losses[-1] < losses[0]
    adapted = adapted_linears(list(linears))
    for name, linear in linears.items():
        difference_OI = merged[name] - linear.dequantize()
        if name in adapted:
            values = torch.linalg.svdvals(difference_OI.double())
            assert values[0] > 1e-4
            assert values[CONFIG.rank] < 1e-4 * values[0]
        else:
            assert not difference_OI.any()


def test_the_same_documents_give_the_same_bits(llama: Checkpoint) -> None:
    (losses, merged), (again, merged_again) = trained(llama), trained(llama)
    assert losses == again
    assert all(torch.equal(merged[name], weight_OI) for name, weight_OI in merged_again.items())


def test_a_loss_that_is_not_finite_is_an_error(llama: Checkpoint) -> None:
    restoration, _ = begun(llama)
    for parameter in restoration._model.parameters():
        if parameter.requires_grad:
            parameter.data.fill_(float("inf"))
    with pytest.raises(NumericalError, match="training step 4 is nan"):
        restoration.train(3, [DOCUMENT, DOCUMENT])


def test_the_checkpoint_written_is_the_old_one_but_for_the_merged_linears(llama: Checkpoint, tmp_path: Path) -> None:
    skeleton = Skeleton(llama)
    linears = first_pass(skeleton)
    weights = {name: linear.dequantize() for name, linear in linears.items()}
    blocks = [skeleton.block_tensor_names(index) for index in range(skeleton.num_blocks)]
    store = ArtifactStore.from_url(tmp_path.as_uri())
    save_checkpoint(llama, [skeleton.outer_tensor_names(), *blocks], weights, store, "merged/")
    old, new = (AutoModelForCausalLM.from_pretrained(path) for path in (llama.path, tmp_path / "merged"))
    expected = old.state_dict() | {f"{name}.weight": weight_OI for name, weight_OI in weights.items()}
    assert all(torch.equal(tensor, expected[name]) for name, tensor in new.state_dict().items())
    Skeleton(Checkpoint.open(str(tmp_path / "merged"))).load_block(2)


def test_a_model_without_any_linear_to_adapt_is_refused() -> None:
    check_adapters(["self_attn.q_a_proj", "self_attn.q_proj"])
    with pytest.raises(UnsupportedModel, match=r"up_proj.*self_attn\.q_a_proj"):
        check_adapters(["self_attn.q_a_proj", "self_attn.o_proj"])


def write_documents(path: Path, texts: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return str(path)


def test_documents_are_shuffled_truncated_and_begun_again(opt_mini: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(opt_mini)
    texts = ["one two three", "", *(f"number {n} " * n for n in range(2, 8))]
    dataset = write_documents(tmp_path / "documents.jsonl", texts)
    chosen = training_documents(CONFIG, dataset, 9, tokenizer)
    assert len(chosen) == 12
    expected = [tokenizer(text).input_ids[:9] for text in texts if len(tokenizer(text).input_ids) > 1]
    passes = [[tokens.tolist() for tokens in chosen[start : start + len(expected)]] for start in (0, len(expected))]
    assert sorted(passes[0]) == sorted(expected) and passes[0] != expected
    assert all(tokens in expected for tokens in passes[1])
    again = training_documents(CONFIG, dataset, 9, tokenizer)
    assert all(torch.equal(first, second) for first, second in zip(chosen, again, strict=True))


def test_a_text_is_cut_into_pieces(opt_mini: Path, texts: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(opt_mini)
    dataset = str(texts / "calibration.txt")
    chosen = training_documents(CONFIG, dataset, 64, tokenizer)
    whole = tokenizer((texts / "calibration.txt").read_text(), verbose=False).input_ids
    starts = [next(n for n in range(0, len(whole), 64) if whole[n : n + 64] == part.tolist()) for part in chosen]
    assert len(set(starts)) == 12


def test_documents_with_nothing_to_predict_are_refused(opt_mini: Path, tmp_path: Path) -> None:
    dataset = write_documents(tmp_path / "empty.jsonl", ["", ""])
    with pytest.raises(CalibrationError, match="2 tokens or more"):
        training_documents(CONFIG, dataset, None, AutoTokenizer.from_pretrained(opt_mini))


def restoring(directory: Path) -> dict[str, Any]:
    """The method with a preprocessing of seconds, on documents of some ten tokens."""
    dataset = write_documents(directory / "documents.jsonl", [f"The river rose {n} feet in a night." for n in range(9)])
    return METHOD | {"preprocessing": PREPROCESSING | {"dataset": dataset}}


def short_spec(model: Path, texts: Path, method: dict[str, Any], **overrides: Any) -> JobSpec:
    calibration = {"dataset": str(texts / "calibration.txt"), "num_sequences": 5, "sequence_length": 32}
    evaluation = {"datasets": [str(texts / "evaluation.txt")], "sequence_length": 32, "max_sequences": 4}
    return make_spec(model, texts, method, **{"calibration": calibration, "evaluation": evaluation} | overrides)


def test_a_job_with_preprocessing_is_measured_against_the_original(opt_mini: Path, texts: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    spec = short_spec(opt_mini, texts, restoring(tmp_path))
    report = run_local(spec, tmp_path / "restored", seen.append)
    plain = run(short_spec(opt_mini, texts, METHOD), tmp_path / "plain")
    assert list(report.phases) == ["preparing", "restoring", "calibrating", "evaluating", "checking"]
    phases = list(dict.fromkeys(progress.phase for progress in seen))
    assert phases == ["preparing", "restoring", "calibrating", "evaluating", "publishing"]
    fractions = [progress.fraction for progress in seen]
    assert fractions == sorted(fractions)
    dataset = str(texts / "evaluation.txt")
    assert report.perplexity[dataset].dense == plain.perplexity[dataset].dense
    assert report.perplexity[dataset].compressed != plain.perplexity[dataset].compressed
    assert report.bytes_before == plain.bytes_before and report.bytes_after == plain.bytes_after
    assert {path.name for path in (tmp_path / "restored").iterdir()} == {
        path.name for path in (tmp_path / "plain").iterdir()
    }
    on_two = run(spec.model_copy(update={"devices": 2}), tmp_path / "two")
    assert block_hashes(tmp_path / "two") == block_hashes(tmp_path / "restored")
    assert on_two.perplexity == report.perplexity
    assert set(block_hashes(tmp_path / "plain").values()).isdisjoint(block_hashes(tmp_path / "restored").values())


def test_an_interrupted_job_restores_again_and_uses_its_published_blocks(
    opt_mini: Path, texts: Path, tmp_path: Path
) -> None:
    spec = short_spec(opt_mini, texts, restoring(tmp_path), evaluation={"datasets": []})
    run(spec, tmp_path / "whole")

    def interrupt(progress: Progress) -> None:
        if progress.phase == "calibrating" and progress.blocks_done == 2:
            raise KeyboardInterrupt

    out = tmp_path / "interrupted"
    with pytest.raises(KeyboardInterrupt):
        run_local(spec, out, interrupt)
    assert not (out / "restoring").exists()
    written = {path: path.stat().st_mtime_ns for path in (out / "blocks").glob("*.safetensors")}
    assert len(written) == 2
    run(spec, out)
    assert block_hashes(out) == block_hashes(tmp_path / "whole")
    assert all(path.stat().st_mtime_ns == time for path, time in written.items())


def test_shards_read_the_restored_checkpoint_from_a_bucket(
    opt_mini: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on hosts that share nothing else; in the end only the artifact is left."""
    spec = short_spec(opt_mini, texts, restoring(tmp_path), evaluation={"datasets": []}, devices=2)
    local = run(spec, tmp_path / "local")
    (tmp_path / "served" / "state").mkdir(parents=True)
    with bucket.serving(tmp_path / "served", monkeypatch):
        site = Site(local_devices(), make_local_fleet, "s3://state/artifacts", tmp_path / "scratch")
        report = run_job(spec, str, DirectoryRecorder(tmp_path / "nothing", lambda _: None), site)
        left = [found["path"] for page in obstore.list(from_url(site.store_url)) for found in page]
    assert [block.sha256 for block in report.blocks] == [block.sha256 for block in local.blocks]
    assert "manifest.json" in left and not any(key.startswith("restoring/") for key in left)


def test_a_model_that_does_not_fit_as_a_whole_is_refused_in_the_plan(opt_mini: Path, texts: Path) -> None:
    checkpoint = Checkpoint.open(str(opt_mini))
    outline = Outline(checkpoint)
    method = create(PTQ161Config(epochs=1))
    specs = [short_spec(opt_mini, texts, METHOD | more) for more in ({}, {"preprocessing": PREPROCESSING})]
    sizes = model_sizes(outline, checkpoint)
    sizes = replace(sizes, blocks=sizes.blocks * 2000)
    plain, restoring = (make_plan(spec, method, sizes, 0, Devices("cpu", 1, 2**60)).peak_bytes for spec in specs)
    assert restoring > plain + 2 * 4 * sum(block.num_weights for block in sizes.blocks) * 0.9
    with pytest.raises(OutOfMemory):
        make_plan(specs[1], method, sizes, 0, Devices("cpu", 1, restoring - 1))
