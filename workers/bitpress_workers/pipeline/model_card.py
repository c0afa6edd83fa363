"""The artifact's README.md, with the metadata that model hubs read; the same for every run of a job.

Metadata: https://huggingface.co/docs/hub/model-cards#model-card-metadata; its values are written as JSON, which
YAML includes.
"""

import json
import re
from importlib.metadata import version
from pathlib import PurePath

from bitpress.jobs import JobSpec
from bitpress_workers.pipeline.quality import Quality

HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)
HUB_DATASETS = {
    "wikitext2": "Salesforce/wikitext",
    "ptb": "ptb-text-only/ptb_text_only",
    "ptb-new": "ptb-text-only/ptb_text_only",
    "c4": "allenai/c4",
    "c4-new": "allenai/c4",
}


def model_card(spec: JobSpec, bits_per_weight: float, quality: Quality) -> str:
    """The page. Says nothing of where and for how long the job ran."""
    name = PurePath(spec.model.uri).name
    parts = [
        _metadata(spec, name, quality),
        f"# {name}, {spec.method.kind}, {bits_per_weight:.3f} bits per weight",
        f"`{name}` compressed by Bitpress {version('bitpress')}. The bits count everything that is stored of the "
        "blocks' linears; embeddings, norms and the head are those of the original.",
        *([_quality(quality)] if quality.perplexity else []),
        "## Use",
        "```python\n"
        "from bitpress.loading import load\n\n"
        'model = load("path/to/this/directory")  # a transformers model\n'
        "```",
        "Without Bitpress it does not load, rather than with weights that are not its own. `report.html` is the whole "
        "proof; `bitpress replay manifest.json` makes the same files again.",
        "## How it was made",
        "```json\n" + _recipe(spec) + "\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(spec: JobSpec, name: str, quality: Quality) -> str:
    used = dict.fromkeys(HUB_DATASETS[text] for text in (spec.calibration.dataset,) if text in HUB_DATASETS)
    facts: dict[str, object] = {
        **({"base_model": spec.model.uri} if HUB_NAME.fullmatch(spec.model.uri) else {}),
        "base_model_relation": "quantized",
        "library_name": "bitpress",
        "pipeline_tag": "text-generation",
        "tags": ["bitpress", spec.method.kind, "quantized"],
        **({"datasets": list(used)} if used else {}),
    }
    if quality.perplexity:
        facts["model-index"] = [{"name": name, "results": [_result(text, quality) for text in quality.perplexity]}]
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in facts.items()]
    return "\n".join(["---", *lines, "---"])


def _result(text: str, quality: Quality) -> dict[str, object]:
    return {
        "task": {"type": "text-generation"},
        "dataset": {"type": HUB_DATASETS.get(text, "text"), "name": PurePath(text).name},
        "metrics": [{"type": "perplexity", "value": round(quality.perplexity[text].compressed, 4)}],
    }


def _quality(quality: Quality) -> str:
    lines = ["| text | perplexity, dense | compressed | KL divergence | same top token |", "| --- |" + " ---: |" * 4]
    for text, found in quality.perplexity.items():
        apart = quality.divergence[text]
        figures = f"{found.dense:.3f} | {found.compressed:.3f} | {apart.kl:.5f} | {apart.agreement:.2%}"
        lines.append(f"| {PurePath(text).name} | {figures} |")
    return "\n".join(lines)


def _recipe(spec: JobSpec) -> str:
    return spec.model_dump_json(indent=1, include={"method", "calibration", "evaluation", "strategy"})
