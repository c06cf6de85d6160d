"""Stock diffusers pipelines with tiny random weights, tokenizers and encoders; no hub."""

from __future__ import annotations

import string
from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EDMEulerScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    PNDMScheduler,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

from tests.tiny import perturbed, tiny_unet

SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
LETTERS = string.ascii_lowercase


def clip_tokenizer() -> Any:
    words = ["<|startoftext|>", "<|endoftext|>", *LETTERS, *(f"{c}</w>" for c in LETTERS)]
    vocabulary = {word: i for i, word in enumerate(words)}
    return CLIPTokenizer(vocabulary, merges=[], model_max_length=77)


def clip_encoder(kind: Any) -> Any:
    settings = {"hidden_size": 32, "intermediate_size": 32, "projection_dim": 32}
    depth = {"num_attention_heads": 4, "num_hidden_layers": 2, "vocab_size": 2 + 2 * len(LETTERS)}
    special = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    return kind(CLIPTextConfig(**settings, **depth, **special)).eval()


def t5() -> tuple[Any, Any]:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *LETTERS]
    tokenizer = T5Tokenizer([(piece, -1.0) for piece in pieces], extra_ids=0, model_max_length=16)
    heads = {"num_heads": 2, "num_layers": 1, "vocab_size": len(pieces)}
    return tokenizer, T5EncoderModel(T5Config(d_model=32, d_kv=8, d_ff=32, **heads)).eval()


def vae(channels: int) -> Any:
    settings = {"in_channels": 3, "out_channels": 3, "norm_num_groups": 4}
    shift = {"shift_factor": 0.06, "scaling_factor": 1.5}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "sample_size": 16}
    blocks |= {"up_block_types": ["UpDecoderBlock2D"] * 2, "block_out_channels": (8, 8)}
    return AutoencoderKL(**settings, **shift, **blocks, latent_channels=channels).eval()


def text_unet(**choices: Any) -> Any:
    blocks = {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D")}
    blocks |= {"up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D")}
    settings = {"in_channels": 4, "out_channels": 4, "sample_size": 8, "layers_per_block": 1}
    heads = {"attention_head_dim": 2, "norm_num_groups": 2, "block_out_channels": (4, 8)}
    return perturbed(UNet2DConditionModel(**blocks, **settings, **heads, **choices))


def ddpm() -> Any:
    return DDPMPipeline(unet=tiny_unet(), scheduler=DDPMScheduler())


def dit() -> Any:
    # a class-conditional pipeline that takes 1,000 as the class "none" and splits off a variance
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 1, "patch_size": 2}
    shape = {"in_channels": 4, "out_channels": 8, "sample_size": 8}
    network = perturbed(DiTTransformer2DModel(**heads, **shape, num_embeds_ada_norm=1000))
    return DiTPipeline(transformer=network, vae=vae(4), scheduler=DDIMScheduler())


