"""Zero-shot tasks, by the names that lm-eval has for them."""

from difflib import get_close_matches
from typing import Annotated

from pydantic import AfterValidator, Field

KNOWN_TASKS = ("lambada_openai", "piqa", "arc_easy", "arc_challenge", "boolq", "hellaswag", "winogrande")


def _check_task(value: str) -> str:
    if value in KNOWN_TASKS:
        return value
    near = get_close_matches(value, KNOWN_TASKS, n=2, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    raise ValueError(f"no task {value!r}; {hint}The tasks are {', '.join(KNOWN_TASKS)}")


Task = Annotated[str, Field(max_length=100), AfterValidator(_check_task)]
