"""Images of every sampler from the same start noise, with what they cost."""

from __future__ import annotations

import time
from collections.abc import Iterator
from statistics import median
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from models.common.random import generator_for
from models.teachers.conditioning import Condition
from tasks.config.evaluation import Evaluation
from tasks.evaluation.samplers import Inputs, Sampler
from tasks.utils.failpoints import reach
from tasks.utils.progress import Advance

LATENCY_CALLS = 5


class MakeBatches(Protocol):
    """Images (n, C, H, W) and ms per image of each batch, in their order, by the sampler `name`."""

    def __call__(
        self, name: str, nfe: int, batches: list[slice]
    ) -> Iterator[tuple[Tensor, float]]: ...


class SampleGenerator:
    """Makes images batch by batch, always from the same noise, and times the batches.

    `make_batches` makes them elsewhere; None: here.
    """

    def __init__(
        self,
        inputs: Inputs,
        settings: Evaluation,
        advance: Advance,
        make_batches: MakeBatches | None = None,
    ) -> None:
        self.inputs, self.settings, self.advance = inputs, settings, advance
        self.paths = inputs.paths.head(settings.samples)
        self.make_batches: MakeBatches = make_batches or self.each

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

    def make(self, name: str, nfe: int, batches: list[slice]) -> tuple[Tensor, list[float]]:
        """Images (n, C, H, W) of some batches by the sampler `name`, and the ms per image of each.

        InputError for a sampler that does not run on this teacher.
        """
        images, times = [], []
        for made, milliseconds in self.make_batches(name, nfe, batches):
            images.append(made)
            times.append(milliseconds)
            self.advance(len(made) * nfe)
        return torch.cat(images), times

    def each(self, name: str, nfe: int, batches: list[slice]) -> Iterator[tuple[Tensor, float]]:
        """MakeBatches in this process."""
        sampler = self.inputs.sampler(name, nfe)
        for batch in batches:
            yield self.batch(sampler, batch)

    @torch.inference_mode()
    def batch(self, sampler: Sampler, batch: slice) -> tuple[Tensor, float]:
        """Images of one batch, on the CPU, and the ms per image."""
        noise, condition = self.inputs_of(batch)
        generator = torch.Generator().manual_seed(self.settings.seed * 1_000_003 + batch.start)
        start = time.perf_counter()
        x0 = sampler(noise, condition, generator).cpu()
        milliseconds = 1000 * (time.perf_counter() - start) / len(noise)
        reach("evaluation.batch")
        return self.inputs.decode(x0), milliseconds

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