def stable_diffusion(scheduler: Any = None) -> Any:
    scheduler = scheduler or PNDMScheduler(**SD, skip_prk_steps=True, steps_offset=1)
    return StableDiffusionPipeline(
        unet=text_unet(cross_attention_dim=32),
        vae=vae(4),
        text_encoder=clip_encoder(CLIPTextModel),
        tokenizer=clip_tokenizer(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_2() -> Any:
    """v-prediction down to a terminal signal-to-noise ratio of zero."""
    zero = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "steps_offset": 1}
    return stable_diffusion(DDIMScheduler(**SD, **zero, clip_sample=False))


def stable_diffusion_xl(scheduler: Any = None) -> Any:
    conditions = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
    conditions |= {"projection_class_embeddings_input_dim": 80, "cross_attention_dim": 64}
    return StableDiffusionXLPipeline(
        unet=text_unet(**conditions, use_linear_projection=True),
        vae=vae(4),
        text_encoder=clip_encoder(CLIPTextModel),
        text_encoder_2=clip_encoder(CLIPTextModelWithProjection),
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        scheduler=scheduler or EulerDiscreteScheduler(**SD, steps_offset=1),
        add_watermarker=False,
    )


def edm_xl() -> Any:
    """As Playground v2.5: SDXL's pipeline around an EDM model."""
    return stable_diffusion_xl(EDMEulerScheduler())


def stable_diffusion_3() -> Any:
    """As 3.5: some blocks attend to the image twice."""
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "patch_size": 2}
    heads |= {"dual_attention_layers": (0,), "qk_norm": "rms_norm", "pos_embed_max_size": 16}
    widths = {"caption_projection_dim": 16, "joint_attention_dim": 32, "in_channels": 4}
    widths |= {"pooled_projection_dim": 64, "out_channels": 4, "sample_size": 8}
    tokenizer_3, text_encoder_3 = t5()
    return StableDiffusion3Pipeline(
        transformer=perturbed(SD3Transformer2DModel(**heads, **widths)),
        vae=vae(4),
        text_encoder=clip_encoder(CLIPTextModelWithProjection),
        text_encoder_2=clip_encoder(CLIPTextModelWithProjection),
        text_encoder_3=text_encoder_3,
        tokenizer=clip_tokenizer(),
        tokenizer_2=clip_tokenizer(),
        tokenizer_3=tokenizer_3,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def flux() -> Any:
    heads = {"num_attention_heads": 2, "attention_head_dim": 16, "axes_dims_rope": [4, 4, 8]}
    depth = {"num_layers": 1, "num_single_layers": 1, "patch_size": 1, "guidance_embeds": True}
    widths = {"joint_attention_dim": 32, "pooled_projection_dim": 32, "in_channels": 16}
    tokenizer_2, text_encoder_2 = t5()
    return FluxPipeline(
        transformer=perturbed(FluxTransformer2DModel(**heads, **depth, **widths)),
        vae=vae(4),
        text_encoder=clip_encoder(CLIPTextModel),
        text_encoder_2=text_encoder_2,
        tokenizer=clip_tokenizer(),
        tokenizer_2=tokenizer_2,
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    )


def pixart(sample_size: int = 8, kind: Any = PixArtAlphaPipeline) -> Any:
    heads = {"num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 1, "patch_size": 2}
    widths = {"caption_channels": 32, "cross_attention_dim": 24, "sample_size": sample_size}
    tokenizer, encoder = t5()
    network = PixArtTransformer2DModel(**heads, **widths, in_channels=4, out_channels=8)
    return kind(
        transformer=perturbed(network),
        vae=vae(4),
        text_encoder=encoder,
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(clip_sample=False),
    )


def pixart_1024() -> Any:
    """Told the image's size and shape, which a network made for 128 x 128 latents is."""
    return pixart(128)


def pixart_sigma() -> Any:
    return pixart(kind=PixArtSigmaPipeline)


def deep_vae(channels: int) -> Any:
    """Of the deep-compression kind, by 4 here."""
    widths = {"encoder_block_out_channels": (8, 8, 16), "decoder_block_out_channels": (8, 8, 16)}
    layers = {"encoder_layers_per_block": (1, 1, 1), "decoder_layers_per_block": (1, 1, 1)}
    scales = {"encoder_qkv_multiscales": ((), (), ()), "decoder_qkv_multiscales": ((), (), ())}
    settings = {"latent_channels": channels, "attention_head_dim": 8, "scaling_factor": 0.41}
    return AutoencoderDC(**widths, **layers, **scales, **settings).eval()


def sana() -> Any:
    heads = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "patch_size": 1}
    cross = {"num_cross_attention_heads": 2, "cross_attention_head_dim": 8}
    widths = {"caption_channels": 32, "cross_attention_dim": 16, "sample_size": 8}
    tokenizer, _ = t5()
    gemma = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "head_dim": 16}
    gemma |= {"num_key_value_heads": 1, "num_hidden_layers": 1, "vocab_size": len(tokenizer)}
    network = SanaTransformer2DModel(**heads, **cross, **widths, in_channels=4, out_channels=4)
    return SanaPipeline(
        transformer=perturbed(network),
        vae=deep_vae(4),
        text_encoder=Gemma2Model(Gemma2Config(**gemma)).eval(),
        tokenizer=tokenizer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


def as_published(name: str, pipe: Any) -> Any:
    """Without a shift of latents where the pipeline knows none: it would ignore that."""
    if getattr(pipe, "vae", None) is not None and name not in ("sana", "sd3", "flux"):
        pipe.vae.register_to_config(shift_factor=None)
    return pipe


PROMPTS = {"prompt": ["a cat", "two dogs"], "num_images_per_prompt": 2, "guidance_scale": 4.0}
SIZE = {"height": 16, "width": 16}
PLAIN = {"use_resolution_binning": False, "clean_caption": False}
T5_LENGTH = {"max_sequence_length": 16}
# name -> (builder, arguments of a call that makes four images, guided where that exists)
PIPELINES: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "ddpm": (ddpm, {"batch_size": 4}),
    "dit": (dit, {"class_labels": [1, 2, 3, 4], "guidance_scale": 4.0}),
    "sd": (stable_diffusion, PROMPTS | SIZE),
    "sd2": (stable_diffusion_2, PROMPTS | SIZE | {"guidance_rescale": 0.7}),
    "sdxl": (stable_diffusion_xl, PROMPTS | SIZE),
    "edm": (edm_xl, PROMPTS | SIZE),
    "sd3": (stable_diffusion_3, PROMPTS | SIZE | T5_LENGTH),
    "flux": (flux, PROMPTS | SIZE | T5_LENGTH),
    "pixart": (pixart, PROMPTS | SIZE | T5_LENGTH | PLAIN),
    "pixart_1024": (pixart_1024, PROMPTS | SIZE | T5_LENGTH | PLAIN),
    "pixart_sigma": (pixart_sigma, PROMPTS | SIZE | T5_LENGTH | PLAIN),
    "sana": (sana, PROMPTS | {"height": 32, "width": 32} | T5_LENGTH | PLAIN),
}


def build(name: str) -> tuple[Any, dict[str, Any]]:
    """A pipeline and the arguments of a call; the same weights every time."""
    torch.manual_seed(0)
    builder, call = PIPELINES[name]
    pipe = builder()
    pipe.set_progress_bar_config(disable=True)
    return pipe, call | {"output_type": "np"}
