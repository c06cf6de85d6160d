"""How a student takes prompts: its folder's encoders, used as the stock pipeline uses them.

The text of this file travels in every student's folder (models/methods/student_pipeline.py), so it
imports nothing of this project.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

TEXT_PARTS = tuple(f"{part}{i}" for part in ("tokenizer", "text_encoder") for i in ("", "_2", "_3"))
EMBEDS = "prompt_embeds.safetensors"  # in a folder that does not carry its encoders
STATED = ("max_sequence_length", "complex_human_instruction")  # as the pipeline's call has them


class PromptMixin:
    """The part of a student's pipeline that knows prompts.

    Every subclass's constructor also takes the parts of :data:`TEXT_PARTS` and ``prompts``: None
    for students without prompts, else a dict: ``pipeline``, diffusers' class that encodes, with its
    ``options``; ``keys`` of the condition; ``guidance`` and ``negative_prompt``, which are trained
    in; ``embedded``, numbers that every image's condition has besides, where there are any: the
    weight of guidance of networks that take it as an input; ``guidance_range``, where the weight is
    an input of the call too, the lowest and the highest, ``guidance`` then being what it is where
    nobody says one; ``examples``, some prompts; ``source``, where encoders are to be had that the
    folder does not carry, else None; ``encoders``, their classes and digests.
    """

    config: Any

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = _with_text_parts(cls.__init__)  # type: ignore[method-assign]
        known = getattr(cls, "_optional_components", [])
        cls._optional_components = [*known, *(name for name in TEXT_PARTS if name not in known)]  # type: ignore[attr-defined]

    @property
    def prompts(self) -> Mapping[str, Any] | None:
        """What is known of prompts; None for a student that takes none."""
        found: Mapping[str, Any] | None = self.config.get("prompts")
        return found

    def encode_prompts(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The condition of n prompts, float32: what the call takes as ``prompt_embeds``.

        Raises ValueError where the folder does not carry the encoders.
        """
        about = self._prompts()
        if getattr(self, "text_encoder", None) is None:
            raise ValueError(
                f"prompt: the text encoders are not in this folder; they are those of "
                f"{about.get('source') or 'its teacher'}; load them with load_encoders(folder or "
                "hub id), or give prompt_embeds"
            )
        stock = getattr(diffusers, about["pipeline"])
        wanted = inspect.signature(stock.__init__).parameters
        given: dict[str, Any] = {
            name: None
            for name, parameter in wanted.items()
            if name != "self" and parameter.default is inspect.Parameter.empty
        }
        given |= {name: getattr(self, name) for name in TEXT_PARTS if name in wanted}
        given |= {name: value for name, value in about["options"].items() if name in wanted}
        with torch.no_grad():
            return encoded(stock(**given), list(prompts), about["keys"])

    def load_encoders(self, source: str, **options: Any) -> None:
        """Take tokenizers and encoders from a teacher's folder or hub id, safetensors alone;
        options as of ``from_pretrained``.
        """
        stock = getattr(diffusers, self._prompts()["pipeline"])
        wanted = [n for n in inspect.signature(stock.__init__).parameters if n != "self"]
        others = {name: None for name in ("unet", "transformer", "vae") if name in wanted}
        pipe = stock.from_pretrained(source, use_safetensors=True, **others, **options)
        parts = {name: getattr(pipe, name) for name in TEXT_PARTS if name in wanted}
        self.register_modules(**parts)  # type: ignore[attr-defined]

    def prompt_condition(
        self,
        prompt: Any,
        prompt_embeds: Any,
        negative_prompt: Any,
        n: int,
        device: Any,
        guidance_scale: Any = None,
    ) -> dict[str, Tensor]:
        """The network's condition, n rows. Raises ValueError for anything else than one prompt, or
        its embeddings, for all or for each, and one weight of guidance, likewise.
        """
        about = self._prompts()
        trained = about["negative_prompt"]
        if negative_prompt is not None and negative_prompt != trained:
            raise ValueError(
                f"negative_prompt {negative_prompt!r}: this student has its guidance, "
                f"{about['guidance']}, away from {trained!r} trained in; leave it out, or distil "
                "one with conditions.negative_prompt"
            )
        if (prompt is None) == (prompt_embeds is None):
            given = "neither is" if prompt is None else "both are"
            raise ValueError(f"prompt, prompt_embeds: {given} given; expected one of them")
        if prompt is not None:
            texts = [prompt] if isinstance(prompt, str) else list(prompt)
            if not all(isinstance(text, str) for text in texts):
                raise ValueError(f"prompt {prompt!r}: expected a text, or a list of texts")
            found: Mapping[str, Tensor] = self.encode_prompts(texts)
        else:
            alone = isinstance(prompt_embeds, Tensor)
            found = {"encoder_hidden_states": prompt_embeds} if alone else dict(prompt_embeds)
        if set(found) != set(about["keys"]):
            raise ValueError(f"prompt_embeds: {sorted(found)}; expected {sorted(about['keys'])}")
        rows = {len(value) for value in found.values()}
        if rows not in ({1}, {n}):
            found_rows = ", ".join(map(str, sorted(rows)))
            raise ValueError(f"{found_rows} prompts for {n} images; expected one, or one for each")
        condition = {k: v.to(device).expand(n, *v.shape[1:]) for k, v in found.items()}
        weights = guidance_weights(about, guidance_scale, n)
        embedded = dict(about.get("embedded", {}))
        embedded |= {} if weights is None else {"guidance": weights}
        for name, number in embedded.items():
            condition[name] = torch.tensor(number, dtype=torch.float32, device=device).expand(n)
        return condition

    def _prompts(self) -> Mapping[str, Any]:
        if self.prompts is None:
            raise ValueError("prompt: this student takes no prompts; leave it out")
        return self.prompts


