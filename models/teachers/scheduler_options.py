"""What every option of a diffusers scheduler means for a teacher.

A teacher takes from its scheduler the forward process, the prediction type and the bound on x0. How
that scheduler itself would step does not matter here: the fine chain has steps of its own. So an
option is honoured, or concerns the scheduler's own steps alone, or it is refused: one that would
change x0 or the times and is ignored gives wrong results without a word. The list holds for the
schedulers named in ``TEACHER_SCHEDULERS``; any other class is no teacher's (LCM and TCD belong to
distilled students, the inverse ones to editing).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from models.common.errors import InputError

VARIANCE_PRESERVING = (
    "DDPMScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDIMParallelScheduler",
    "PNDMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler", "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler", "DEISMultistepScheduler", "UniPCMultistepScheduler",
    "SASolverScheduler",
)  # fmt: skip
FLOW_MATCHING = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
VARIANCE_EXPLODING = ("ScoreSdeVeScheduler",)
TEACHER_SCHEDULERS = (*VARIANCE_PRESERVING, *FLOW_MATCHING, *EDM, *VARIANCE_EXPLODING)

HONOURED = frozenset(
    [
        "num_train_timesteps",
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "prediction_type",
        "clip_sample",
        "clip_sample_range",
        "rescale_betas_zero_snr",
        "shift",
        "use_flow_sigmas",
        "flow_shift",
        "base_image_seq_len",
        "base_shift",
        "max_image_seq_len",
        "max_shift",
        "time_shift_type",
        "sigma_min",
        "sigma_max",
        "sigma_data",
        "sigma_schedule",
        "rho",
        "sampling_eps",
    ]
)
# They change how the scheduler itself steps, and nothing of the model.
SAMPLER_ONLY = frozenset(
    [
        "algorithm_type",
        "correct_steps",
        "corrector_order",
        "disable_corrector",
        "euler_at_final",
        "final_sigmas_type",
        "interpolation_type",
        "lambda_min_clipped",
        "lower_order_final",
        "predict_x0",
        "predictor_order",
        "set_alpha_to_one",
        "skip_prk_steps",
        "snr",
        "solver_order",
        "solver_p",
        "solver_type",
        "steps_offset",
        "tau_func",
        "timestep_spacing",
        "use_beta_sigmas",
        "use_exponential_sigmas",
        "use_karras_sigmas",
        "use_lu_lambdas",
        "variance_type",
    ]
)
# They mean something only together with an option that is refused.
DEPENDENT = frozenset(
    [
        "dynamic_thresholding_ratio",
        "sample_max_value",
    ]
)
REFUSED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "thresholding": (bool, "dynamic thresholding of x0 is not supported; set it to false"),
    "invert_sigmas": (bool, "times that run from data to noise are not supported; set it to false"),
    "timestep_type": (
        lambda value: value != "discrete",
        "networks that take log sigma as their time are not supported; expected discrete",
    ),
    "use_dynamic_shifting": (
        bool,
        "a shift that depends on the image's size is not supported for this network; set it to "
        "false and shift to the value for the teacher's size",
    ),
    "shift_terminal": (lambda value: value is not None, "not supported; set it to null"),
    "stochastic_sampling": (
        bool,
        "trajectories.eta says how stochastic the chain is; set it to false",
    ),
}


def scheduler_options(scheduler: Any, tokens: int | None = None) -> dict[str, Any]:
    """The options that the scheduler's class really has, with their values; ``tokens`` of a state,
    where they are known, give an option a meaning that is refused else.

    Configuration files often keep options of another scheduler that the class never reads.
    Raises InputError for a scheduler that is no teacher's and for an option that is not supported.
    """
    name = type(scheduler).__name__
    if name not in TEACHER_SCHEDULERS:
        raise InputError(
            f"teacher scheduler {name}: not one that teachers are sampled with; expected one of "
            f"{', '.join(TEACHER_SCHEDULERS)}"
        )
    parameters = inspect.signature(type(scheduler).__init__).parameters
    options = {
        option: scheduler.config.get(option, parameter.default)
        for option, parameter in parameters.items()
        if option != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    for option, value in options.items():
        known = tokens is not None and name in FLOW_MATCHING
        if option != "use_dynamic_shifting" or not known:
            _check(name, option, value, parameters[option].default)
    return options


def _check(scheduler: str, option: str, value: Any, default: Any) -> None:
    if option in REFUSED:
        is_bad, reason = REFUSED[option]
        if is_bad(value):
            raise InputError(f"teacher {scheduler}: {option} = {value!r}: {reason}")
    elif option not in HONOURED | SAMPLER_ONLY | DEPENDENT and value != default:
        raise InputError(
            f"teacher {scheduler}: {option} = {value!r}: an option this project does not know; "
            f"expected its default, {default!r}"
        )
