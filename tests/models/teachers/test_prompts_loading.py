"""Text-to-image pipelines from folders: what is loaded, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from models.common.errors import InputError
from models.teachers.conditioning import Condition
from models.teachers.loading import denoiser_of_pipeline, load_denoiser, open_pipeline
from tasks.utils.atomic import atomic_write_json
from tests.models.teachers.pipelines import build
from tests.models.teachers.texts import PIXELS, prompt_teacher, table


def refused(pipe: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        denoiser_of_pipeline(pipe, "teacher", **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_encoders_stay_on_disk(tmp_path: Path) -> None:
    """Even where their weights are gone: a table takes their place. The size may be recorded."""
    pipe, teacher = prompt_teacher("sd", 2 * PIXELS)
    pipe.save_pretrained(tmp_path)
    (tmp_path / "text_encoder" / "model.safetensors").unlink()
    atomic_write_json(tmp_path / "teacher.json", {"size": 2 * PIXELS})
    loaded: Any = load_denoiser(tmp_path)
    assert loaded.shape == (4, 32, 32) == teacher.shape
    assert (loaded.condition_kind, loaded.num_classes) == ("prompts", None)
    assert loaded.fingerprint() == teacher.fingerprint()
    x = torch.zeros(1, 4, 32, 32)
    with pytest.raises(InputError, match="it takes prompts, and has no table"):
        loaded.encode_condition(torch.tensor([0]))
    with pytest.raises(InputError, match=r"conditional \(prompts\)"):
        loaded.denoise(x, 5.0)
    loaded.set_conditions(teacher.conditions)
    rows = loaded.encode_condition(torch.tensor([1]))
    with torch.no_grad():
        found, expected = (each.denoise(x, 5.0, rows, 3.0) for each in (loaded, teacher))
    torch.testing.assert_close(found, expected)
    with pytest.raises(InputError, match=r"opens there"):
        open_pipeline(tmp_path)


def test_encoding_needs_the_encoders() -> None:
    pipe, teacher = prompt_teacher("sd")
    pipe.text_encoder = None
    with pytest.raises(InputError, match="prompts need its text_encoder, which are not there"):
        teacher.encode_prompts(pipe, ["a cat"])


def test_rows_do_not_depend_on_what_they_are_encoded_with() -> None:
    """Fixed padding: a prompt alone gives the row that it gives beside a longer one."""
    pipe, teacher = prompt_teacher("sd")
    together = teacher.encode_prompts(pipe, ["a", "a much longer prompt of many words"])
    torch.testing.assert_close(
        teacher.encode_prompts(pipe, ["a"])["encoder_hidden_states"],
        together[:1]["encoder_hidden_states"],
    )
    assert together["encoder_hidden_states"].dtype == torch.float32


def test_sizes_that_do_not_fit() -> None:
    pipe = build("sd")[0]
    assert "teacher.size = 18: expected a multiple of 4, 2 for" in refused(pipe, size=18)
    assert "data of its own size" in refused(build("ddpm")[0], size=32)


def test_an_image_encoder_is_refused() -> None:
    pipe = build("sd")[0]
    small = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**small, num_hidden_layers=1, image_size=8, patch_size=4)
    pipe.register_modules(image_encoder=CLIPVisionModelWithProjection(vision))
    assert "has the parts image_encoder" in refused(pipe)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("time_cond_proj_dim", 8),
        ("encoder_hid_dim_type", "ip_image_proj"),
        ("class_embed_type", "timestep"),
        ("addition_embed_type", "text"),
    ],
)
def test_unets_with_further_inputs_are_refused(option: str, value: Any) -> None:
    pipe = build("sd")[0]
    pipe.unet.register_to_config(**{option: value})
    assert f"{option} = {value!r}; expected null" in refused(pipe)


def test_the_refiner_is_refused() -> None:
    pipe = build("sdxl")[0]
    pipe.register_to_config(requires_aesthetics_score=True)
    assert "a refiner of finished images" in refused(pipe)


def test_zeros_stand_for_no_prompt_where_the_pipeline_says_so() -> None:
    pipe, teacher = prompt_teacher("sdxl")
    assert not any(bool(v.any()) for v in teacher.conditions.null.values())
    pipe.register_to_config(force_zeros_for_empty_prompt=False)
    null = teacher.encode_null(pipe)
    for name, value in teacher.encode_prompts(pipe, [""]).items():
        assert torch.equal(null[name], value) and bool(value.any())


def test_guidance_is_an_input_of_flux() -> None:
    """One call with the weight; the unguided answer is that of weight 1."""
    pipe, teacher = prompt_teacher("flux")
    assert teacher.encode_null(pipe) is None and teacher.can_guide
    rows, x = teacher.encode_condition(torch.tensor([0, 1])), torch.randn(2, *teacher.shape)
    calls = []
    teacher.network.register_forward_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        plain, strong = (teacher.predict(x, 500.0, rows, weight) for weight in (1.0, 5.0))
        assert len(calls) == 2 and (plain - strong).abs().max() > 1e-3
        weights = Condition({**dict(rows.items()), "guidance": torch.tensor([1.0, 5.0])})
        mixed = teacher.predict(x, 500.0, weights)
    torch.testing.assert_close(mixed, torch.stack([plain[0], strong[1]]))
    with pytest.raises(InputError, match=r"guidance = 3.0: the condition has one"):
        teacher.predict(x, 500.0, weights, 3.0)


def test_flux_without_a_guidance_input_takes_no_weight() -> None:
    pipe = build("flux")[0]
    config = {**pipe.transformer.config, "guidance_embeds": False}
    pipe.register_modules(transformer=FluxTransformer2DModel.from_config(config))
    teacher: Any = denoiser_of_pipeline(pipe, "schnell", size=PIXELS)
    teacher.set_conditions(table("flux"))
    rows, x = teacher.encode_condition(torch.tensor([0])), torch.zeros(1, *teacher.shape)
    assert not teacher.can_guide
    with pytest.raises(InputError, match=r"guidance = 3.0: the network takes none"):
        teacher.predict(x, 500.0, rows, 3.0)


def test_flux_makes_what_its_pipeline_makes_where_no_size_is_said() -> None:
    assert denoiser_of_pipeline(build("flux")[0]).shape == (4, 128, 128)


def test_the_shift_of_flux_follows_the_size() -> None:
    """As its scheduler shifts its own steps."""
    pipe = build("flux")[0]
    for size in (PIXELS, 8 * PIXELS):
        teacher = denoiser_of_pipeline(pipe, size=size)
        shift = calculate_shift(int(size / 4) ** 2)
        pipe.scheduler.set_timesteps(sigmas=np.linspace(1, 0.1, 10), mu=shift)
        np.testing.assert_allclose(
            teacher.schedule.levels(10).sigma, pipe.scheduler.sigmas, rtol=1e-5
        )


def test_sizes_beyond_the_position_embeddings_of_sd3() -> None:
    assert "end at 64; expected at most that" in refused(build("sd3")[0], size=68)


def test_sd3_without_t5_has_zeros_in_its_place() -> None:
    pipe, teacher = prompt_teacher("sd3")
    pipe.text_encoder_3 = pipe.tokenizer_3 = None
    states = teacher.encode_prompts(pipe, ["a cat"])["encoder_hidden_states"]
    assert states.shape[1:] == teacher.conditions.rows["encoder_hidden_states"].shape[1:]
    assert not states[:, 77:].any() and states[:, :77].any()


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("flux", {"in_channels": 96, "out_channels": 16}, "in_channels 96, out_channels 16"),
        ("flux", {"patch_size": 2}, "patch_size = 2; expected 1"),
        ("sana", {"guidance_embeds": True}, "guidance_embeds = True; expected False or null"),
    ],
)
def test_other_uses_of_the_networks_are_refused(name: str, changes: Any, words: str) -> None:
    pipe = build(name)[0]
    pipe.transformer.register_to_config(**changes)
    assert words in refused(pipe)