def guidance_weights(about: Mapping[str, Any], asked: Any, n: int) -> list[float] | None:
    """The weights of guidance of n images, those that were ``asked`` for or the default, for a
    student that takes them as an input; None for one with a weight of its own.

    ``about``: of prompts. Raises ValueError for weights that it was not trained for, and where
    there are neither one nor n.
    """
    given, default = about.get("guidance_range"), about["guidance"]
    values = np.asarray(asked.cpu() if isinstance(asked, Tensor) else asked)
    if given is None:
        if asked is not None and not (values.dtype.kind in "iuf" and (values == default).all()):
            raise ValueError(
                f"guidance_scale {asked}: this student has {default} trained in; leave it out, or "
                "distil one with trajectories.guidance_range"
            )
        return None
    low, high = given
    if asked is None:
        return [float(default)] * n
    if values.dtype.kind not in "iuf" or values.shape not in ((), (1,), (n,)):
        expected = f"expected a number, or {n}, one for each image"
        raise ValueError(f"guidance_scale {asked}: {expected}; from {low:g} to {high:g}")
    if not ((values >= low) & (values <= high)).all():  # NaN is neither
        raise ValueError(
            f"guidance_scale {asked}: this student takes {low:g} to {high:g}; distil one with "
            "another trajectories.guidance_range"
        )
    return [float(value) for value in np.broadcast_to(values, n)]


def encoded(pipe: Any, prompts: list[str], keys: Sequence[str]) -> dict[str, Tensor]:
    """The condition of n prompts by the ``encode_prompt`` of a stock pipeline, padded to its own
    length, without classifier-free guidance: float32 embeddings, int64 masks.
    """
    takes, stated = (
        inspect.signature(call).parameters for call in (pipe.encode_prompt, type(pipe).__call__)
    )
    given: dict[str, Any] = {
        name: None for name, p in takes.items() if p.default is inspect.Parameter.empty
    }
    known = {"do_classifier_free_guidance": False, "num_images_per_prompt": 1, "prompt": prompts}
    known |= {"device": pipe.text_encoder.device}
    known |= {name: stated[name].default for name in STATED if name in stated}
    given |= {name: value for name, value in known.items() if name in takes}
    made = pipe.encode_prompt(**given)
    # (states, negative states, pooled, negative pooled), (states, pooled, ids), or with masks
    places = {"encoder_hidden_states": 0, "encoder_attention_mask": 1}
    places["pooled_projections"] = 2 if len(made) == 4 else 1
    found = {key: made[places[key]] for key in keys}
    return {k: v.float() if v.is_floating_point() else v.long() for k, v in found.items()}


def _with_text_parts(init: Callable[..., None]) -> Callable[..., None]:
    """A constructor that also takes the text parts and ``prompts``. diffusers reads from its
    signature what a folder may hold.
    """
    signature = inspect.signature(init)
    names = (*TEXT_PARTS, "prompts")

    @functools.wraps(init)
    def whole(self: Any, *args: Any, **given: Any) -> None:
        parts = {name: given.pop(name, None) for name in names}
        init(self, *args, **given)
        prompts = parts.pop("prompts")
        self.register_modules(**parts)
        if prompts is not None:
            self.register_to_config(prompts=dict(prompts))

    kind = inspect.Parameter.KEYWORD_ONLY
    own = [p for p in signature.parameters.values() if p.name not in names]
    added = [inspect.Parameter(name, kind, default=None, annotation="Any") for name in names]
    whole.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
    return whole
