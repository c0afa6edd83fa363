"""Holds the artifact, as a fresh process opens it from the object store, against the model that was calibrated."""

import multiprocessing
import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from bitpress.artifacts import ArtifactFile, LoadCheck
from bitpress.errors import BitpressError, OutOfMemory
from bitpress_service.artifactstore import ArtifactStore
from bitpress_workers.pipeline.estimate import BASE_BYTES
from bitpress_workers.pipeline.memory import available_host_bytes, out_of_memory
from bitpress_workers.pipeline.opening import Opened, Opening, StoredFile, run_artifact
from bitpress_workers.pipeline.publish import OUTER

WEIGHTS = ".safetensors"
UNPACKED = 8  # of the bytes of the largest block: what its largest linear takes in float32, from 2 bits on
POLL_SECONDS, ENDING_SECONDS = 1.0, 10.0

How = Literal["whole", "by-block"]

# Largest relative difference that passes, by the calibrated forward's dtype. Equal operations give equal bits on one
# kind of device; the artifact is opened on a CPU, in float32.
TOLERANCES = {torch.float32: 1e-4, torch.float16: 8 * 2.0**-10, torch.bfloat16: 8 * 2.0**-7, torch.float64: 1e-4}
REASONS = {
    torch.float32: "sums in another order",
    torch.float64: "opened in float32",
    torch.float16: "calibrated in float16, opened in float32",
    torch.bfloat16: "calibrated in bfloat16, opened in float32",
}


@dataclass(frozen=True)
class LoadChecker:
    """Checks one job's artifact.

    tokens, logits: the prompt and what the calibrated model ends it with, [1, V]; None when its evaluation failed.
    scratch: a directory that may be made and filled. memory_bytes: most that may be taken of this host; None: all
    that is free. threads: of the fresh process; 0: torch's default. watch: called while that is waited for; may raise.
    """

    tokens: list[int]
    logits: Tensor | None
    store_url: str
    scratch: Path
    memory_bytes: int | None
    threads: int
    watch: Callable[[], None]

    def run(self, files: Mapping[ArtifactFile, str]) -> LoadCheck:
        """files: what the model is loaded from, with their keys. Raises what another attempt may get over."""
        if self.logits is None:
            return LoadCheck(outcome="not-done", detail="the evaluation failed, which computes what to expect")
        stored = {file.name: StoredFile(key, file.sha256) for file, key in files.items() if _is_read(file.name)}
        by_block = not self._fits_whole(files)
        opening = Opening(self.store_url, stored, self.scratch / "opened", by_block, self.threads)
        try:
            return self._compared(*self._open(opening), self.logits)
        except OutOfMemory as error:
            return LoadCheck(outcome="not-done", detail=error.message)
        except BitpressError as error:
            if error.retryable:
                raise
            return LoadCheck(outcome="failed", detail=error.message)

    def _open(self, opening: Opening) -> tuple[Opened, How]:
        """Open the artifact; by block, when memory does run out for the whole."""
        if not opening.by_block:
            with suppress(OutOfMemory):
                return self._try(opening), "whole"
        return self._try(replace(opening, by_block=True)), "by-block"

    def _try(self, opening: Opening) -> Opened:
        shutil.rmtree(opening.directory, ignore_errors=True)
        opening.directory.mkdir(parents=True)
        try:
            return in_fresh_process(opening, self.watch)
        finally:
            shutil.rmtree(opening.directory, ignore_errors=True)

    def _compared(self, opened: Opened, how: How, logits: Tensor) -> LoadCheck:
        if opened.tokens != self.tokens:
            detail = "its tokenizer does not make the same tokens of the prompt as the checkpoint's"
            return LoadCheck(outcome="failed", opened=how, num_tokens=len(self.tokens), detail=detail)
        if not bool(opened.logits.isfinite().all()):
            return LoadCheck(
                outcome="failed", opened=how, num_tokens=len(self.tokens), detail="its logits are no numbers"
            )
        difference = _relative_difference(opened.logits, logits)
        tolerance = TOLERANCES[logits.dtype]
        equal = torch.equal(opened.logits, logits.to(opened.logits.dtype))
        passed = difference <= tolerance
        return LoadCheck(
            outcome="equal" if equal else "close" if passed else "failed",
            opened=how,
            num_tokens=len(self.tokens),
            difference=difference,
            tolerance=tolerance,
            detail=REASONS[logits.dtype]
            if passed
            else f"its logits differ by {difference:.3g} from the calibrated model's; {tolerance:g} is tolerated",
        )

    def _fits_whole(self, files: Mapping[ArtifactFile, str]) -> bool:
        """Whether there is memory for the whole model, and room on the disk for what is not there yet."""
        sizes = {file.name: file.bytes for file in files if _is_read(file.name) and file.name.endswith(WEIGHTS)}
        stored, largest = sum(sizes.values()), max(sizes.values())
        needed = BASE_BYTES + stored + 2 * sizes[OUTER] + UNPACKED * largest  # embeddings become float32
        free = available_host_bytes()
        if needed > min(free, self.memory_bytes or free):
            return False
        self.scratch.mkdir(parents=True, exist_ok=True)
        in_directory = ArtifactStore.from_url(self.store_url).path("") is not None
        return in_directory or stored < shutil.disk_usage(self.scratch).free


def in_fresh_process(opening: Opening, watch: Callable[[], None]) -> Opened:
    """Run `run_artifact` in a process that knows nothing of this one.

    It is forked from a server that has imported the libraries and nothing else.
    Raises OutOfMemory when the system has killed it, and what it raises.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([run_artifact.__module__])
    receiver, sender = context.Pipe(duplex=False)
    environment = dict(os.environ)  # how a bucket is reached; the server may be older
    process = context.Process(target=_answer, args=(opening, environment, sender), daemon=True)
    process.start()
    sender.close()
    try:
        while not receiver.poll(POLL_SECONDS):
            watch()
        answer = receiver.recv()
        process.join(ENDING_SECONDS)  # it removes what it holds of the system
    except EOFError:
        process.join()
        raise OutOfMemory(f"the process that opened it was killed (exit code {process.exitcode})") from None
    finally:
        process.kill()
        process.join()
        process.close()
        receiver.close()
    if isinstance(answer, BitpressError):
        raise answer
    tokens, logits = answer
    return Opened(tokens, torch.from_numpy(logits))


def _answer(opening: Opening, environment: Mapping[str, str], sender: Connection) -> None:
    os.environ.update(environment)
    disable_progress_bar()  # the job has its own
    try:
        opened = run_artifact(opening)
        sender.send((opened.tokens, opened.logits.numpy()))  # tensors would go through shared memory
    except BitpressError as error:
        sender.send(error)
    except Exception as error:  # whatever the libraries make of a broken artifact
        sender.send(out_of_memory(error) or BitpressError(f"{type(error).__name__}: {error}"))


def _relative_difference(found: Tensor, expected: Tensor) -> float:
    difference = found.double() - expected.double()
    return float(difference.norm() / expected.double().norm().clamp_min(torch.finfo(torch.float64).tiny))


def _is_read(name: str) -> bool:
    """Whether a file is read when the model is opened: not a block's evidence."""
    return not (name.startswith("blocks/") and name.endswith(".json"))
