"""Guidance that a network takes as an input: of the teacher, and of its students from the start."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from models.common.errors import InputError
from models.teachers.base import Denoiser
from models.teachers.conditioning import ConditionTable
from models.teachers.loading import denoiser_of_pipeline
from tasks.evaluation.load import untrained_form
from tests.models.takeaway.students import untrained, with_prompts
from tests.models.teachers import pipelines
from tests.models.tinypaths import teacher_of

PROMPTS = ["a cat", "two dogs"]


@pytest.fixture
def made() -> tuple[Any, Any]:
    pipe, _ = pipelines.build("flux")
    teacher: Any = denoiser_of_pipeline(pipe, size=16)
    teacher.set_conditions(ConditionTable(teacher.encode_prompts(pipe, PROMPTS)))
    return pipe, teacher


def state() -> torch.Tensor:
    return torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def test_an_embedded_weight_is_in_every_condition(made: tuple[Any, Any]) -> None:
    _, teacher = made
    x, rows = state(), torch.tensor([0, 1])
    plain = teacher.encode_condition(rows)
    expected = teacher.predict(x, 500.0, plain, guidance=4.0)
    assert (expected - teacher.predict(x, 500.0, plain)).abs().max() > 1e-4
    teacher.embed_guidance(4.0)
    told = teacher.encode_condition(rows)
    assert told["guidance"].tolist() == [4.0, 4.0] and len(told.groups().unique()) == 2
    for found in (
        teacher.predict(x, 500.0, told),
        teacher.predict(x, 500.0, told, guidance=4.0),
        teacher.predict(x, 500.0, plain, guidance=4.0),  # made elsewhere, without it
        teacher.with_network(teacher.network).predict(x, 500.0, told),
    ):
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    with pytest.raises(InputError, match=r"guidance = 2.0: the condition has one; use guidance 1"):
        teacher.predict(x, 500.0, told, guidance=2.0)


def test_an_untrained_student_is_the_guided_teacher(made: tuple[Any, Any]) -> None:
    pipe, teacher = made
    teacher.embed_guidance(4.0)
    student = with_prompts(untrained(teacher, "sigdeg", "lora"), teacher, pipe)
    x, step = state(), student.plan(2)[1]
    x0 = student.network_x0(student.unet, x, x, step, student.conditions(2, prompt=PROMPTS))
    expected = teacher.denoise(x, step.t, teacher.encode_condition(torch.tensor([0, 1])))
    torch.testing.assert_close(x0, expected, rtol=1e-4, atol=1e-5)
    teacher.embedded_guidance = None
    other = teacher.denoise(x, step.t, teacher.encode_condition(torch.tensor([0, 1])))
    assert (x0 - other).abs().max() > 1e-4


def test_networks_without_such_an_input_keep_their_conditions(made: tuple[Any, Any]) -> None:
    _, teacher = made
    teacher.network.register_to_config(guidance_embeds=False)
    teacher.embed_guidance(4.0)
    assert teacher.embedded_guidance is None
    classes: Denoiser = teacher_of("conditional")
    classes.embed_guidance(4.0)
    condition = classes.encode_condition(torch.tensor([1]))
    assert condition is not None and set(condition) == {"class_labels"}


@pytest.mark.parametrize("inputs", ["none", "signature"])
def test_a_student_s_untrained_form_takes_its_channels(made: tuple[Any, Any], inputs: str) -> None:
    """Tokens have four times the channels of a state."""
    pipe, teacher = made
    student = with_prompts(untrained(teacher, "sigdeg", "lora", inputs=inputs), teacher, pipe)
    plain = untrained_form(student, teacher)
    assert plain.unet.config.in_channels == student.unet.config.in_channels
    condition = student.conditions(2, prompt=PROMPTS)
    x0, _ = plain.rollout(state(), None, condition, 2, torch.Generator().manual_seed(0))
    assert x0.shape == (2, 4, 8, 8) and torch.isfinite(x0).all()
