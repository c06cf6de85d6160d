"""Running the training loop as a stage does: device, scratch folder, checkpoints, exact resume,
progress, NaN guard.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from models.common.errors import InputError
from models.methods.base import Trainable
from models.training.loop import Batches, NonFiniteError, StepReport, TrainState, train
from models.training.sharding import Share
from tasks.training.checkpoints import flatten, latest_checkpoint, save_checkpoint, unflatten
from tasks.training.sharded_checkpoints import latest_sharded, load_sharded, save_sharded
from tasks.utils.failpoints import reach
from tasks.utils.progress import Advance, progress

logger = logging.getLogger(__name__)
LOG_EVERY = 5  # odd, so that methods whose steps take turns show every turn


@dataclass
class Training:
    """A run of :func:`models.training.loop.train` with everything around it that must survive a
    kill.

    ``scratch`` holds checkpoints every ``checkpoint_every`` steps, of which ``keep`` stay;
    ``extra`` is JSON state of the caller (best score so far, say) that is saved and restored with
    them; ``saved()`` is called after each. ``validate(step, state)`` runs before the first step and
    every ``validate_every`` steps, and returns figures for the history; a checkpoint follows, so
    that what it kept and what a resumed run knows of stay in step. Only ``rank`` 0 validates, saves
    and shows progress; where workers ``share`` sharded networks all of them do, since none has more
    than a part.
    """

    method: Trainable
    state: TrainState
    batches: Batches
    scratch: Path
    device: torch.device
    checkpoint_every: int
    keep: int = 2
    validate_every: int = 0
    validate: Callable[[int, TrainState], dict[str, float]] | None = None
    rank: int = 0
    share: Share | None = None
    saved: Callable[[], None] = lambda: None
    extra: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)

    def resume(self) -> int:
        """Continue from the newest whole checkpoint; returns its step, 0 for a fresh start."""
        share = self.share
        found = latest_sharded(self.scratch, share) if share else latest_checkpoint(self.scratch)
        if found is None:
            return 0
        if share:
            like, _ = flatten({"train": self.state.blank()})
            tensors, tree = load_sharded(found, like, share)
        else:
            tensors, tree = found.load()
        saved = unflatten(tensors, tree)
        self.state.load_state_dict(saved["train"])
        self.extra.clear()
        self.extra.update(saved["extra"])
        self.history[:] = saved["history"]
        logger.info("resumed at step %d of %d", found.step, self.state.config.steps)
        return found.step

    def save(self) -> None:
        """Write a checkpoint of everything, whole or not at all."""
        whole = {"train": self.state.state_dict(), "extra": self.extra, "history": self.history}
        tensors, tree = flatten(whole)
        step = self.state.step
        if self.share:
            save_sharded(self.scratch, step, tensors, tree, self.keep, self.share)
        else:
            save_checkpoint(self.scratch, step, tensors, tree, self.keep)
        self.saved()

    def run(self, what: str) -> None:
        """Train to the end. A NaN stops it with one line that names the step and the last good
        checkpoint.
        """
        self.resume()
        steps = self.state.config.steps
        with progress(what, steps) as advance:
            advance(self.state.step)
            self._before()
            try:
                for report in train(
                    self.method,
                    self.batches,
                    self.state,
                    device=self.device,
                    rank=self.rank,
                    share=self.share,
                ):
                    if self.rank == 0:
                        self._after(report, advance)
                    reach("training.step")
            except NonFiniteError as error:
                raise InputError(self._advice(error)) from error

    def _before(self) -> None:
        """The start is a candidate like every later state, and the only one of a run of no
        steps.
        """
        fresh = self.state.step == 0 and not self.history
        if self.rank == 0 and fresh and self.validate_every and self.validate is not None:
            self.history.append({"step": 0, **self.validate(0, self.state)})
            self.save()

    def _after(self, report: StepReport, advance: Advance) -> None:
        last = report.step == self.state.config.steps
        due = bool(self.validate_every) and (report.step % self.validate_every == 0 or last)
        figures = (
            self.validate(report.step, self.state) if due and self.validate is not None else {}
        )
        if figures or report.step % LOG_EVERY == 0 or last:
            self.history.append(
                {
                    "step": report.step,
                    "learning_rate": report.learning_rate,
                    **report.terms,
                    **figures,
                }
            )
        shown = {
            name.split("/")[-1]: f"{value:.4f}"
            for name, value in report.terms.items()
            if name.endswith("/loss")
        }
        advance(1, **shown)
        if report.step % self.checkpoint_every == 0 or figures or last:
            self.save()

    def _advice(self, error: NonFiniteError) -> str:
        good = latest_checkpoint(self.scratch)
        where = f"the last good checkpoint is {good.path}" if good else "there is no checkpoint yet"
        return (
            f"{error}; {where}. Lower the learning rate, use precision bfloat16 or float32, or "
            "lower clip; "
            "the finished checkpoints stay"
        )
