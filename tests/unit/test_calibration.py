"""Which tokens a job calibrates and is measured on."""

import json
import logging
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast, PythonBackend

from bitpress.errors import CalibrationError
from bitpress.jobs import Calibration
from bitpress_workers.pipeline.calibration import (
    calibration_tokens,
    evaluation_windows,
    tokens_sha256,
)
from bitpress_workers.pipeline.documents import load_documents


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, the word being its own number, from 1; every text starts with token 0."""
    backend = Tokenizer(WordLevel({"<s>": 0} | {str(number): number for number in range(1, 1000)}, unk_token="<s>"))
    backend.pre_tokenizer = WhitespaceSplit()
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<s>", model_max_length=4)


def words(numbers: range) -> str:
    return " ".join(map(str, numbers))


def calibration(dataset: Path | str, num_sequences: int, sequence_length: int = 8, seed: int = 0) -> Calibration:
    return Calibration(dataset=str(dataset), num_sequences=num_sequences, sequence_length=sequence_length, seed=seed)


def write_jsonl(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.mark.parametrize("seed", [0, 5])
def test_text_is_one_stream_sampled_by_offset(tmp_path: Path, tokenizer: PreTrainedTokenizerFast, seed: int) -> None:
    (tmp_path / "text.txt").write_text(words(range(1, 500)))
    random.seed(seed)
    offsets = [random.randint(0, 500 - 8 - 1) for _ in range(6)]

    tokens_NS = calibration_tokens(calibration(tmp_path / "text.txt", 6, seed=seed), tokenizer)

    assert tokens_NS.dtype == torch.int64
    assert tokens_NS.tolist() == [list(range(offset, offset + 8)) for offset in offsets]


def test_the_published_draws_of_seed_0(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Which offsets and documents Python's Mersenne Twister gives, as the published loaders draw them."""
    (tmp_path / "text.txt").write_text(words(range(1, 500)))
    tokens_NS = calibration_tokens(calibration(tmp_path / "text.txt", 6), tokenizer)
    assert tokens_NS[:, 0].tolist() == [432, 197, 388, 455, 215, 20]

    texts = [words(range(first, first + length)) for first, length in [(1, 3), (100, 30), (200, 6), (300, 9), (400, 7)]]
    documents = write_jsonl(tmp_path / "documents.jsonl", [{"text": text} for text in texts])
    tokens_NS = calibration_tokens(calibration(documents, 8), tokenizer)
    # (document, offset): (3, 1) (4, 0) (3, 1) (3, 1) (4, 0) (1, 16) (1, 9) (1, 3); token 0 stands before each document.
    assert tokens_NS[:, 1].tolist() == [301, 400, 301, 301, 400, 116, 109, 103]


