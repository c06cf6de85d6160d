"""Sig-DEG's untrained generator as a diffusers scheduler, for any pipeline that takes one:

    pipe.scheduler = SigDEGScheduler.from_config(pipe.scheduler.config)

A stochastic multistep sampler with one network call per step. It follows the law of the model's own
sampler with many steps (``chain_steps``, DDPM's for eta = 1, DDIM's for eta = 0): the noise of a
coarse step is drawn as the partial signature xi_i of the Brownian path that drives the fine chain,
and what happens inside the step is extrapolated from earlier denoised images. With Y_i the state,
D_i the denoised image and the coefficients of ``sigdeg_plan.py``,

    X_i   = a Y_i + b sum_j p_j D_{i-j} + m . xi_i      where the network is asked       (6)
    Dbar  = D_i + sum_j q_j (D_i - D_{i-j})                                              (7)
    Y_i+1 = A Y_i + B Dbar + n . xi_i                                                    (3)

``step`` takes the network's output at X_i and returns X_{i+1}, and Y_N at the end. With as many
steps as the chain has it is ``DDPMScheduler`` (eta = 1, ``fixed_small``, the same generator gives
the same samples) or ``DDIMScheduler`` (eta = 0); without noise and at order 1 it is
``FlowMatchEulerDiscreteScheduler`` and ``EDMEulerScheduler`` on its own time grid.

Source: Sig-DEG, arXiv 2508.16939. Needs this file, sigdeg_plan.py, sigdeg_levels.py, numpy, torch
and diffusers, so that the three files can travel in a model folder.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ConfigMixin, DDPMScheduler, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from .sigdeg_levels import (
    PREDICTIONS,
    check_range,
    denoised,
    fine_levels,
    given_levels,
    seeded,
    translated,
)
from .sigdeg_plan import CoarseStep, FineChain, Gains, coarse_grid, make_plan, query_points


@dataclass
class SigDEGSchedulerOutput(BaseOutput):  # type: ignore[misc]
    """``prev_sample``: the state for the next network call, or the sample itself after the last
    step; ``pred_original_sample``: the denoised image D_i of this step. Shapes of the sample.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class SigDEGScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """See the module's head. The arguments up to ``rho`` describe the model and are read from the
    pipeline's own scheduler by ``from_config``; the others are this sampler's:

    ``process``: vp, flow or edm; ``eta``: stochasticity, 0 to 1; ``chain_steps``: K of the fine
    chain; ``signature_depth``: of the partial signature, 1 to 6; ``solver_order`` and
    ``predict_order``: points of the extrapolations (7) and (6), 1 to 3; ``look_ahead``, ``gain``,
    ``last_gain``, ``noise_gain``: see ``Gains``; ``by_steps``: these four for single numbers of
    steps, as {"5": {"look_ahead": 0.1}}; ``coarse_grid``: index (equal numbers of fine steps),
    logsnr, or given with ``points``, increasing fine indices from 0 to K of which every r-th is
    used (models/schedulers/points.py measures good ones); ``seed``: of the noise in pipelines
    that hand ``step`` no generator (SD3, FLUX, DiT): there it is a function of this seed and the
    start state, so that the pipeline's own generator decides everything; ``use_flow_sigmas``:
    asks FLUX to leave the levels to the scheduler (None: for flow models).

    Raises ValueError where an argument is out of range.
    """

    order = 1
    timesteps: Tensor
    alphas_cumprod: Tensor | None
    _step_index: int | None
    _begin_index: int | None
    _Y: Tensor | None  # the state, in float32 or better
    _X: Tensor  # the asked state as it was returned
    _history: list[Tensor]  # denoised images, newest first
    _xi: dict[int, Tensor] | None  # features of the current step
    _path: Tensor | None
    _own_generator: torch.Generator | None

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        prediction_type: str | None = None,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        shift_terminal: float | None = None,
        sigma_min: float = 0.002,
        sigma_max: float = 80.0,
        sigma_data: float = 0.5,
        sigma_schedule: str = "karras",
        rho: float = 7.0,
        process: str = "vp",
        eta: float = 1.0,
        chain_steps: int = 100,
        signature_depth: int = 2,
        solver_order: int = 2,
        predict_order: int = 2,
        look_ahead: float = 0.25,
        gain: float = 1.0,
        last_gain: float = 0.0,
        noise_gain: float = 1.0,
        by_steps: Mapping[str, Mapping[str, float]] | None = None,
        coarse_grid: str = "index",
        points: Sequence[int] | None = None,
        seed: int = 0,
        use_flow_sigmas: bool | None = None,
    ):
        if process not in PREDICTIONS:
            raise ValueError(f"process = {process!r}: expected vp, flow or edm")
        prediction_type = prediction_type or PREDICTIONS[process][0]
        if prediction_type not in PREDICTIONS[process]:
            expected = ", ".join(PREDICTIONS[process])
            raise ValueError(f"prediction_type = {prediction_type!r}: expected {expected}")
        check_range("signature_depth", signature_depth, 1, 6)
        check_range("solver_order", solver_order, 1, 3)
        check_range("predict_order", predict_order, 1, 3)
        check_range("eta", eta, 0, 1)
        check_range("chain_steps", chain_steps, 2, num_train_timesteps)
        leave = process == "flow" if use_flow_sigmas is None else use_flow_sigmas
        found = {"prediction_type": prediction_type, "use_flow_sigmas": leave}
        # other schedulers made from this configuration must not take these for defaults of theirs
        unset = [k for k in self.config.get("_use_default_values", ()) if k not in found]
        self.register_to_config(**found, _use_default_values=unset)
        self.alphas_cumprod = None
        if process == "vp":
            self.alphas_cumprod = DDPMScheduler(
                num_train_timesteps,
                beta_start,
                beta_end,
                beta_schedule,
                trained_betas,
                rescale_betas_zero_snr=rescale_betas_zero_snr,
            ).alphas_cumprod
            if prediction_type == "epsilon" and float(self.alphas_cumprod[-1]) == 0.0:
                raise ValueError(
                    "rescale_betas_zero_snr: at pure noise an epsilon says nothing about the image;"
                    " expected v_prediction or sample"
                )
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self._plan: list[CoarseStep | None] = []
        self._reset()

    @classmethod
    def from_config(
        cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any
    ) -> Any:
        """A scheduler with this configuration, which may be that of another diffusers scheduler for
        the same model; ``kwargs`` replace single values. ValueError where the configuration is of a
        kind that this scheduler does not know, or a keyword is.
        """
        known = inspect.signature(cls.__init__).parameters
        if unknown := sorted(set(kwargs) - set(known)):
            raise ValueError(f"SigDEGScheduler: unknown arguments {', '.join(unknown)}")
        if not isinstance(config, Mapping):
            return super().from_config(config, return_unused_kwargs, **kwargs)
        # diffusers notes the class in files only; one made in memory is known by its keys
        own = config.get("_class_name", cls.__name__) == cls.__name__
        if not own or "signature_depth" not in config:
            config = translated(config)
        values = {k: v for k, v in config.items() if k in known}
        scheduler, unused = super().from_config(values, True, **kwargs)
        # the other scheduler's own settings are kept for the way back
        scheduler.register_to_config(
            **{k: v for k, v in config.items() if k not in known and not k.startswith("_")}
        )
        return (scheduler, unused) if return_unused_kwargs else scheduler

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    @property
    def init_noise_sigma(self) -> float:
        """What the pipeline multiplies its standard normal start with."""
        return math.hypot(self.config.sigma_max, 1.0) if self.config.process == "edm" else 1.0

    @property
    def step_index(self) -> int | None:
        """The number of the step that comes next; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Where the run begins, if the pipeline has said so."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at that step, with a state at the noise level of its time (image to image)."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Start a new run; ``self.timesteps`` (N,) are the times at which the network is asked.

        ``timesteps`` (vp, flow) or ``sigmas`` (flow; before the shift, as in FLUX) give the coarse
        levels themselves, ``mu`` the dynamic shift of flow models. ValueError where an argument
        does not fit the model.
        """
        given = given_levels(self.config, num_inference_steps, timesteps, sigmas)
        steps = int(num_inference_steps or 0) if given is None else len(given)
        levels, indices = fine_levels(self.config, self.alphas_cumprod, given, mu)
        chain = FineChain(*levels, float(self.config.eta))
        if not 1 <= steps <= chain.steps:
            raise ValueError(
                f"num_inference_steps = {steps}: expected 1 to chain_steps = {chain.steps}"
            )
        self._chain, self._gains = chain, self._gains_of(steps)
        self._grid = indices or coarse_grid(
            chain, steps, self.config.coarse_grid, self.config.points
        )
        self._asked = query_points(chain, self._grid, self._gains.look_ahead)
        self._plan = list(self._plan_of(self._grid, self._asked))
        self.num_inference_steps = steps
        dtype = torch.int64 if self.config.process == "vp" else torch.float32
        self.timesteps = torch.tensor([chain.t[k] for k in self._asked]).to(device, dtype)
        self.sigmas = torch.tensor([*chain.sigma[self._asked], 0.0], dtype=torch.float32)
        self._reset()

    @property
    def plan(self) -> list[CoarseStep]:
        """The coefficients of the run's steps, from the one at which it begins."""
        return [step for step in self._plan if step is not None]

    def set_path(self, xi: Tensor) -> None:
        """Follow the paths with these features, (n, N, m + 1, *shape), until the next
        ``set_timesteps``, instead of drawn ones: for comparisons along one Brownian path.
        """
        self._path = xi

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """What the network is given at ``sample``: EDM's c_in times it, else itself."""
        if self.config.process != "edm":
            return sample
        sigma = self._enter(timestep).sigma
        return sample / math.hypot(sigma, self.config.sigma_data)

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> SigDEGSchedulerOutput | tuple[Tensor, Tensor]:
        """One coarse step: ``model_output`` is the network's (guided) output at ``sample``.

        A second half of its channels, a learned variance, is not used. Changes that the caller
        makes to the returned state are carried on. ValueError for a step out of turn.
        """
        step = self._enter(timestep)
        X = sample.to(torch.promote_types(sample.dtype, torch.float32))
        # Y = X at the start; later X = a Y + c, and what the caller adds to X goes into Y as well
        Y = X if self._Y is None else self._Y + (X - self._X.to(X)) / step.a
        D = denoised(self.config, model_output.to(X.dtype), X, step.alpha, step.sigma)
        xi = self._features(step, X, generator)
        Dbar = D
        for weight, earlier in zip(step.mix, self._history, strict=False):
            Dbar = Dbar + weight * (D - earlier)
        Y = step.A * Y + step.B * Dbar
        for p, values in xi.items():
            Y = Y + step.n[p] * values
        self._history = [D, *self._history[:2]]
        self._step_index, self._xi = self._index + 1, None
        self._Y, self._X = Y, self._query(Y, generator).to(sample.dtype)
        if not return_dict:
            return self._X, D.to(sample.dtype)
        return SigDEGSchedulerOutput(self._X, D.to(sample.dtype))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha_t x0 + sigma_t eps at times ``timesteps`` (n,), states (n, *shape)."""
        t = timesteps.to(original_samples.device).flatten()
        t = t.view(-1, *[1] * (original_samples.ndim - 1))
        if self.config.process == "edm":
            return original_samples + (4.0 * t).exp().to(original_samples.dtype) * noise
        if self.config.process == "flow":
            sigma = (t / self.config.num_train_timesteps).to(original_samples.dtype)
            return (1.0 - sigma) * original_samples + sigma * noise
        assert self.alphas_cumprod is not None
        squared = self.alphas_cumprod.to(t.device)[t.long()].to(original_samples.dtype)
        return squared.sqrt() * original_samples + (1.0 - squared).sqrt() * noise

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """``add_noise`` under the name that flow-matching pipelines call."""
        return self.add_noise(sample, noise, timestep)

    def _reset(self) -> None:
        """Forget the run: state, history, noise and place."""
        self._step_index = self._begin_index = None
        self._Y = self._xi = self._path = self._own_generator = None
        self._X, self._history = torch.zeros(()), []

    def _gains_of(self, steps: int) -> Gains:
        config, own = self.config, dict((self.config.by_steps or {}).get(str(steps), {}))
        common = {k: getattr(config, k) for k in Gains.__dataclass_fields__}
        if not set(own) <= set(common):
            raise ValueError(f"by_steps {sorted(own)}: expected keys among {sorted(common)}")
        return Gains(**(common | own))

    def _plan_of(self, grid: Sequence[int], asked: Sequence[int]) -> list[CoarseStep]:
        return make_plan(
            self._chain,
            grid,
            asked,
            depth=self.config.signature_depth,
            order=self.config.solver_order,
            predict_order=self.config.predict_order,
            gains=self._gains,
        )

    def _enter(self, timestep: Any) -> CoarseStep:
        """The step that comes next; ValueError if ``timestep`` is not its time."""
        if self.num_inference_steps is None:
            raise ValueError("no run has begun: call set_timesteps first")
        if self._step_index is None:
            index = self._begin_index
            self._step_index = self._index_of(timestep) if index is None else index
            if self._step_index > 0:  # a chain of its own, from the level where the state is
                first = self._step_index
                grid, asked = [self._asked[first], *self._grid[first + 1 :]], self._asked[first:]
                self._plan = [None] * first + list(self._plan_of(grid, asked))
        index = self._index
        if index >= len(self._plan):
            raise ValueError("the run is over: call set_timesteps for another one")
        # Where the pipeline has said the place, comparing would only wait for the accelerator
        if self._begin_index is None and float(timestep) != float(self.timesteps[index]):
            expected = float(self.timesteps[index])
            raise ValueError(f"step at time {float(timestep)}: expected {expected}, the next one")
        step = self._plan[index]
        assert step is not None
        return step

    @property
    def _index(self) -> int:
        return self._step_index or 0

    def _index_of(self, timestep: Any) -> int:
        found = [i for i, t in enumerate(self.timesteps.tolist()) if t == float(timestep)]
        if not found:
            raise ValueError(f"time {float(timestep)}: expected one of {self.timesteps.tolist()}")
        return found[0]

    def _features(self, step: CoarseStep, like: Tensor, generator: Any) -> dict[int, Tensor]:
        """The features of xi_i that enter step i, {place: (n, *shape)}; drawn once."""
        if self._xi is None and self._path is not None:
            self._xi = {p: self._path[:, self._index, p].to(like) for p in step.draws}
        elif self._xi is None:
            if generator is None and step.draws:
                generator = self._own_generator = self._own_generator or seeded(
                    self.config.seed, like
                )
            self._xi = {
                p: randn_tensor(like.shape, generator, like.device, like.dtype) for p in step.draws
            }
        return self._xi

    def _query(self, Y: Tensor, generator: Any) -> Tensor:
        """X of (6) for the next step, or Y itself after the last."""
        if self._index == len(self._plan):
            return Y
        step = self._plan[self._index]
        assert step is not None
        X = step.a * Y
        for weight, D in zip(step.predict, self._history, strict=False):
            X = X + step.b * weight * D
        if any(step.m):
            for p, values in self._features(step, Y, generator).items():
                X = X + step.m[p] * values
        return X
