"""Teachers that are not diffusers pipelines: a function of a file of the user's."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from models.teachers.trust import _TRUSTED
from tasks.config.extensions import load_extensions
from tasks.config.schema import Params
from tasks.data.teacher import load_teacher
from tasks.stages import teacher
from tests.inputs.rows import Row

TITLE = "Teachers of your own (`teacher.source: factory`)"
FILE = """
import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from models.teachers.codec import Codec
from models.teachers.diffusers_model import DiffusersDenoiser
from models.teachers.schedule import VariancePreserving


class Net(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, in_channels=1, out_channels=1):
        super().__init__()
        self.conv_in = torch.nn.Conv2d(in_channels, 4, 3, padding=1)
        self.conv_out = torch.nn.Conv2d(4, out_channels, 3, padding=1)

    def forward(self, x, t, return_dict=False):
        return (self.conv_out(torch.tanh(self.conv_in(x) + t.view(-1, 1, 1, 1) / 1000)),)


class Named(DiffusersDenoiser):
    def middle_block(self):
        return self.network.conv_in


def make(network=None, kind=Named):
    schedule = VariancePreserving(np.cumprod(1 - np.linspace(1e-4, 0.02, 1000)))
    return kind(network or Net(), schedule, shape=(1, 8, 8), prediction_type="epsilon")


def plain():
    return make(torch.nn.Linear(8, 8))


def unnamed():
    return make(kind=DiffusersDenoiser)
"""


def given(function: str, trusted: bool = True) -> Callable[[Path], None]:
    """The teacher stage with this function of the file above."""

    def run(root: Path) -> None:
        name = f"{function}_teacher"
        (root / f"{name}.py").write_text(FILE)
        factory = f"{name}:{function}"
        section = {"source": "factory", "factory": factory, "trust_remote_code": trusted}
        try:
            load_extensions([f"{name}.py"], root)
            params = Params.model_validate_json(json.dumps({"teacher": section}))
            teacher.run(params, root)
            assert load_teacher(root).shape == (1, 8, 8)
        finally:
            _TRUSTED.discard(factory)
            sys.modules.pop(name, None)

    return run


ROWS = (
    Row(
        "factory",
        "a network of a class of diffusers' `ModelMixin` and `ConfigMixin`",
        given("make"),
        taken="through all stages; its code travels in the student's folder",
    ),
    Row(
        "factory-untrusted",
        "`trust_remote_code: false`",
        given("make", False),
        refused="teacher.factory = make_teacher:make: code is not run unasked; read it, and if you "
        "trust it set teacher.source=factory, teacher.factory and teacher.trust_remote_code=true",
    ),
    Row(
        "factory-plain",
        "a plain PyTorch module",
        given("plain"),
        refused="teacher's Linear: a plain PyTorch module, which no student's folder can hold; expected a "
        "class of diffusers' ModelMixin and ConfigMixin with @register_to_config (docs/extending.md)",
    ),
    Row(
        "factory-features",
        "a denoiser without `middle_block`",
        given("unnamed"),
        refused="teacher's Net: DiffusersDenoiser names no layer whose features losses compare; "
        "expected middle_block()",
    ),
)
