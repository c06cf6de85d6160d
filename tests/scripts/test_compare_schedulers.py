"""The comparison of schedulers: every row runs, from the same start noise."""

from __future__ import annotations

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler

from scripts.compare_schedulers import ours, rivals, sample
from tests.tiny import tiny_unet

POINTS = [0, 30, 45, 60, 100]


def tiny_pipe() -> DDPMPipeline:
    scheduler = DDPMScheduler(prediction_type="v_prediction", clip_sample=False)
    pipe = DDPMPipeline(unet=tiny_unet(), scheduler=scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("row", [*rivals(), *ours(POINTS)], ids=lambda row: row[0])
def test_every_row_samples(row: tuple) -> None:  # type: ignore[type-arg]
    _, kind, choices = row
    pipe = tiny_pipe()
    pipe.scheduler = kind.from_config(pipe.scheduler.config, **choices)
    first = sample(pipe, 2, 3, seed=0)
    assert first.shape == (3, 1, 8, 8) and float(first.abs().max()) <= 1
    torch.testing.assert_close(sample(pipe, 2, 3, seed=0), first)
    assert float((sample(pipe, 2, 3, seed=1) - first).abs().mean()) > 1e-3


def test_names_are_distinct() -> None:
    names = [name for name, *_ in (*rivals(), *ours(POINTS))]
    assert len(names) == len(set(names))
