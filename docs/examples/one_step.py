"""One-step regression: the student answers a start noise with the image that the teacher made of
it (Luhman and Luhman 2021). The smallest whole method; see docs/extending.md.
"""

from __future__ import annotations

from typing import Any, Literal

import torch

from models.common.config import Section
from models.methods.base import DistillationMethod, Losses, MethodContext, PathBatch
from models.methods.multistep_pipeline import MultistepPipeline
from models.methods.registry import register_method
from models.methods.student_network import student_network


class OneStepConfig(Section):
    """`power`: exponent of the pixel error."""

    kind: Literal["one_step"] = "one_step"
    nfe: tuple[Literal[1]] = (1,)
    power: Literal[1, 2] = 2


class OneStep(DistillationMethod):
    """L = mean |G(Y_0) - Y_N|^power over cached teacher paths from noise Y_0 to image Y_N."""

    name = "one_step"
    Config = OneStepConfig
    needs = "paths"

    @classmethod
    def untrained(cls, context: MethodContext) -> MultistepPipeline:
        """The teacher's network, asked once, at its first noise level."""
        teacher = context.teacher
        first = teacher.schedule.levels(1)
        return MultistepPipeline(
            unet=student_network(teacher, teacher.shape[0]),
            levels={"1": [[first.t[0], first.alpha[0], first.sigma[0]]]},
            title="One-step regression",
            prediction_type=teacher.prediction_type,
            shape=list(teacher.shape),
            clip=teacher.clip,
            num_classes=teacher.num_classes,
            vae=teacher.codec.vae,
        )

    def loss(self, role: str, batch: PathBatch, generator: torch.Generator) -> Losses:
        """The pixel error of one call."""
        noise, image = batch.Y[:, 0], batch.Y[:, -1]
        x0: Any = self.pipeline.denoise(self.pipeline.levels(1)[0], noise, batch.condition)
        error = (x0.float() - image).abs().pow(self.config.power).mean()
        return error, {"error": error}


register_method("one_step", f"{__name__}:OneStepConfig", f"{__name__}:OneStep")
