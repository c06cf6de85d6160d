"""Guidance whose weight is an input: the weights of a range, the teacher asked row by row, and the
students' new input.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from scipy import stats
from torch import Tensor

from models.common.errors import InputError
from models.methods.student_network import merged, student_network
from models.sampling.baselines import sample_baseline
from models.teachers.conditioning import Condition
from models.teachers.guidance import (
    GuidanceRange,
    asked_weights,
    split_weights,
    weight_closeness,
    with_weights,
)
from models.teachers.network_call import call_network, weight_embedding
from tests.models.teachers.texts import prompt_teacher
from tests.models.tinypaths import teacher_of

RANGE = GuidanceRange(1.5, 8.0)
ROWS = torch.tensor([0, 1, 1])
WEIGHTS = torch.tensor([1.5, 4.0, 8.0])


def state(teacher: Any, n: int = 3) -> Tensor:
    return torch.randn(n, *teacher.shape, generator=torch.Generator().manual_seed(0))


def test_even_weights_fill_the_range() -> None:
    """However many there are, and in any part of the sequence."""
    for n, first in ((8, 0), (50, 0), (50, 1000)):
        places = (RANGE.evenly(n, first).sort().values - 1.5) / 6.5
        assert float((places - (torch.arange(n) + 0.5) / n).abs().max()) < 2 / n
    torch.testing.assert_close(RANGE.evenly(5, 3), RANGE.evenly(8)[3:])
    ends = RANGE.at(torch.tensor([0.0, 0.5, 1 - 2**-24]))
    assert ends.tolist() == pytest.approx([1.5, 4.75, 8.0]) and ends.max() <= 8.0
    assert ends.dtype == torch.float32
    uniform = stats.uniform(1.5, 6.5)
    assert stats.kstest(RANGE.at(torch.rand(4000)).numpy(), uniform.cdf).pvalue > 1e-4


def test_weights_of_a_condition() -> None:
    plain = Condition(class_labels=torch.tensor([0, 2]))
    told = with_weights(plain, torch.tensor([2.0, 3.0]))
    rest, weights = split_weights(told)
    assert set(rest) == {"class_labels"} and weights is not None and weights.tolist() == [2, 3]
    assert split_weights(plain)[1] is None and asked_weights(plain, 2.5)[1] == 2.5
    with pytest.raises(InputError) as missing:
        asked_weights(plain, RANGE)
    assert str(missing.value) == (
        "guidance in [1.5, 8]: the condition has no weights; expected one for each sample "
        "(models.teachers.guidance.with_weights)"
    )
    with pytest.raises(InputError) as twice:
        asked_weights(told, 2.0)
    assert str(twice.value) == (
        "guidance = 2.0: the condition has weights of its own; expected their range, or guidance "
        "1.0"
    )
    near = weight_closeness(told, GuidanceRange(2.0, 7.0))  # one width apart
    assert near is not None and near.diag().tolist() == [1, 1]
    assert float(near[0, 1]) == pytest.approx(float(torch.tensor(-0.5).exp()))
    assert weight_closeness(told, 2.0) is None and weight_closeness(None, RANGE) is None


@pytest.mark.parametrize("name", ["sd", "sdxl"])
def test_a_teacher_is_asked_row_by_row(name: str) -> None:
    """Each row as if all had its weight, by the teacher itself and by samplers on it."""
    teacher: Any = prompt_teacher(name)[1]
    x, plain = state(teacher), teacher.encode_condition(ROWS)
    told = with_weights(plain, WEIGHTS)
    found = teacher.predict(x, 500.0, told, RANGE)
    run = sample_baseline(teacher, "unipc", 3, x, told, RANGE)
    for i, weight in enumerate(WEIGHTS.tolist()):
        expected = teacher.predict(x, 500.0, plain, weight)
        torch.testing.assert_close(found[i], expected[i], rtol=1e-5, atol=1e-5)
        assert i == 0 or (found[0] - found[i]).abs().max() > 1e-3
        alone = sample_baseline(teacher, "unipc", 3, x, plain, weight)
        torch.testing.assert_close(run[i], alone[i], rtol=1e-4, atol=1e-4)
    # whoever does not ask for guidance gets none, whatever the condition says
    for given in (teacher.predict(x, 500.0, told), teacher.predict(x, 500.0, plain, 1.0)):
        torch.testing.assert_close(given, teacher.output(x, 500.0, plain), rtol=0, atol=0)


def test_classes_are_asked_row_by_row_too() -> None:
    teacher = teacher_of("conditional")
    x, plain = state(teacher), Condition(class_labels=ROWS)
    found = teacher.denoise(x, 300.0, with_weights(plain, WEIGHTS), RANGE)
    for i, weight in enumerate(WEIGHTS.tolist()):
        expected = teacher.denoise(x, 300.0, plain, weight)[i]
        torch.testing.assert_close(found[i], expected, rtol=1e-5, atol=1e-5)


def test_a_network_that_takes_the_weight_gets_each_row_s() -> None:
    teacher: Any = prompt_teacher("flux")[1]
    teacher.embed_guidance(RANGE)
    x, plain = state(teacher), teacher.encode_condition(ROWS)
    assert "guidance" not in plain  # which label has which weight, a label does not say
    told = with_weights(plain, WEIGHTS)
    found = teacher.predict(x, 500.0, told, RANGE)
    torch.testing.assert_close(found, teacher.predict(x, 500.0, told), rtol=0, atol=0)
    teacher.embed_guidance(1.0)
    for i, weight in enumerate(WEIGHTS.tolist()):
        expected = teacher.predict(x, 500.0, plain, weight)[i]
        torch.testing.assert_close(found[i], expected, rtol=1e-5, atol=1e-5)
    assert (found[1] - found[2]).abs().max() > 1e-4
    with pytest.raises(InputError, match="the condition has no weights"):
        teacher.predict(x, 500.0, plain, RANGE)


def test_even_conditions_have_even_weights() -> None:
    teacher: Any = prompt_teacher("sd")[1]
    assert set(teacher.default_condition(3)) == {"encoder_hidden_states"}
    teacher.embed_guidance(RANGE)
    condition = teacher.default_condition(4, 2)
    torch.testing.assert_close(condition["guidance"], RANGE.evenly(4, 2))
    teacher.embed_guidance(7.5)  # one weight is none of a UNet's inputs
    assert teacher.embedded_guidance is None


@pytest.mark.parametrize("kind", ["sd3", "pixart", "sana", "conditional", "v_prediction"])
def test_who_has_no_such_input(kind: str) -> None:
    text = kind in ("sd3", "pixart", "sana")
    teacher: Any = prompt_teacher(kind)[1] if text else teacher_of(kind)
    with pytest.raises(InputError) as refused:
        teacher.embed_guidance(RANGE)
    assert str(refused.value) == (
        f"trajectories.guidance_range = [1.5, 8]: students of a {type(teacher.network).__name__} "
        "have no input for the weight of guidance; expected a teacher with a UNet2DConditionModel "
        "(Stable Diffusion 1.x, 2.x, XL), or a FluxTransformer2DModel with guidance_embeds; use "
        "null, and one trajectories.guidance"
    )


def test_flux_without_the_embedding_has_no_such_input() -> None:
    teacher: Any = prompt_teacher("flux")[1]
    teacher.network.register_to_config(guidance_embeds=False)
    with pytest.raises(InputError, match="a FluxTransformer2DModel have no input for the weight"):
        teacher.embed_guidance(RANGE)


@pytest.mark.parametrize("width", [256, 32])
def test_the_embedding_is_that_of_stock_pipelines(width: int) -> None:
    weights = torch.tensor([0.0, 1.0, 1.5, 7.5, 19.9])
    expected = StableDiffusionPipeline.get_guidance_scale_embedding(
        None, weights - 1, embedding_dim=width
    )
    torch.testing.assert_close(weight_embedding(weights, width), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_a_student_begins_as_its_teacher_and_takes_the_weight(trainable: str) -> None:
    teacher: Any = prompt_teacher("sd")[1]
    teacher.embed_guidance(RANGE)
    x, t = state(teacher), torch.full((3,), 500)
    told = with_weights(teacher.encode_condition(ROWS), WEIGHTS)
    student: Any = student_network(teacher, 4, trainable, 2)
    layer = student.time_embedding.cond_proj
    assert layer.weight.requires_grad and teacher.network.time_embedding.cond_proj is None
    assert teacher.network.config.time_cond_proj_dim is None
    expected = teacher.output(x, t, told)
    torch.testing.assert_close(call_network(student, x, t, told), expected, rtol=0, atol=0)
    call_network(student, x, t, told).square().mean().backward()
    assert bool(layer.weight.grad.any())  # it can leave zero
    torch.nn.init.normal_(layer.weight, std=0.3)
    moved = call_network(student, x, t, told)
    other = call_network(student, x, t, with_weights(told, WEIGHTS.flip(0)))
    assert (moved - expected).abs().max() > 1e-3 and (moved - other)[0].abs().max() > 1e-3
    # the same through a folder's own config
    plain: Any = merged(student)
    again = type(plain).from_config(json.loads(plain.to_json_string()))
    again.load_state_dict(plain.state_dict())
    torch.testing.assert_close(call_network(again, x, t, told), moved, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="takes guidance's weight; none is given"):
        call_network(student, x, t, split_weights(told)[0])
    # half precision keeps enough of the weight
    half = call_network(plain.to(torch.bfloat16), x, t, told)
    assert (half - moved).abs().max() < 0.1 * moved.abs().max()


def test_a_student_s_weights_of_its_own_hold_the_input() -> None:
    """With LoRA too: what checkpoints and averages keep."""
    from models.common.own_weights import own_weights

    teacher: Any = prompt_teacher("sd")[1]
    teacher.embed_guidance(RANGE)
    student: Any = student_network(teacher, 4, "lora", 2)
    own = own_weights(student, student.state_dict())
    assert "time_embedding.cond_proj.weight" in own
    assert all("lora_" in name for name in own if name != "time_embedding.cond_proj.weight")
