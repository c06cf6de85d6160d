"""What all student pipelines share: the call's arguments, number formats, decoding, and a folder
that opens by itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DModel
from torch import Tensor

from models.methods.multistep_pipeline import MultistepPipeline
from models.methods.sigdeg.pipeline import SigDEGPipeline, Step, steps_as_dicts
from models.methods.student_pipeline import StudentPipeline, normals, travelling_code
from models.methods.swd.pipeline import ScaleStep, SwDPipeline
from tests.tiny import perturbed

KINDS = ("sigdeg", "swd", "multistep")
STEP = Step(
    t=900.0, alpha=0.5, sigma=0.8, a=1.0, b=0.0, m=(0.0, 0.0), predict=(), A=0.3, B=0.7,
    n=(0.1, 0.0), mix=(), width=1.0, kept=(1.0, 1.0),
)  # fmt: skip


def network(inputs: int, outputs: int, classes: int | None) -> UNet2DModel:
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    return perturbed(
        UNet2DModel(
            sample_size=8, in_channels=inputs, out_channels=outputs, layers_per_block=1,
            block_out_channels=(8, 16), norm_num_groups=8, num_class_embeds=classes, **blocks,
        )
    )  # fmt: skip


def student(kind: str, channels: int = 1, classes: int | None = None, vae: Any = None) -> Any:
    """Two steps of each kind of pipeline around random weights."""
    more = {"shape": [channels, 8, 8], "num_classes": classes, "vae": vae}
    inputs = 3 * channels + 1 if kind == "sigdeg" else channels
    unet = network(inputs, channels, classes)
    if kind == "sigdeg":
        return SigDEGPipeline(unet, steps_as_dicts({2: [STEP, STEP], 1: [STEP]}), **more)
    if kind == "swd":
        scales = [asdict(ScaleStep(999, 0.1, 0.99, 4)), asdict(ScaleStep(500, 0.5, 0.8, 8))]
        return SwDPipeline(unet, scales, **more)
    levels = {"2": [(999, 0.1, 0.99), (500, 0.5, 0.8)]}
    return MultistepPipeline(unet, levels, title="Toy", **more)


def autoencoder(**config: Any) -> AutoencoderKL:
    torch.manual_seed(5)
    blocks = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
    }
    sizes = {"block_out_channels": (8, 8), "latent_channels": 2, "norm_num_groups": 4}
    return AutoencoderKL(layers_per_block=1, **blocks, **sizes, **config).eval()


def draw(pipeline: Any, n: int = 3, seed: int = 1, **options: Any) -> Any:
    options = {"generator": torch.Generator().manual_seed(seed), "output_type": "pt"} | options
    return pipeline(n, **options).images


@pytest.mark.parametrize("kind", KINDS)
def test_output_types(kind: str) -> None:
    pipeline = student(kind)
    tensor, array, pictures, latent = (
        draw(pipeline, output_type=name) for name in ("pt", "np", "pil", "latent")
    )
    assert (tensor.shape, tensor.dtype) == ((3, 1, 8, 8), torch.float32)
    # no VAE: latents are images, not yet clamped; the range of tensors is diffusers' own
    assert torch.equal(tensor, (latent.clamp(-1, 1) + 1) / 2)
    np.testing.assert_allclose(array, tensor.numpy().transpose(0, 2, 3, 1), atol=1e-7)
    assert [picture.size for picture in pictures] == [(8, 8)] * 3
    np.testing.assert_allclose(np.array(pictures[1]) / 255, array[1, :, :, 0], atol=0.51 / 255)
    plain = draw(pipeline)
    assert torch.equal(pipeline(3, generator=torch.Generator().manual_seed(1), output_type="pt",
                                return_dict=False)[0], plain)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_one_generator_for_each_image(kind: str) -> None:
    """A list draws for every image what its generator draws alone."""
    pipeline = student(kind)
    together = draw(pipeline, generator=[torch.Generator().manual_seed(seed) for seed in (4, 5, 6)])
    for image, seed in zip(together, (4, 5, 6), strict=True):
        torch.testing.assert_close(image[None], draw(pipeline, 1, seed), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="generator: a list of 1 for batch_size = 3"):
        draw(pipeline, generator=[torch.Generator()])


@pytest.mark.parametrize("kind", KINDS)
def test_class_labels_in_every_form(kind: str) -> None:
    pipeline = student(kind, classes=3)
    expected = draw(pipeline, class_labels=[2, 2, 2])
    for form in (2, np.int64(2), np.array(2), torch.tensor(2), (2, 2, 2), np.array([2, 2, 2]),
                 np.array([2, 2, 2], np.uint8), torch.tensor([2, 2, 2])):  # fmt: skip
        assert torch.equal(draw(pipeline, class_labels=form), expected), form
    other = draw(pipeline, class_labels=np.array([2, 0, 2]))
    assert (other[1] - expected[1]).abs().max() > 1e-4
    for wrong in ([0], 3, -1, [0, 1, 3], 1.0, [True, False, True], "2", np.zeros((3, 1), int)):
        with pytest.raises(ValueError, match="expected 3 classes in 0..2") as caught:
            draw(pipeline, class_labels=wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="this student is conditional; give a class 0..2"):
        draw(pipeline)
    with pytest.raises(ValueError, match="this student has no classes; leave them out"):
        draw(student(kind), class_labels=1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size = 0: expected at least 1"),
        ({"batch_size": 2.0}, "batch_size = 2.0: expected at least 1, a whole number"),
        ({"batch_size": True}, "batch_size = True: expected at least 1, a whole number"),
        ({"output_type": "jpg"}, "output_type 'jpg': expected pil, np, pt, latent"),
        ({"num_inference_steps": 7}, r"num_inference_steps = 7: this student has \["),
    ],
)
def test_errors(kind: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        student(kind)(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_progress_counts_the_steps(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    pipeline = student(kind)
    draw(pipeline)
    assert capsys.readouterr().err == ""
    draw(pipeline, progress=True)
    assert "2/2" in capsys.readouterr().err


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(kind: str, dtype: torch.dtype) -> None:
    """Pixel and latent students, networks and VAE in half precision: near the float32 images."""
    for channels, vae in ((1, None), (2, autoencoder(scaling_factor=0.5))):
        pipeline = student(kind, channels, vae=vae)
        expected = draw(pipeline)
        pipeline.to(dtype=dtype)
        found = draw(pipeline)
        assert found.dtype == torch.float32 and found.shape == expected.shape
        assert (found - expected).abs().mean() < 0.05


@pytest.mark.parametrize("kind", KINDS)
def test_latents_are_decoded_with_scale_shift_and_moments(kind: str) -> None:
    x0 = draw(student(kind, 2), output_type="latent")
    moments = {"latents_mean": (0.1, -0.2), "latents_std": (1.5, 0.5)}
    mean, std = (torch.tensor(v).view(1, 2, 1, 1) for v in moments.values())
    for config, z in (
        ({"scaling_factor": 0.5}, x0 / 0.5),
        ({"scaling_factor": 0.5, "shift_factor": 0.3}, x0 / 0.5 + 0.3),
        ({"scaling_factor": 0.5, **moments}, x0 * std / 0.5 + mean),
    ):
        vae = autoencoder(**config)
        with torch.no_grad():
            expected = (vae.decode(z).sample.clamp(-1, 1) + 1) / 2
        torch.testing.assert_close(draw(student(kind, 2, vae=vae)), expected)


def test_a_vae_that_overflows_in_half_precision_is_run_in_float32() -> None:
    pipeline = student("swd", 2, vae=autoencoder(force_upcast=True)).to(dtype=torch.float16)
    assert torch.isfinite(draw(pipeline)).all()
    assert pipeline.vae.dtype == torch.float32 and pipeline.unet.dtype == torch.float16


@pytest.mark.parametrize("kind", KINDS)
def test_saved_opened_saved_and_opened_again(kind: str, tmp_path: Path) -> None:
    """The same images each time, and the same bytes."""
    pipeline = student(kind, 2, 3, autoencoder())
    expected = draw(pipeline, class_labels=1)
    pipeline.save_pretrained(tmp_path / "a")
    again = type(pipeline).from_pretrained(tmp_path / "a")
    assert torch.equal(draw(again, class_labels=1), expected)
    again.save_pretrained(tmp_path / "b")
    first, second = (
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*.*")}
        for folder in (tmp_path / "a", tmp_path / "b")
    )
    assert first == second
    assert {path.suffix for path in first} == {".json", ".safetensors", ".py"}
    assert all(path.stat().st_mode & 0o044 == 0o044 for path in tmp_path.rglob("*.safetensors"))
    with pytest.raises(ValueError, match="call push_to_hub"):
        pipeline.save_pretrained(tmp_path / "c", push_to_hub=True)


ALONE = """
import sys
import numpy as np, torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging
logging.disable_progress_bar()
for folder in sys.argv[1:]:
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    given = DiffusionPipeline.from_pretrained(folder, custom_pipeline=folder, trust_remote_code=True)
    assert type(given).__name__ == type(pipe).__name__
    pipe.save_pretrained(folder + "-again")
    again = DiffusionPipeline.from_pretrained(folder + "-again", trust_remote_code=True)
    images = [
        each(3, generator=torch.Generator().manual_seed(1), output_type="np").images
        for each in (pipe, given, again)
    ]
    assert all((image == images[0]).all() for image in images)
    np.save(folder + ".npy", images[0])
