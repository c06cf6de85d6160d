"""Teachers that are diffusers pipelines, given to the teacher stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    LDMPipeline,
    UNet2DModel,
    VQModel,
)
from safetensors.torch import load_file, save_file

from models.teachers.base import Denoiser
from models.teachers.conditioning import class_condition
from tasks.config.schema import Params
from tasks.data.teacher import load_teacher
from tasks.stages import dataset, teacher
from tests.inputs.rows import Row
from tests.tiny import perturbed, tiny_dit, tiny_unet

TITLE = "Teachers (`teacher.source: pretrained`)"
WEIGHTS = "in/unet/diffusion_pytorch_model.safetensors"
Network = Callable[[], Any]


def plain() -> DDPMScheduler:
    return DDPMScheduler(clip_sample=False)


def unet(channels: int = 1, out: int | None = None, **more: Any) -> UNet2DModel:
    torch.manual_seed(0)
    blocks: dict[str, Any] = {
        "sample_size": 8, "layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 8,
        "down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2,
        "add_attention": False,
    }  # fmt: skip
    return perturbed(
        UNet2DModel(in_channels=channels, out_channels=out or channels, **blocks | more)
    )


def autoencoder(kind: Any = AutoencoderKL, channels: int = 2, **more: Any) -> Any:
    torch.manual_seed(1)
    more |= {"num_vq_embeddings": 16} if kind is VQModel else {}
    return perturbed(
        kind(latent_channels=channels, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
             down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, **more)
    )  # fmt: skip


def opened(root: Path, **section: Any) -> Denoiser:
    """The teacher stage on root/in, and what it leaves."""
    given = {"teacher": {"source": "pretrained", "path": "in"} | section}
    teacher.run(Params.model_validate(given), root)
    return load_teacher(root)


def network(
    make: Network, change: Callable[[Path], None] | None = None, **section: Any
) -> Callable[[Path], Denoiser]:
    """A DDPMPipeline of this network, changed on disk."""

    def run(root: Path) -> Denoiser:
        DDPMPipeline(unet=make(), scheduler=plain()).save_pretrained(root / "in")
        if change is not None:
            change(root)
        return opened(root, **section)

    return run


def config(name: str, **values: Any) -> Callable[[Path], None]:
    """A change of a JSON file below root/in."""

    def change(root: Path) -> None:
        file = root / "in" / name
        before = json.loads(file.read_text()) if file.is_file() else {}
        file.write_text(json.dumps(before | values))

    return change


def latent(make: Network, channels: int = 2) -> Callable[[Path], Denoiser]:
    def run(root: Path) -> Denoiser:
        scheduler = DDIMScheduler(clip_sample=False)
        LDMPipeline(make(), unet(channels), scheduler).save_pretrained(root / "in")
        return opened(root)

    return run


def pixels(root: Path) -> None:
    found = network(lambda: tiny_unet(classes=3))(root)
    assert (found.shape, found.num_classes, found.codec.latent) == ((1, 8, 8), 4, False)


def null_first(root: Path) -> None:
    make = lambda: tiny_unet(classes=3)  # noqa: E731
    found = network(make, null_class=0)(root)
    assert (found.num_classes, found.null_class) == (3, 3)
    x = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        theirs = make()(x, 5, class_labels=torch.tensor([1])).sample
        torch.testing.assert_close(
            found.predict(x, 5.0, class_condition(torch.tensor([0]))), theirs
        )


def vqvae(root: Path) -> None:
    make = lambda: autoencoder(VQModel, 3, scaling_factor=0.5)  # noqa: E731
    found, x0 = latent(make, 3)(root), torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        theirs = make().decode(x0 / 0.5).sample.clamp(-1, 1)
    torch.testing.assert_close(found.decode(x0), theirs)
    assert theirs.shape == (1, 3, 16, 16)


def transformer(root: Path) -> None:
    DiTPipeline(tiny_dit(), autoencoder(), plain()).save_pretrained(root / "in")
    found = opened(root)
    assert (found.shape, found.num_classes, found.codec.latent) == ((2, 8, 8), 3, True)


def beside(size: int | tuple[int, int], channels: int = 1) -> Callable[[Path], Denoiser]:
    """A teacher of this shape, where data/dataset has digits of 8x8."""

    def run(root: Path) -> Denoiser:
        given = {"dataset": {"kind": "digits", "size": 8, "holdout": 20}}
        dataset.run(Params.model_validate(given), root)
        return network(lambda: unet(channels, sample_size=size))(root)

    return run


def rewrite(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def on_disk(root: Path) -> None:
        found = load_file(root / WEIGHTS)
        change(found)
        save_file(found, root / WEIGHTS, {"format": "pt"})

    return on_disk


def lost(weights: dict[str, torch.Tensor]) -> None:
    del weights["conv_in.weight"]


def spoiled(weights: dict[str, torch.Tensor]) -> None:
    weights["conv_in.weight"][0, 0, 0, 0] = np.nan


def pickled(root: Path) -> None:
    DDPMPipeline(unet=unet(), scheduler=plain()).save_pretrained(
        root / "in", safe_serialization=False
    )
    opened(root)


def own_code(root: Path) -> None:
    code = "from diffusers import DDPMPipeline\nclass Mine(DDPMPipeline):\n    pass\n"

    def change(root: Path) -> None:
        (root / "in" / "mine.py").write_text(code)
        config("model_index.json", _class_name=["mine", "Mine"])(root)

    network(unet, change)(root)


def absent(root: Path) -> None:
    (root / "in").mkdir()
    opened(root)


def refused(id: str, given: str, run: Callable[[Path], object], line: str) -> Row:
    return Row(id, given, run, refused=line)


CONVERT = (
    "teacher in: unet/diffusion_pytorch_model.bin is there, pickled weights; expected "
    "diffusion_pytorch_model.safetensors; convert the folder once (only if you trust the file): "
    "python -c \"from diffusers import DiffusionPipeline as P; P.from_pretrained('in', "
    "use_safetensors=False).save_pretrained('in-converted')\""
)
OPENS = "teacher in: no diffusers pipeline with safetensors weights opens there ({}); give a folder " \
    "written by save_pretrained, or a hub id that this machine can reach"  # fmt: skip
SHAPE = "the teacher makes {}, data/dataset has 1x8x8: expected the same shape; {}, or choose another teacher"
ROWS = (
    Row("ddpm", "`DDPMPipeline`: `UNet2DModel` of pixels, with or without classes", pixels, "through all stages"),
    Row("vqvae", "`LDMPipeline`: `UNet2DModel` of latents and a `vqvae` or `vae`", vqvae,
        "images are the autoencoder's decoding"),
    Row("dit", "`DiTPipeline`", transformer, "classes, learned variance left out"),
    Row("null-first", "`teacher.null_class: 0`: the class that means none comes first", null_first,
        "moved behind the others; real classes are 0 to n - 1"),
    refused("null-range", "a null class that is not there", network(lambda: tiny_unet(classes=3), null_class=4),
            "teacher.null_class = 4: expected 0 to 3, the network has 4 classes"),
    refused("null-text", "a `teacher.json` with `null_class: \"none\"`",
            network(lambda: tiny_unet(classes=3), config("teacher.json", null_class="none")),
            "in/teacher.json: null_class = 'none': expected the number of a class, or null"),
    refused("colours", "3 channels of 16x16 beside digits of 1x8x8", beside(16, 3),
            SHAPE.format("3x16x16", "give it dataset.size=16 and images of 3 channels (dataset.channels)")),
    refused("rectangle", "8x16 beside squares", beside((8, 16)),
            SHAPE.format("1x8x16", "images of a dataset are square")),
    refused("two-channels", "2 or 4 channels without an autoencoder", network(lambda: unet(2)),
            "teacher: 2 channels and no autoencoder; images have 1 or 3; expected a pipeline with the vae that its "
            "latents belong to"),
    refused("concatenated", "`in_channels` 5, `out_channels` 1: a class or an image as further channels",
            network(lambda: unet(5, 1)),
            "teacher's UNet2DModel: in_channels 5, out_channels 1; expected the same (inputs beside the state are "
            "not supported), or twice as many with a scheduler whose variance_type is learned or learned_range"),
    refused("class-embed", "`class_embed_type: timestep`", network(lambda: unet(class_embed_type="timestep")),
            "teacher's UNet2DModel: class_embed_type 'timestep'; expected null with num_class_embeds, one embedding "
            "per class"),
    refused("no-middle", "`mid_block_type: null`", network(lambda: unet(mid_block_type=None)),
            "teacher's UNet2DModel: mid_block_type null; expected a middle block, whose features losses compare"),
    refused("size-null", "`sample_size: null`", network(unet, config("unet/config.json", sample_size=None)),
            "teacher's UNet2DModel: sample_size null; expected the size it is to make; write it into its config.json"),
    refused("size-odd", "a size that the blocks cannot halve", network(unet, config("unet/config.json", sample_size=9)),
            "teacher's UNet2DModel does not run on states of (1, 9, 9) (Sizes of tensors must match except in "
            "dimension 1. Expected size 10 but got size 9 for tensor number 1 in the list.); expected a size that "
            "its blocks can halve and double again, as it was trained with"),
    refused("fourier", "`time_embedding_type: fourier` with a discrete schedule, whose log of time 0 is infinite",
            network(lambda: unet(time_embedding_type="fourier")),
            "teacher's UNet2DModel gives NaN or infinity at time 0 for states of (1, 8, 8); expected finite "
            "predictions of the same shape at every time of its scheduler"),
    refused("latent-width", "latents of another width than the network's", latent(autoencoder, 3),
            "teacher: its network has 3 channels, the latents of its AutoencoderKL 2; expected the same"),
    refused("latent-scale", "an autoencoder with `scaling_factor: 0`", latent(lambda: autoencoder(scaling_factor=0.0)),
            "teacher's AutoencoderKL: scaling_factor 0.0; expected a number above 0"),
    refused("latent-mean", "`latents_mean` without `latents_std`", latent(lambda: autoencoder(latents_mean=[0.0, 1.0])),
            "teacher's AutoencoderKL: latents_mean [0.0, 1.0], latents_std None; expected both or neither"),
    refused("weights-nan", "weights with NaN", network(unet, rewrite(spoiled)),
            "teacher's UNet2DModel: conv_in.weight holds NaN or infinity; its training went wrong or its file is "
            "damaged: take another checkpoint"),
    refused("weights-lost", "a weight file that lacks some", network(unet, rewrite(lost)),
            "teacher in: unet's weights lack conv_in.weight and 0 others; expected all that its config.json asks "
            "for; fetch or save the folder again"),
    refused("weights-bin", "`.bin` weights, or those of a variant such as fp16 alone", pickled, CONVERT),
    refused("own-code", "code of its own, not trusted", own_code,
            "teacher in: brings code of its own, which is not run unasked; read it, and if you trust it set "
            "teacher.trust_remote_code: true"),
    refused("unknown-pipeline", "a class that diffusers does not have",
            network(unet, config("model_index.json", _class_name="NewPipeline")),
            OPENS.format("module diffusers has no attribute NewPipeline")),
    refused("no-pipeline", "a folder that is no pipeline", absent,
            "teacher in: no model_index.json; expected a diffusers pipeline folder (save_pretrained)"),
    refused("revision", "`teacher.revision` of a folder", network(unet, revision="main"),
            "teacher.revision = main: in is a folder here, which has no revisions; use null"),
)  # fmt: skip
