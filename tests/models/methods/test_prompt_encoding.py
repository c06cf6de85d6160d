"""Students that take prompts: the same conditions as their teacher's family makes, from a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline

from models.methods.export import open_student
from models.methods.multistep_pipeline import MultistepPipeline
from models.methods.prompt_encoding import TEXT_PARTS, encoded
from models.methods.student_network import student_network
from models.teachers.encoders import text_parts
from models.teachers.guidance import GuidanceRange
from tests.models.teachers.pipelines import build
from tests.models.teachers.texts import PROMPTS, prompt_teacher
from tests.tiny import tiny_unet

FAMILIES = ("sd", "sd2", "sdxl", "sd3", "flux", "pixart", "sana")


@pytest.mark.parametrize("name", FAMILIES)
def test_conditions_are_those_of_the_family(name: str) -> None:
    pipe, teacher = prompt_teacher(name, None if name in ("sana", "flux") else 16)
    expected = teacher.encode_prompts(pipe, PROMPTS)
    found = encoded(pipe, PROMPTS, sorted(expected.keys()))
    assert found.keys() == set(expected.keys())
    for key, value in found.items():
        assert value.dtype == expected[key].dtype
        torch.testing.assert_close(value, expected[key], rtol=1e-4, atol=1e-4)


def student(**changes: Any) -> Any:
    """A student of Stable Diffusion around its own network, of one step."""
    pipe, _ = build("sd")
    about = {
        "pipeline": "StableDiffusionPipeline",
        "options": {"requires_safety_checker": False},
        "keys": ["encoder_hidden_states"],
        "guidance": 3.0,
        "negative_prompt": "blurry",
        "examples": PROMPTS,
        "source": "org/base",
    }
    return MultistepPipeline(
        unet=changes.pop("unet", pipe.unet),
        levels={"1": [[900.0, 0.1, 0.995]]},
        shape=[4, 8, 8],
        vae=pipe.vae,
        prompts=about,
        **({**text_parts(pipe), **changes}),
    )


def weighted(**changes: Any) -> Any:
    """The same, with guidance of 2 to 6 as an input that matters; 3 if nothing is said."""
    _, teacher = prompt_teacher("sd", 16)
    teacher.embed_guidance(GuidanceRange(2.0, 6.0))
    network: Any = student_network(teacher, 4).eval()
    torch.nn.init.normal_(network.time_embedding.cond_proj.weight, std=0.3)
    made = student(unet=network, **changes)
    about = dict(made.prompts) | {"guidance_range": [2.0, 6.0]}
    return made.with_network(network, prompts=about)


def sampled(pipeline: Any, **asked: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    found: torch.Tensor = pipeline(**asked, generator=generator, output_type="pt")[0]
    return found


def test_a_folder_samples_from_prompts_with_diffusers_alone(tmp_path: Path) -> None:
    made = student()
    made.save_pretrained(tmp_path)
    for opened in (
        open_student(tmp_path),
        DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True),
    ):
        both = sampled(opened, prompt=PROMPTS)
        torch.testing.assert_close(both, sampled(made, prompt=PROMPTS))
        assert both.shape == (2, 3, 16, 16) and (both[0] - both[1]).abs().max() > 1e-4
        embeds = opened.encode_prompts(PROMPTS)
        torch.testing.assert_close(sampled(opened, prompt_embeds=embeds, batch_size=2), both)
        states = embeds["encoder_hidden_states"]
        torch.testing.assert_close(sampled(opened, prompt_embeds=states, batch_size=2), both)
        assert opened.prompts["guidance"] == 3.0
    one = sampled(made, prompt=PROMPTS[0], batch_size=2)
    torch.testing.assert_close(one[:1], both[:1])
    assert (one[0] - one[1]).abs().max() > 1e-4  # other noise


def test_encoders_may_stay_where_they_are(tmp_path: Path) -> None:
    made = student()
    made.save_pretrained(tmp_path / "whole")
    made.with_network(made.unet, **dict.fromkeys(TEXT_PARTS)).save_pretrained(tmp_path / "small")
    small = open_student(tmp_path / "small")
    assert not (tmp_path / "small/text_encoder").exists() and small.text_encoder is None
    with pytest.raises(
        ValueError, match="they are those of org/base; load them with load_encoders"
    ):
        sampled(small, prompt="a cat")
    embeds = made.encode_prompts(["a cat"])
    expected = sampled(made, prompt="a cat")
    torch.testing.assert_close(sampled(small, prompt_embeds=embeds), expected)
    build("sd")[0].save_pretrained(tmp_path / "teacher")
    small.load_encoders(str(tmp_path / "teacher"))
    torch.testing.assert_close(sampled(small, prompt="a cat"), expected)
    assert open_student(tmp_path / "whole", encoders=False).text_encoder is None


def test_what_a_student_of_prompts_refuses() -> None:
    made = student()
    assert sampled(made, prompt="a cat", negative_prompt="blurry").shape == (1, 3, 16, 16)
    states = torch.zeros(3, 77, 32)
    for asked, line in (
        ({}, "neither is given"),
        ({"prompt": "a", "prompt_embeds": states}, "both are given"),
        (
            {"prompt": "a", "negative_prompt": "ugly"},
            "guidance, 3.0, away from 'blurry' trained in",
        ),
        ({"prompt": ["a", "b"], "batch_size": 3}, "2 prompts for 3 images"),
        ({"prompt": [1]}, "expected a text, or a list of texts"),
        ({"prompt_embeds": states, "batch_size": 2}, "3 prompts for 2 images"),
        ({"prompt_embeds": {"text_embeds": states}}, r"expected \['encoder_hidden_states'\]"),
        ({"prompt": "a", "class_labels": 1}, "this student has no classes"),
    ):
        with pytest.raises(ValueError, match=line):
            sampled(made, **asked)


def test_other_students_know_nothing_of_prompts(tmp_path: Path) -> None:
    plain = MultistepPipeline(tiny_unet(), {"1": [[900.0, 0.1, 0.995]]}, shape=[1, 8, 8])
    plain.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert not {*TEXT_PARTS, "prompts"} & index.keys()
    opened = open_student(tmp_path)
    assert opened.prompts is None and sampled(opened).shape == (1, 1, 8, 8)
    for asked in ({"prompt": "a cat"}, {"prompt_embeds": torch.zeros(1, 2, 3)}):
        with pytest.raises(ValueError, match="this student takes no prompts"):
            sampled(opened, **asked)


def test_the_call_takes_weights_of_guidance(tmp_path: Path) -> None:
    made = weighted()
    made.save_pretrained(tmp_path)
    both = sampled(made, prompt=PROMPTS, guidance_scale=[2.0, 5.5])
    for i, weight in enumerate((2, 5.5)):
        alone = sampled(made, prompt=PROMPTS, guidance_scale=weight)
        torch.testing.assert_close(both[i], alone[i])
    assert (sampled(made, prompt=PROMPTS, guidance_scale=6.0) - both).abs().max() > 1e-3
    unsaid = sampled(made, prompt=PROMPTS)
    torch.testing.assert_close(unsaid, sampled(made, prompt=PROMPTS, guidance_scale=3.0))
    for opened in (
        open_student(tmp_path),
        DiffusionPipeline.from_pretrained(tmp_path, trust_remote_code=True),
    ):
        found = sampled(opened, prompt=PROMPTS, guidance_scale=np.array([2.0, 5.5]))
        torch.testing.assert_close(found, both)


def test_weights_that_a_student_does_not_take() -> None:
    made, fixed = weighted(), student()
    outside = "this student takes 2 to 6; distil one with another trajectories.guidance_range"
    count = "expected a number, or 2, one for each image; from 2 to 6"
    for asked, told in (
        (7.0, outside), ([3.0, 1.9], outside), (float("nan"), outside), ("5", count),
        ([2.0, 3.0, 4.0], count), (True, count),
    ):  # fmt: skip
        with pytest.raises(ValueError) as refused:
            made(prompt=PROMPTS, guidance_scale=asked)
        assert str(refused.value) == f"guidance_scale {asked}: {told}"
    assert sampled(fixed, prompt="a cat", guidance_scale=3.0).shape[0] == 1
    with pytest.raises(ValueError) as refused:
        fixed(prompt="a cat", guidance_scale=4.0)
    assert str(refused.value) == (
        "guidance_scale 4.0: this student has 3.0 trained in; leave it out, or distil one with "
        "trajectories.guidance_range"
    )
    plain = MultistepPipeline(tiny_unet(), levels={"1": [[900.0, 0.1, 0.995]]}, shape=[1, 8, 8])
    with pytest.raises(ValueError, match=r"guidance_scale 2.0: this student does not take it"):
        plain(guidance_scale=2.0)
