"""Turns what the pipeline is doing into Progress: a fraction of the whole job and the time left."""

import time
from dataclasses import dataclass, field

from bitpress.jobs import Phase, Progress
from bitpress_workers.pipeline.publish import Recorder

# Shares of a job's time, from runs of the demo; only the estimate of the time left depends on them.
CALIBRATION_SHARE = 0.8
FIRST_PASS_SHARE, RESTORING_SHARE = 0.3, 0.4  # of a job with preprocessing


@dataclass
class ProgressMeter:
    """Reports to the recorder before each block and linear, which is where a cancel is noticed.

    compressing: what going through the blocks is called. span: the part of the job that is metered.
    """

    recorder: Recorder
    num_blocks: int
    evaluates: bool
    compressing: Phase = "calibrating"
    span: tuple[float, float] = (0.0, 1.0)
    blocks_done: int = 0
    _started: float = field(default_factory=time.monotonic)
    _first_fraction: float | None = None

    def preparing(self) -> None:
        self._report("preparing", None, 0.0)

    def block(self, block: int) -> None:
        """A block is taken in hand; a published one is only passed through."""
        self.linear(block, None, 0.0)

    def linear(self, block: int, name: str | None, share_of_block: float) -> None:
        self.blocks_done = block
        share = CALIBRATION_SHARE if self.evaluates else 1.0
        self._report(self.compressing, name, share * (block + share_of_block) / self.num_blocks)

    def restoring(self, step: int, num_steps: int) -> None:
        self._report("restoring", None, step / num_steps)

    def evaluated(self, block: int) -> None:
        self.blocks_done = self.num_blocks
        calibration = CALIBRATION_SHARE if self.evaluates else 1.0
        self._report("evaluating", None, calibration + (1 - calibration) * block / self.num_blocks)

    def publishing(self) -> None:
        self.blocks_done = self.num_blocks
        self._report("publishing", None, 1.0)

    def _report(self, phase: Phase, linear: str | None, fraction: float) -> None:
        now = time.monotonic()
        fraction = self.span[0] + (self.span[1] - self.span[0]) * fraction
        if self._first_fraction is None and phase != "preparing":
            self._first_fraction, self._started = fraction, now
        gained = fraction - (self._first_fraction or 0.0)
        eta = (now - self._started) / gained * (1 - fraction) if gained > 0 else None
        progress = Progress(
            phase=phase,
            blocks_done=self.blocks_done,
            blocks_total=self.num_blocks,
            linear=linear,
            fraction=min(fraction, 1.0),
            eta_seconds=eta,
        )
        self.recorder.progress(progress)