assert not {"models", "tasks", "flows"} & {name.split(".")[0] for name in sys.modules}
"""


def test_students_of_all_kinds_open_in_one_process_without_the_project(tmp_path: Path) -> None:
    """By diffusers alone: no module of one stands for that of another, a loaded student saves."""
    expected = {}
    for kind in (*KINDS, "sigdeg-2"):
        pipeline = student(kind.split("-")[0])
        pipeline.save_pretrained(tmp_path / kind)
        expected[kind] = draw(pipeline, output_type="np")
    older = tmp_path / "sigdeg-2"  # of an earlier version: its network's output counts half
    index = json.loads((older / "model_index.json").read_text())
    code = next(older.glob("sigdegpipeline_*.py"))
    changed = "D = 0.5 * self.network_x0(self.unet"
    code.write_text(code.read_text().replace("D = self.network_x0(self.unet", changed))
    code.rename(older / "sigdegpipeline_0ld.py")
    index["_class_name"][0] = "sigdegpipeline_0ld"
    (older / "model_index.json").write_text(json.dumps(index))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    folders = [str(tmp_path / kind) for kind in (*KINDS, "sigdeg-2", "sigdeg")]
    result = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, *folders],
        cwd="/", env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-2000:]
    for kind in KINDS:
        np.testing.assert_array_equal(np.load(tmp_path / f"{kind}.npy"), expected[kind])
    assert np.abs(np.load(tmp_path / "sigdeg-2.npy") - expected["sigdeg"]).max() > 1e-3


def test_travelling_code_has_one_name_for_one_content() -> None:
    made = [travelling_code(kind) for kind in (SigDEGPipeline, SwDPipeline, MultistepPipeline)]
    names = [name for files in made for name in files]
    assert len(set(names)) == 6
    for files in made:
        (own, text), (shared, _) = files.items()
        assert f"from .{shared} import" in text and "models." not in text.split('"""')[2]
        assert own.rpartition("_")[2] == shared.rpartition("_")[2]


def test_a_class_without_a_file_of_its_own_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a file of its own"):
        travelling_code(StudentPipeline)


def test_normals_are_those_of_the_generators_device() -> None:
    one = normals((2, 3), "cpu", torch.Generator().manual_seed(2))
    assert torch.equal(one, torch.randn(2, 3, generator=torch.Generator().manual_seed(2)))
    rows: list[Tensor] = [
        torch.randn(1, 20, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)
    ]
    both = normals((2, 20), "cpu", [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    assert torch.equal(both, torch.cat(rows))
