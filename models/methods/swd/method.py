"""SwD: scale-wise distillation of diffusion models (Starodubcev et al., arXiv 2503.16397, v2).

The student G takes N steps at rising resolution (models/methods/swd/schedule.py); a step is (11) of
models/methods/swd/pipeline.py. One scale i per optimizer step, in turn. With y a teacher's image
reduced by area to s_i and y' the same to s_{i-1},

    x_i = alpha_i up(y') + sigma_i eps   (i = 1: x_1 = eps),      x0 = G(x_i)
        (12)

    DMD:  g = (F(x_u) - T(x_u)) / mean|x0 - T(x_u)|,  1/2 ||x0 - sg(x0 - g)||^2
        (13)
    fake: ||F(x_u) - x0||^2,  u over all levels
        (14)
    GAN:  softplus(-D(f(x_u))),  D: softplus(D(f(x_u))) + softplus(-D(f(y_u)))
        (15)
    MMD:  MMD^2(phi(x_u), phi(y_u)) + MMD^2(T(x_u), T(y_u)),  noise and level shared
        (16)

    L = mmd (16) + dmd (13) + gan (15)

with x_u = alpha_u x0 + sigma_u eps at the levels of models/methods/swd/levels.py (``dmd.levels``
for (13) and (15), ``mmd.levels`` for (16)), T the frozen teacher, F the fake network (a denoiser of
the student's samples), f F's middle block averaged over space, phi T's middle block (or F's), whose
places are patches. (16) compares batches within each class, or an image with its own target
(``compare``: image; its first term alone). The latter would regress to the mean where the input is
pure noise, so the first step compares batches, but for prompts; with few steps the others have much
left to decide too.
Batches may be compared with real images in the place of y (``ImageBatch.real``).

Deviations: epsilon networks at high noise are damped (``ScaleStep.damping``) and weigh (14)
less there, since x0 amplifies their errors by sigma / alpha. ``backward_simulation``: y' is what
the student itself makes of noise in the steps before, so that it is trained on the inputs that it
will get. All differences to the authors' code: docs/methods.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.common.errors import InputError
from models.methods.base import (
    DistillationMethod,
    ImageBatch,
    Losses,
    MethodContext,
    without_dropout,
)
from models.methods.student_network import student_network
from models.methods.swd.build import Critic, build_swd_pipeline, frozen, pool, shrink
from models.methods.swd.config import SwDConfig
from models.methods.swd.costs import SwDCosts
from models.methods.swd.gate import excluded_sizes, measure_scales, measured_schedule
from models.methods.swd.levels import NoiseLevels
from models.methods.swd.losses import (
    class_mmd,
    discriminator_loss,
    dmd_loss,
    generator_gan_loss,
    image_mmd,
    linear_mmd,
)
from models.methods.swd.pipeline import ScaleStep, SwDPipeline, renoise, upscale
from models.methods.swd.schedule import alternating, scale_index
from models.teachers.base import Denoiser
from models.teachers.conditioning import Condition
from models.teachers.guidance import split_weights, weight_closeness


class SwD(DistillationMethod):
    """The method: networks ``student``, and where a loss needs them ``fake`` and
    ``discriminator``.

    ``context.diagnostics`` (:mod:`models.methods.swd.gate`) holds the schedule, and the sizes at
    which DMD is off.
    """

    name = "swd"
    Config = SwDConfig
    needs = "endpoints"
    config: SwDConfig
    pipeline: SwDPipeline

    def __init__(self, context: MethodContext):
        super().__init__(context)
        teacher, config = self.teacher, self.config
        self.scale_schedule = self.pipeline.scale_schedule
        self.dmd_excluded_sizes = excluded_sizes(context.diagnostics)
        networks: dict[str, nn.Module] = {"student": self.pipeline.unet}
        self.fake: Denoiser | None = None
        self.critic: Critic | None = None
        if config.gan.weight > 0 or any(map(self.uses_dmd, range(len(self.scale_schedule)))):
            self.fake = self._fake_network()
            networks["fake"] = self.fake.network
        if config.gan.weight > 0:
            probe = torch.zeros((1, *teacher.shape), device=teacher.device)
            features = teacher.features(probe, 0.0, teacher.default_condition(1))
            self.critic = Critic(features.shape[1], config.gan.critic).to(teacher.device)
            networks["discriminator"] = self.critic
        self.networks: Mapping[str, nn.Module] = networks
        critic_levels = config.dmd.levels if config.gan.levels is None else config.gan.levels
        self.dmd_levels = NoiseLevels(teacher, config.dmd.levels)
        self.fake_levels = NoiseLevels(teacher, config.dmd.fake_levels)
        self.critic_levels = NoiseLevels(teacher, critic_levels)
        self.mmd_levels = NoiseLevels(teacher, config.mmd.levels)
        self._check()
        without_dropout(networks)
        if context.gradient_checkpointing:
            for name in networks.keys() & {"student", "fake"}:
                networks[name].enable_gradient_checkpointing()  # type: ignore[operator]

    @classmethod
    def costs(cls, context: MethodContext, real: bool = False) -> SwDCosts:
        return SwDCosts(context, real)

    @classmethod
    def prepare(cls, context: MethodContext) -> dict[str, Any]:
        """The schedule, the data's spectrum, and the teacher's KID at every size."""
        return measure_scales(context)

    @classmethod
    def untrained(cls, context: MethodContext) -> SwDPipeline:
        """The teacher's weights in the scale-wise sampler."""
        schedule = measured_schedule(context.diagnostics)
        return build_swd_pipeline(context.teacher, schedule, context.config)

    @classmethod
    def image_target(cls, config: SwDConfig) -> tuple[str, str]:
        """That of (16), where it is used."""
        return config.mmd.target if config.mmd.weight else "teacher", "method.mmd.target"

    @classmethod
    def check_sharding(cls, config: SwDConfig) -> None:
        """Nothing to refuse: calls depend on the step alone; see the critic's of the fake network
        in :meth:`_fake_loss`.
        """

    @property
    def learning_rates(self) -> dict[str, float]:
        rates = self.config.rates.model_dump()
        return {role: rate for role, rate in rates.items() if rate is not None}

    def uses_dmd(self, i: int) -> bool:
        """Whether (13) applies at step i."""
        excluded = self.scale_schedule[i].size in self.dmd_excluded_sizes
        return self.config.dmd.weight > 0 and not excluded

    def _fake_network(self) -> Denoiser:
        c = self.config
        network = student_network(self.teacher, self.teacher.shape[0], c.trainable, c.lora_rank)
        network.to(self.teacher.device)
        return self.teacher.with_network(network)

    def _check(self) -> None:
        """Every step needs a loss that leads somewhere alone; a GAN on pooled features circles
        around the data.
        """
        c = self.config
        for i, scale in enumerate(self.scale_schedule):
            if not (c.mmd.weight or self.uses_dmd(i)):
                why = "method.dmd is gated off there" if c.dmd.weight else "method.dmd.weight is 0"
                gan = " but the GAN, which does not converge alone," if c.gan.weight else ""
                raise InputError(
                    f"method: no loss{gan} is left at size {scale.size} ({why}); set "
                    "method.mmd.weight above 0"
                )

    def index(self, step: int) -> int:
        """The scale of an optimizer step."""
        return scale_index(step, len(self.scale_schedule))

    def updates(self, step: int) -> Sequence[str]:
        i, config = self.index(step), self.config
        fake = self.fake is not None and (self.critic is not None or self.uses_dmd(i))
        counts = {
            "fake": config.fake_updates if fake else 0,
            "discriminator": config.gan.updates if self.critic is not None else 0,
        }
        return (*alternating(counts), "student")

    def loss(self, role: str, batch: ImageBatch, generator: torch.Generator) -> Losses:
        """(13) + (15) + (16) for the student, (14) + (15) for the fake network, (15) for the
        discriminator.
        """
        i = self.index(batch.step)
        target, x = self.pair(batch, i, generator)
        step, condition = self.scale_schedule[i], batch.condition
        if role == "student":
            x0 = self.pipeline.denoise(step, x, condition).float()
            if batch.real is not None and self._batchwise(i):
                target = shrink(self.teacher, batch.real, step.size)
            return self._student_loss(i, x0, target, condition, generator)
        with torch.no_grad():
            x0 = self.pipeline.denoise(step, x, condition).float()
        if role == "fake":
            return self._fake_loss(step, x0, target, condition, generator)
        return self._critic_loss(step, x0, target, condition, generator)

    @torch.no_grad()
    def pair(self, batch: ImageBatch, i: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(target, x_i) of (12), both (n, C, s_i, s_i); with backward simulation x_i comes from
        noise alone.
        """
        step = self.scale_schedule[i]
        target = shrink(self.teacher, batch.x0, step.size)
        if i == 0 or self.config.backward_simulation:
            return target, self._simulated(batch, i, generator)
        eps = torch.randn(target.shape, generator=generator, device=target.device)
        previous = shrink(self.teacher, batch.x0, self.scale_schedule[i - 1].size)
        return target, renoise(step, upscale(previous, step.size), eps)

    def _simulated(self, batch: ImageBatch, i: int, generator: torch.Generator) -> Tensor:
        """x_i (n, C, s_i, s_i) as in sampling: noise, and the student's own steps before i."""
        step, x0 = self.scale_schedule[i], batch.x0
        eps = torch.randn(
            (*x0.shape[:2], step.size, step.size), generator=generator, device=x0.device
        )
        if i == 0:
            return eps
        x = self._simulated(batch, i - 1, generator)
        previous = self.pipeline.denoise(self.scale_schedule[i - 1], x, batch.condition).float()
        return self.pipeline.next_state(i, x, previous, eps)

    def _student_loss(
        self,
        i: int,
        x0: Tensor,
        target: Tensor,
        condition: Condition | None,
        generator: torch.Generator,
    ) -> Losses:
        c, size = self.config, self.scale_schedule[i].size
        total, terms = x0.new_zeros(()), {}
        if self.fake is not None and (self.uses_dmd(i) or self.critic is not None):
            t, x_u, _ = self.dmd_levels.renoised(x0, generator)
            with (
                frozen(self.fake.network),
                frozen(self.critic),
                torch.set_grad_enabled(self.critic is not None),
            ):
                fake_x0, middle = _denoise_with_features(self.fake, x_u, t, condition)
                logits = None if self.critic is None else self.critic(pool(middle))
            if self.uses_dmd(i):
                with torch.no_grad():
                    real_x0 = self.teacher.denoise(x_u, t, condition, self.context.guidance)
                terms[f"dmd_{size}"] = dmd_loss(x0, real_x0, fake_x0.detach())
                total = total + c.dmd.weight * terms[f"dmd_{size}"]
            if logits is not None:
                terms[f"gan_{size}"] = generator_gan_loss(logits)
                total = total + c.gan.weight * terms[f"gan_{size}"]
        if c.mmd.weight:
            terms[f"mmd_{size}"] = self._mmd(i, x0, target, condition, generator)
            total = total + c.mmd.weight * terms[f"mmd_{size}"]
        return total, terms

    def _fake_loss(
        self,
        step: ScaleStep,
        x0: Tensor,
        target: Tensor,
        condition: Condition | None,
        generator: torch.Generator,
    ) -> Losses:
        assert self.fake is not None
        t, x_u, y_u = self.fake_levels.renoised(x0, generator, target)
        fake_x0, middle = _denoise_with_features(self.fake, x_u, t, condition)
        error = (fake_x0.float() - x0).square().flatten(1).mean(1)
        limit = self.config.conditioning_limit
        if self.teacher.predicts_noise and limit is not None:
            alpha, sigma = self.teacher.schedule.alpha_sigma(t)
            error = error * (limit * alpha / sigma).square().clamp(max=1.0)
        total = error.mean()
        terms = {f"mse_{step.size}": total}
        if self.critic is not None:
            seen = self.critic_levels.contains(t)
            # Sharded networks are called alike for all batches: a row is looked at that counts 0.
            counts = bool(seen.any())
            rows = seen if counts else torch.arange(len(t), device=t.device) == 0
            if counts or self.sharded:
                real = self._pooled(
                    y_u[rows], t[rows], None if condition is None else condition[rows]
                )
                with frozen(self.critic):
                    terms["critic"] = counts * discriminator_loss(
                        self.critic(real), self.critic(pool(middle)[rows])
                    )
                total = total + self.config.gan.features * terms["critic"]
        return total, terms

    def _critic_loss(
        self,
        step: ScaleStep,
        x0: Tensor,
        target: Tensor,
        condition: Condition | None,
        generator: torch.Generator,
    ) -> Losses:
        assert self.critic is not None
        t, x_u, y_u = self.critic_levels.renoised(x0, generator, target)
        with torch.no_grad():
            real, fake = self._pooled(y_u, t, condition), self._pooled(x_u, t, condition)
        loss = discriminator_loss(self.critic(real), self.critic(fake))
        return loss, {f"critic_{step.size}": loss}

    def _mmd(
        self,
        i: int,
        x0: Tensor,
        target: Tensor,
        condition: Condition | None,
        generator: torch.Generator,
    ) -> Tensor:
        """(16): per image where that was chosen and input and target belong together, else within
        classes.
        """
        c = self.config
        batches = self._batchwise(i)
        t, x_u, y_u = self.mmd_levels.renoised(x0, generator, target, together=batches)
        judge = self.teacher
        if c.mmd.features == "fake" and self.fake is not None and not batches:
            judge = self.fake
        with frozen(None if judge is self.teacher else judge.network):
            image, middle = _denoise_with_features(judge, x_u, t, condition)
            with torch.no_grad():
                wanted_image, wanted_middle = _denoise_with_features(judge, y_u, t, condition)
        seen, wanted = _tokens(middle), _tokens(wanted_middle)
        if batches:
            groups = None if condition is None else split_weights(condition)[0].groups()
            near = weight_closeness(condition, self.context.guidance)
            pairs = ((seen, wanted), (image.float(), wanted_image.float()))
            return torch.stack(
                [
                    class_mmd(x.flatten(1), y.flatten(1), groups, c.mmd.bandwidths, near)
                    for x, y in pairs
                ]
            ).sum()
        if c.mmd.kernel == "rbf":
            return image_mmd(seen, wanted, c.mmd.bandwidths, c.mmd.width)
        return linear_mmd(seen, wanted, c.mmd.huber)

    def _batchwise(self, i: int) -> bool:
        """Whether (16) compares batches at step i.

        With ``compare`` image a prompt's own image is the target at the first step too, unless
        ``first_step`` says otherwise: a batch of different prompts says nothing of what belongs to
        which.
        """
        mmd = self.config.mmd
        if mmd.compare == "batch":
            return True
        if self.paired(i):
            return False
        if mmd.first_step == "auto":
            return self.teacher.condition_kind != "prompts"
        return mmd.first_step == "batch"

    def paired(self, i: int) -> bool:
        """Whether the input of step i was made from its own target."""
        return i > 0 and not self.config.backward_simulation

    def _pooled(self, x_u: Tensor, t: Tensor, condition: Condition | None) -> Tensor:
        assert self.fake is not None
        return pool(self.fake.features(x_u, t, condition))


def _denoise_with_features(
    denoiser: Denoiser, x_u: Tensor, t: Tensor, condition: Condition | None
) -> tuple[Tensor, Tensor]:
    """A network's denoised image of x_u and the output of its middle block, from one forward
    pass.
    """
    with denoiser.capture_middle() as seen:
        x0 = denoiser.denoise(x_u, t, condition)
    # blocks of two streams, the text's and the image's, give both
    return x0, denoiser.feature_map(seen[0], x_u) if isinstance(seen[0], tuple) else seen[0]


def _tokens(middle: Tensor) -> Tensor:
    """(n, F, h, w) or (n, tokens, F) -> (n, tokens, F), float32."""
    return (middle.flatten(2).transpose(1, 2) if middle.dim() == 4 else middle).float()
