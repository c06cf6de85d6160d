"""Images of every sampler from the same start noise, with what they cost."""

from __future__ import annotations

import time
from statistics import median

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.common.random import generator_for
from models.teachers.conditioning import Condition
from tasks.config.evaluation import Evaluation
from tasks.evaluation.samplers import Inputs, Sampler
from tasks.utils.progress import Advance

LATENCY_CALLS = 5


class SampleGenerator:
    """Makes images batch by batch, always from the same noise, and times the batches."""

    def __init__(self, inputs: Inputs, settings: Evaluation, advance: Advance) -> None:
        self.inputs, self.settings, self.advance = inputs, settings, advance
        self.paths = inputs.paths.head(settings.samples)

    def batches(self) -> list[slice]:
        size, samples = self.settings.batch_size, self.settings.samples
        return [slice(start, min(start + size, samples)) for start in range(0, samples, size)]

    def inputs_of(self, batch: slice) -> tuple[Tensor, Condition | None]:
        """Start noise and condition of a batch, on the device: those of the cached paths, then more
        of their kind.
        """
        noise, condition = self.paths.noise[batch], self.paths.condition
        device = self.inputs.device
        if missing := batch.stop - batch.start - len(noise):
            generator = generator_for("cpu", self.settings.seed, 19, batch.start)
            noise = torch.cat(
                [noise, torch.randn((missing, *noise.shape[1:]), generator=generator)]
            )
        if condition is not None:
            rows = torch.arange(batch.start, batch.stop) % len(condition)
            condition = condition[rows].to(device)
        return noise.to(device), condition

    @torch.inference_mode()
    def make(self, sampler: Sampler, batches: list[slice], cost: int) -> tuple[Tensor, list[float]]:
        """Images (n, C, H, W) of some batches and the ms per image of each."""
        images, times = [], []
        for batch in batches:
            noise, condition = self.inputs_of(batch)
            generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + batch.start)
            start = time.perf_counter()
            x0 = sampler(noise, condition, generator).cpu()
            times.append(1000 * (time.perf_counter() - start) / len(noise))
            images.append(self.inputs.decode(x0))
            self.advance(len(noise) * cost)
        return torch.cat(images), times

    def warm_up(self) -> float:
        """ms of one teacher call per image, after a first call that is not counted."""
        noise, condition = self.inputs_of(self.batches()[0])
        times = []
        with torch.inference_mode():
            for _ in range(LATENCY_CALLS + 1):
                start = time.perf_counter()
                self.inputs.teacher.predict(
                    noise, torch.tensor(500.0), condition, self.inputs.guidance
                ).cpu()
                times.append(1000 * (time.perf_counter() - start) / len(noise))
        return median(times[1:])


def flops(inputs: Inputs, sampler: Sampler) -> int:
    """Floating-point operations of one image, as torch counts them."""
    first = inputs.paths.head(1).to(inputs.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        sampler(first.noise, first.condition, torch.Generator().manual_seed(0))
    return int(counter.get_total_flops())


def teacher_flops(inputs: Inputs) -> int:
    """Those of one call of the teacher."""

    def once(noise: Tensor, condition: Condition | None, generator: torch.Generator) -> Tensor:
        prediction: Tensor = inputs.teacher.predict(
            noise, torch.tensor(500.0), condition, inputs.guidance
        )
        return prediction

    return flops(inputs, once)


def equal_compute(inputs: Inputs) -> list[int]:
    """Numbers of the teacher's calls that cost what a cheaper student does; none for one of
    full-size steps.
    """
    one = teacher_flops(inputs)
    found = (
        {nfe: flops(inputs, inputs.generator("student", nfe)) for nfe in inputs.nfe} if one else {}
    )
    calls = {max(1, round(cost / one)) for nfe, cost in found.items() if round(cost / one) < nfe}
    return sorted(calls - set(inputs.nfe), reverse=True)