def test_documents_are_drawn_until_one_is_long_enough(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [words(range(first, first + length)) for first, length in [(1, 3), (100, 30), (200, 6), (300, 9), (400, 7)]]
    documents = write_jsonl(tmp_path / "documents.jsonl", [{"text": text, "url": "x"} for text in texts])
    encoded = [[0, *map(int, text.split())] for text in texts]
    random.seed(0)
    expected = []
    while len(expected) < 20:
        tokens = encoded[random.randint(0, len(encoded) - 1)]
        if len(tokens) >= 8:
            offset = random.randint(0, len(tokens) - 8 - 1) if len(tokens) > 8 else 0
            expected.append(tokens[offset : offset + 8])

    assert calibration_tokens(calibration(documents, 20), tokenizer).tolist() == expected


def test_parquet_is_read_as_documents(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [words(range(50)), words(range(3)), words(range(60, 90))]
    pyarrow.parquet.write_table(pa.table({"id": [1, 2, 3], "text": texts}), tmp_path / "d.parquet")
    rows = write_jsonl(tmp_path / "d.jsonl", [{"text": text} for text in texts])

    assert load_documents(str(tmp_path / "d.parquet"), "calibration").texts == tuple(texts)
    assert torch.equal(
        calibration_tokens(calibration(tmp_path / "d.parquet", 5), tokenizer),
        calibration_tokens(calibration(rows, 5), tokenizer),
    )


def test_text_of_exactly_one_sequence_has_offset_zero(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "text.txt").write_text(words(range(1, 8)))

    tokens_NS = calibration_tokens(calibration(tmp_path / "text.txt", 2), tokenizer)

    assert tokens_NS.tolist() == [list(range(8))] * 2


def test_windows_do_not_overlap_and_the_tail_is_dropped(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "text.txt").write_text(words(range(1, 30)))
    dataset = str(tmp_path / "text.txt")

    windows_KS = evaluation_windows(dataset, 8, None, tokenizer).tokens_KS

    assert windows_KS.dtype == torch.int64
    assert windows_KS.tolist() == [list(range(start, start + 8)) for start in (0, 8, 16)]
    assert torch.equal(evaluation_windows(dataset, 8, 2, tokenizer).tokens_KS, windows_KS[:2])


def test_documents_are_joined_for_evaluation(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = write_jsonl(tmp_path / "d.jsonl", [{"text": words(range(start, start + 5))} for start in range(1, 21, 5)])

    windows = evaluation_windows(str(rows), 8, None, tokenizer)

    assert windows.tokens_KS.tolist() == [list(range(8)), list(range(8, 16))]
    # "1 ... 7", and " 9 10 ... 15": what begins a window is not predicted.
    assert windows.num_bytes == (len("1 2 3 4 5 6 7"), len(" 9 10 11 12 13 14 15"))


def test_bytes_are_counted_in_utf8_over_all_but_the_first_token(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    (tmp_path / "text.txt").write_text("1 über 3 4 5 6 7 8 9 日本 11 12 13 14 15", encoding="utf-8")

    windows = evaluation_windows(str(tmp_path / "text.txt"), 8, None, tokenizer)

    assert windows.num_bytes == (len(b"1 \xc3\xbcber 3 4 5 6 7"), len(" 9 日本 11 12 13 14 15".encode()))


def test_a_tokenizer_that_keeps_no_places_gives_no_bytes(tmp_path: Path) -> None:
    class Letters(PythonBackend):
        """A token for each letter."""

        vocab_size = 128

        def get_vocab(self) -> dict[str, int]:
            return {chr(number): number for number in range(128)}

        def _tokenize(self, text: str) -> list[str]:
            return list(text)

        def _convert_token_to_id(self, token: str) -> int:
            return ord(token)

        def _convert_id_to_token(self, index: int) -> str:
            return chr(index)

    (tmp_path / "text.txt").write_text("abcdefghij")

    windows = evaluation_windows(str(tmp_path / "text.txt"), 8, None, Letters())

    assert windows.num_bytes is None
    assert windows.tokens_KS.tolist() == [list(b"abcdefgh")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.txt", "1 2 3", "expected a text of 8 tokens or more, the longest has 4"),
        ("text.txt", " ", "expected a text of 8 tokens or more, the longest has 1"),
        ("text.txt", "", "text.txt: the file is empty"),
        ("d.jsonl", '{"text": "1 2 3"}\n{"text": "1 2"}\n', "expected a text of 8 tokens or more, the longest has 4"),
        ("d.jsonl", "", "d.jsonl: the file is empty"),
        ("text.txt", b"\xff\xfe\xfa", "text.txt: cannot be read"),
        ("d.jsonl", '{"text": ', "d.jsonl: cannot be read"),
        ("d.jsonl", "\n", "d.jsonl"),
        ("d.jsonl", "[1]\n", "d.jsonl"),
        ("d.jsonl", '{"content": "1 2"}\n', "expected a string 'text' in row 0, found None"),
        ("d.jsonl", '{"text": "1"}\n{"text": null}\n', "expected a string 'text' in row 1, found None"),
        ("d.parquet", "not parquet", "d.parquet: cannot be read"),
    ],
)
def test_text_that_will_not_do(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, name: str, content: str | bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(CalibrationError) as caught:
        calibration_tokens(calibration(tmp_path / name, 1), tokenizer)

    assert message in caught.value.message


def test_text_shorter_than_one_window(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    (tmp_path / "text.txt").write_text("1 2 3")

    with pytest.raises(CalibrationError, match="expected a text of 8 tokens or more, the longest has 4"):
        evaluation_windows(str(tmp_path / "text.txt"), 8, None, tokenizer)


@pytest.mark.parametrize(("name", "reason"), [("none", "No such file or directory"), ("n" * 300, "File name too long")])
def test_file_that_is_not_there(tmp_path: Path, name: str, reason: str) -> None:
    with pytest.raises(CalibrationError, match=rf"{name}\.txt: cannot be read: {reason}"):
        load_documents(str(tmp_path / f"{name}.txt"), "evaluation")


def test_directory_in_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").mkdir()

    with pytest.raises(CalibrationError, match=r"d\.jsonl: cannot be read"):
        load_documents(str(tmp_path / "d.jsonl"), "evaluation")


def test_name_that_looks_like_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("wrong")
    (tmp_path / "[a].txt").write_text("right")

    assert load_documents(str(tmp_path / "[a].txt"), "evaluation").texts == ("right",)


def test_line_ends_and_blanks_of_a_text_are_kept(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(" a \n\n\nb\n")

    assert load_documents(str(tmp_path / "text.txt"), "evaluation").texts == (" a \n\n\nb\n",)


@pytest.fixture
def data_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITPRESS_DATA_DIR", str(tmp_path))
    for name in ("wikitext2", "ptb", "c4"):
        (tmp_path / name).mkdir()
    return tmp_path


def test_wikitext2_rows_are_joined_as_the_reference_does(data_directory: Path) -> None:
    (data_directory / "wikitext2" / "wiki.train.txt").write_text(" = A = \n \n text \n")
    (data_directory / "wikitext2" / "wiki.test.txt").write_text(" = B = \n\n")

    assert load_documents("wikitext2", "calibration").texts == (" = A = \n\n\n\n\n text \n",)
    assert load_documents("wikitext2", "evaluation").texts == (" = B = \n\n\n",)


@pytest.mark.parametrize(
    ("name", "trained_on", "measured_on"),
    [("ptb", "train one\n\ntwo", "valid one\n\ntwo"), ("ptb-new", "train one two", "test one two")],
)
def test_both_variants_of_ptb(data_directory: Path, name: str, trained_on: str, measured_on: str) -> None:
    for part in ("train", "valid", "test"):
        (data_directory / "ptb" / f"ptb.{part}.txt").write_text(f" {part} one \n two \n")

    assert load_documents(name, "calibration").texts == (trained_on,)
    assert load_documents(name, "evaluation").texts == (measured_on,)


def write_c4(directory: Path, texts: list[str]) -> None:
    write_jsonl(directory / "c4" / "c4_train.jsonl", [{"text": "a"}, {"text": "b"}])
    write_jsonl(directory / "c4" / "c4_validation.jsonl", [{"text": text} for text in texts])


def test_c4_new_is_the_first_documents_joined_and_cut(data_directory: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    write_c4(data_directory, ["1 2 3"] * 1000 + ["4 5 6"] * 200)

    assert load_documents("c4-new", "calibration").texts == ("a", "b")
    windows_KS = evaluation_windows("c4-new", 8, None, tokenizer).tokens_KS
    stream = [0, *[1, 2, 3] * 1000, *[4, 5, 6] * 100]
    assert windows_KS.flatten().tolist() == stream[: 256 * 8]
    assert len(evaluation_windows("c4-new", 16, None, tokenizer)) == 3301 // 16
    assert len(evaluation_windows("c4-new", 8, 7, tokenizer)) == 7


def test_c4_is_256_windows_drawn_with_seed_0(data_directory: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    texts = [words(range(first, first + length)) for first, length in [(1, 3), (100, 30), (200, 6), (300, 9), (400, 7)]]
    write_c4(data_directory, texts)
    random.seed(0)
    expected = []
    while len(expected) < 256:
        tokens = [0, *map(int, texts[random.randint(0, len(texts) - 1)].split())]
        if len(tokens) >= 8:
            offset = random.randint(0, len(tokens) - 8 - 1) if len(tokens) > 8 else 0
            expected.append(tokens[offset : offset + 8])

    windows = evaluation_windows("c4", 8, None, tokenizer)

    assert windows.tokens_KS.tolist() == expected
    assert windows.tokens_KS[:2, 1].tolist() == [301, 400]
    assert windows.num_bytes is not None
    assert windows.num_bytes[:2] == (len(" 301 302 303 304 305 306 307"), len("400 401 402 403 404 405 406"))
    assert evaluation_windows("c4", 8, 5, tokenizer).tokens_KS.tolist() == expected[:5]


def test_known_set_without_the_split(data_directory: Path) -> None:
    (data_directory / "wikitext2" / "wiki.train.txt").touch()

    with pytest.raises(CalibrationError, match=r"expected a file \*\.txt for evaluation, found wiki\.train\.txt"):
        load_documents("wikitext2", "evaluation")


def test_nothing_is_said_of_texts_longer_than_the_models_context(
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerFast,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "text.txt").write_text(words(range(100)))
    with caplog.at_level(logging.WARNING):
        evaluation_windows(str(tmp_path / "text.txt"), 8, None, tokenizer)

    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_hash_depends_on_tokens_and_shape() -> None:
    tokens = torch.arange(16).view(2, 8)

    assert tokens_sha256(tokens) == tokens_sha256(tokens.clone())
    assert len({tokens_sha256(t) for t in (tokens, tokens.view(4, 4), tokens.flip(0))}) == 3
    assert tokens_sha256(tokens.t().contiguous().t()) == tokens_sha256(tokens)
