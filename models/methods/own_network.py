"""Teachers whose network is of a class of its own, not of an installed package: whether a student
can be made of one, and the class that opens its folder.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor

from models.common.errors import InputError
from models.methods.multistep_pipeline import MultistepPipeline
from models.methods.student_network import student_network
from models.methods.student_pipeline import network_code
from models.teachers.base import Denoiser


def check_own_network(teacher: Denoiser) -> None:
    """InputError unless students of this teacher's network can be saved, opened and sampled.

    It tries: a student with one more channel is built again from its config and its weights, by
    the code that would travel in its folder, and must denoise as the teacher does. Networks of
    diffusers itself are known to do so.
    """
    network, kind = teacher.network, type(teacher.network).__name__
    if type(network).__module__.partition(".")[0] == "diffusers":
        return
    if not (isinstance(network, ModelMixin) and isinstance(network, ConfigMixin)):
        raise InputError(
            f"teacher's {kind}: a plain PyTorch module, which no student's "
            "folder can hold; expected a class of diffusers' ModelMixin and ConfigMixin with "
            "@register_to_config (docs/extending.md)"
        )
    try:
        code = network_code(type(network))
    except TypeError as error:
        raise InputError(
            f"teacher's {kind}: {error}; expected a class that needs its own file and installed "
            "packages alone"
        ) from error
    try:
        teacher.middle_block()
    except InputError as error:
        raise InputError(
            f"teacher's {kind}: {type(teacher).__name__} names no layer whose features losses "
            "compare; expected middle_block()"
        ) from error
    with torch.random.fork_rng():
        wide = student_network(teacher, teacher.shape[0] + 1).eval()
        try:
            found, expected = _both(teacher, wide, type(network) if code is None else _run(*code))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".split("\n")[0]
            raise InputError(
                f"teacher's {kind}: a student of it cannot be built from its config and called "
                f"({reason}); expected forward(x, t, class_labels=..., return_dict=False) that "
                "returns a tuple, and a config from which the class makes all of it"
            ) from error
    difference = float((found - expected).abs().max())
    if not difference <= 1e-3 * max(1.0, float(expected.abs().max())):  # NaN is a difference
        raise InputError(
            f"teacher's {kind}: called as diffusers' networks are, with one ignored channel more, "
            f"it denoises otherwise than its {type(teacher).__name__} (by up to {difference:.3g}); "
            "expected network(x, t, class_labels=..., return_dict=False)[0] to be the prediction"
        )


@torch.no_grad()
def _both(teacher: Denoiser, wide: Any, kind: Any) -> tuple[Tensor, Tensor]:
    """x0 (2, *shape) by the student's pipeline around a network built anew, and the teacher's."""
    built = kind.from_config(json.loads(wide.to_json_string()))  # as a folder keeps it
    built.load_state_dict(wide.state_dict())
    levels = teacher.schedule.levels(2)
    t, alpha, sigma = (float(each[1]) for each in (levels.t, levels.alpha, levels.sigma))
    pipeline = MultistepPipeline(
        built.eval().to(teacher.device),
        {"1": [[t, alpha, sigma]]},
        prediction_type=teacher.prediction_type,
        shape=list(teacher.shape),
        clip=teacher.clip,
    )
    x, extra = torch.randn(2, *teacher.shape), torch.randn(2, 1, *teacher.shape[1:])
    x, inputs = x.to(teacher.device), torch.cat([x, extra], 1).to(teacher.device)
    condition = teacher.default_condition(2)
    x0 = pipeline.network_x0(built, inputs, x, pipeline.levels()[0], condition)
    return pipeline.clipped(x0), teacher.denoise(x, t, condition)


def _run(name: str, text: str) -> Any:
    """The class that a network's own code defines, run in a module of its own."""
    module = ModuleType(name)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        exec(compile(text, f"{name}.py", "exec"), vars(module))
    finally:
        del sys.modules[name]
    kinds = {
        each.__name__.lower(): each for each in vars(module).values() if isinstance(each, type)
    }
    return kinds[name.rpartition("_")[0]]


def own_classes(folder: Path, index: Mapping[str, Any]) -> dict[str, Any]:
    """The classes of a folder's networks that bring code of their own, by part.

    That code is not run: they are classes that this process has imported, by ``extensions`` or a
    factory, with the same code. ValueError where there is none. ``index``: model_index.json.
    """
    found: dict[str, Any] = {}
    for part, value in index.items():
        if not isinstance(value, list) or len(value) != 2:
            continue
        if not (folder / part / f"{value[0]}.py").is_file():
            continue
        same = [kind for kind in _imported(ModelMixin, value[1]) if _same(kind, value[0])]
        if not same:
            raise ValueError(
                f"student {folder}: its {part} is a {value[1]} of code of its own, which is not "
                "run here; expected the same class in a file of extensions"
            )
        found[part] = same[0]
    return found


def _imported(base: type, name: str) -> Iterator[type]:
    kind: type
    for kind in base.__subclasses__():
        if kind.__name__ == name:
            yield kind
        yield from _imported(kind, name)


def _same(kind: type, library: str) -> bool:
    """Whether the class's code is that of the file ``library``."""
    module = sys.modules.get(kind.__module__)
    if not re.fullmatch(r"\w+_[0-9a-f]{8}", library) or vars(module).get(kind.__name__) is not kind:
        return False
    try:
        code = network_code(kind)
    except TypeError:
        return False
    return code is not None and code[0] == library
