"""The noise schedule that a diffusers scheduler stands for."""

from __future__ import annotations

from typing import Any

import numpy as np

from models.common.errors import InputError
from models.teachers.schedule import (
    FlowMatching,
    NoiseSchedule,
    Preconditioned,
    VarianceExploding,
    VariancePreserving,
)
from models.teachers.scheduler_options import (
    EDM,
    FLOW_MATCHING,
    VARIANCE_EXPLODING,
    scheduler_options,
)

EDM_PREDICTIONS = {"epsilon": "edm", "v_prediction": "edm_v"}


def read_schedule(
    scheduler: Any, tokens: int | None = None
) -> tuple[NoiseSchedule, str, float | None]:
    """(schedule, prediction type, bound on x0) of a diffusers scheduler.

    ``tokens``: of one state, where the network has them; a shift may depend on it. Raises
    InputError for a scheduler that is no teacher's, and for options that are not supported
    (models/teachers/scheduler_options.py).
    """
    options, name = scheduler_options(scheduler, tokens), type(scheduler).__name__
    steps = int(options["num_train_timesteps"])
    if steps < 1:
        raise InputError(f"teacher {name}: num_train_timesteps = {steps}: expected 1 or more")
    if name in EDM:
        if options["prediction_type"] not in EDM_PREDICTIONS:
            raise InputError(
                f"teacher scheduler {name} with prediction_type {options['prediction_type']!r}: "
                "expected epsilon or v_prediction"
            )
        return _preconditioned(options, name), EDM_PREDICTIONS[options["prediction_type"]], None
    if name in VARIANCE_EXPLODING:
        return _exploding(options, name), "ve", None
    if name in FLOW_MATCHING:
        return FlowMatching(steps, _shift(options, tokens)), "flow", None
    prediction = options["prediction_type"]
    if options.get("use_flow_sigmas") or prediction == "flow_prediction":
        if not (options.get("use_flow_sigmas") and prediction == "flow_prediction"):
            raise InputError(
                f"teacher {name}: prediction_type {prediction!r} with use_flow_sigmas = "
                f"{options.get('use_flow_sigmas')}: expected flow_prediction and true together"
            )
        return FlowMatching(steps, options["flow_shift"]), "flow", None
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise InputError(
            f"teacher scheduler {name} with prediction_type {prediction!r}: expected epsilon, "
            "v_prediction or sample"
        )
    if prediction == "epsilon" and options.get("rescale_betas_zero_snr"):
        raise InputError(
            f"teacher {name}: rescale_betas_zero_snr with prediction_type epsilon: at zero "
            "signal-to-noise ratio the noise says nothing about the image; expected v_prediction "
            "or sample, or rescale_betas_zero_snr: false"
        )
    schedule = VariancePreserving(_alphas_cumprod(scheduler, steps))
    clip = float(options["clip_sample_range"]) if options.get("clip_sample", False) else None
    if clip is not None and not clip > 0:
        raise InputError(
            f"teacher {name}: clip_sample_range = {clip:g}: expected a number above 0, or "
            "clip_sample: false"
        )
    return schedule, prediction, clip


def _preconditioned(options: dict[str, Any], name: str) -> Preconditioned:
    """InputError unless the levels fall from ``sigma_max`` to ``sigma_min``, both above 0."""
    low, high, data = (float(options[key]) for key in ("sigma_min", "sigma_max", "sigma_data"))
    if not (0 < low < high < float("inf") and 0 < data < float("inf")):
        raise InputError(
            f"teacher {name}: sigma_min = {low:g}, sigma_max = {high:g}, sigma_data = {data:g}: "
            "expected numbers above 0, sigma_min below sigma_max"
        )
    rho = float(options["rho"]) if options["sigma_schedule"] == "karras" else None
    if rho is not None and not 0 < rho < float("inf"):
        raise InputError(f"teacher {name}: rho = {rho:g}: expected a number above 0")
    return Preconditioned(int(options["num_train_timesteps"]), low, high, data, rho)


def _exploding(options: dict[str, Any], name: str) -> VarianceExploding:
    """InputError unless the levels fall from ``sigma_max`` to ``sigma_min``, both above 0."""
    low, high, end = (float(options[key]) for key in ("sigma_min", "sigma_max", "sampling_eps"))
    if not (0 < low < high < float("inf") and 0 <= end < 1):
        raise InputError(
            f"teacher {name}: sigma_min = {low:g}, sigma_max = {high:g}, sampling_eps = {end:g}: "
            "expected sigmas above 0, sigma_min below sigma_max, and sampling_eps from 0 to 1"
        )
    return VarianceExploding(int(options["num_train_timesteps"]), low, high, end)


def _shift(options: dict[str, Any], tokens: int | None) -> float:
    """The shift of a flow; with ``use_dynamic_shifting`` log shift, or the shift itself, grows
    linearly with the number of tokens (Esser et al. 2024, arXiv 2403.03206, section 5.3.2).
    """
    if tokens is None or not options.get("use_dynamic_shifting"):
        return float(options["shift"])
    few, many = options["base_image_seq_len"], options["max_image_seq_len"]
    slope = (options["max_shift"] - options["base_shift"]) / (many - few)
    grown = options["base_shift"] + slope * (tokens - few)
    return float(grown if options["time_shift_type"] == "linear" else np.exp(grown))


def _alphas_cumprod(scheduler: Any, steps: int) -> np.ndarray:
    """(T,) float64; InputError unless they are T decreasing numbers in [0, 1]."""
    found = np.array(scheduler.alphas_cumprod.double())
    if scheduler.config.get("rescale_betas_zero_snr"):
        found[-1] = 0.0  # Euler, DPM-Solver and UniPC keep 2^-24 there, above the one before
    if len(found) != steps:
        raise InputError(
            f"teacher {type(scheduler).__name__}: trained_betas has {len(found)} entries, "
            f"num_train_timesteps is {steps}: expected as many"
        )
    if not (
        np.isfinite(found).all() and (np.diff(found) < 0).all() and found[0] < 1 and found[-1] >= 0
    ):
        raise InputError(
            f"teacher {type(scheduler).__name__}: betas that do not add noise at every time; "
            "expected each in (0, 1)"
        )
    if found[-1] == 0 and scheduler.config.get("prediction_type", "epsilon") == "epsilon":
        raise InputError(
            f"teacher {type(scheduler).__name__}: the last beta is 1 (zero signal-to-noise ratio) "
            "with prediction_type epsilon; expected v_prediction or sample"
        )
    return found
