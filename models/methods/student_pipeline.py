"""What every student pipeline shares: its call, class labels, decoding, saving.

A copy of this file travels in a student's folder beside the copy of its pipeline's own file
(:meth:`StudentPipeline.save_pretrained`), with the texts of models/teachers/network_call.py and
models/methods/prompt_encoding.py in the place of their imports. It imports nothing else of this
project, so that diffusers alone opens it:
``DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)``.
"""

from __future__ import annotations

import ast
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from models.methods.prompt_encoding import TEXT_PARTS, PromptMixin
from models.teachers.network_call import call_for, pixels_per_entry

OUTPUT_TYPES = {"images": ("pil", "np", "pt", "latent"), "series": ("np", "pt", "latent")}
ANY_TIME = ("flow", "edm", "edm_v", "ve")  # of the parametrizations; others know whole times
Generators = torch.Generator | Sequence[torch.Generator] | None
OnStep = Callable[[], object]


class StudentOutput(BaseOutput):  # type: ignore[misc]
    """``images`` or ``series``: see :meth:`StudentPipeline.__call__`."""

    images: Any = None
    series: Any = None


class StudentPipeline(PromptMixin):
    """Mixin of a student's class, before ``DiffusionPipeline`` in its bases.

    A student's class has ``unet`` and ``vae`` (or None) among its components; its config has
    ``prediction_type``, ``shape`` (of a clean state: C, H, W of images, C, L of series), ``clip``
    and ``num_classes``, and ``scaling`` where states are scaled data: mean and std per channel. It
    defines :attr:`nfe` and :meth:`rollout`; the rest has defaults.

    ``title``: the method's name for tables. ``path_features``: those of cached teacher paths that
    :meth:`rollout` takes as ``xi``: "signature" (models/sampling/signature.py), or None.
    """

    title: str = "Student"
    path_features: ClassVar[str | None] = None
    model_cpu_offload_seq = "text_encoder->text_encoder_2->text_encoder_3->unet->vae"

    unet: Any  # these three are DiffusionPipeline's
    vae: Any
    config: Any

    @property
    def nfe(self) -> list[int]:
        """Numbers of steps this student was made for, ascending."""
        raise NotImplementedError

    def rollout(
        self,
        noise: Tensor,
        xi: Any = None,
        condition: Mapping[str, Tensor] | None = None,
        nfe: int | None = None,
        generator: Generators = None,
        on_step: OnStep | None = None,
    ) -> tuple[Tensor, Any]:
        """(x0, what was passed on the way): x0 from start noise, both (n, *shape).

        ``xi``: the rest of the randomness, or None for fresh normals from ``generator``;
        ``condition``: keyword arguments of the network; ``on_step`` is called after each step.
        """
        raise NotImplementedError

    def network_calls(self, steps: int) -> int:
        """Network evaluations of one sample with ``steps`` steps."""
        return steps

    def controls(self) -> dict[str, tuple[str, Callable[..., Any]]]:
        """Rollouts that show what a part of the sampler is for: name -> (title, rollout)."""
        return {}

    def stock_sampler(self) -> dict[str, Any]:
        """How diffusers' own pipelines sample this student: ``scheduler``, the class, and its
        ``config``; ``sigmas`` where the call has to name the levels, ``start``, (H, W) of the first
        state, where that is not the last's.

        Raises ValueError with the reason where none of their schedulers steps as it does.
        """
        raise ValueError(f"no scheduler of diffusers steps as a student of {self.title} does")

    def untrained(self, network: Any) -> Any:
        """The same sampler around the teacher's ``network``, before any tuning or training."""
        return self.with_network(network)

    def with_network(self, network: Any, **changes: Any) -> Any:
        """The same sampler around another network; ``changes`` replace entries of the config."""
        settings = {k: v for k, v in self.config.items() if not k.startswith("_")}
        parts = self.components  # type: ignore[attr-defined]
        return type(self)(**{**settings, **parts, "unet": network, **changes})

    @property
    def makes(self) -> str:
        """ "images", or "series" where states are (C, L)."""
        return "series" if len(self.config.shape) == 2 else "images"

    def start_shape(self) -> tuple[int, ...]:  # of the start noise
        return tuple(self.config.shape)

    def check_steps(self, steps: int | None) -> int:
        """``steps``, or the largest number for None; ValueError for one that is not in nfe."""
        steps = max(self.nfe) if steps is None else steps
        if steps not in self.nfe:
            found = f"num_inference_steps = {steps}: this student has {self.nfe}"
            raise ValueError(f"{found}; distil one for {steps} steps")
        return steps

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int | None = None,
        class_labels: Any = None,
        generator: Generators = None,
        output_type: str | None = None,
        return_dict: bool = True,
        progress: bool = False,
        prompt: str | Sequence[str] | None = None,
        negative_prompt: str | None = None,
        prompt_embeds: Tensor | Mapping[str, Tensor] | None = None,
        guidance_scale: float | Sequence[float] | None = None,
    ) -> Any:
        """Draw ``batch_size`` images, or series.

        ``class_labels``: one whole number for all, or one each in a list, an array or a tensor.
        ``prompt``: one for all, or a list with one each, whose length is ``batch_size`` then;
        ``prompt_embeds``: in their place what :meth:`encode_prompts` makes of them.
        ``negative_prompt``: None, or the one that was trained in. ``guidance_scale``: of a student
        that takes guidance as an input, in its range, one for all or one each; else as the former.
        ``generator``: one for all, or a list with one each, that draws what it draws alone, up to
        rounding. ``output_type`` of images: "pil", their
        default; "np" for (n, H, W, C) float32 in [0, 1]; "pt" for (n, C, H, W) float32 in [0, 1].
        Of series: "np", their default, or "pt", (n, C, L) float32 in the data's units. "latent"
        gives the clean states as they are. ``progress`` shows a bar over the steps. Raises
        ValueError for a number of steps the student was not made for, missing, unknown or
        unexpected classes and prompts, and other output types and batch sizes.
        """
        if batch_size == 1 and prompt is not None and not isinstance(prompt, str):
            batch_size = len(prompt)
        steps = self.check_steps(num_inference_steps)
        known = OUTPUT_TYPES[self.makes]
        if output_type not in (None, *known):
            expected = f"expected {', '.join(known)} for {self.makes}"
            raise ValueError(f"output_type {output_type!r}: {expected}")
        n = self._count(batch_size, generator)
        device = self._execution_device  # type: ignore[attr-defined]
        condition = self.conditions(
            n, class_labels, prompt, prompt_embeds, negative_prompt, guidance_scale
        )
        noise = normals((n, *self.start_shape()), device, generator)
        with self.progress_bar(total=steps) if progress else nullcontext() as bar:  # type: ignore[attr-defined]
            on_step = None if bar is None else bar.update
            x0, _ = self.rollout(noise, None, condition, steps, generator, on_step)
        made = self._output(x0, output_type or known[0])
        return StudentOutput(**{self.makes: made}) if return_dict else (made,)

    def conditions(
        self,
        n: int,
        class_labels: Any = None,
        prompt: Any = None,
        prompt_embeds: Any = None,
        negative_prompt: Any = None,
        guidance_scale: Any = None,
    ) -> dict[str, Tensor] | None:
        """The network's keyword arguments, n rows, for what the call takes."""
        device = self._execution_device  # type: ignore[attr-defined]
        condition = self._condition(class_labels, n, device)
        if self.prompts is not None or prompt is not None or prompt_embeds is not None:
            asked = (prompt, prompt_embeds, negative_prompt, n, device, guidance_scale)
            return self.prompt_condition(*asked)
        if guidance_scale is not None:
            raise ValueError(
                f"guidance_scale {guidance_scale}: this student does not take it; leave it out"
            )
        return condition

    def network_x0(
        self,
        network: Any,
        inputs: Tensor,
        x: Tensor,
        level: Any,
        condition: Mapping[str, Tensor] | None,
    ) -> Tensor:
        """x0 by one call of ``network`` on ``inputs``, whose first channels are x, in x's dtype.

        ``level`` has ``t``, ``alpha`` and ``sigma``. The network works in its own dtype.
        """
        t = torch.full((len(x),), level.t, device=x.device)
        t = t if self.config.prediction_type in ANY_TIME else t.long()
        channels, pixels = x.shape[1], pixels_per_entry(self.vae)
        kind = self.config.prediction_type
        output = call_for(kind, network, inputs, t, channels, condition, pixels).to(x.dtype)
        output = output[:, :channels]  # one that also predicts a variance has more channels
        return prediction_to_x0(kind, output, x, level)

    def clipped(self, x0: Tensor) -> Tensor:
        """x0 within the teacher's bound, where it has one."""
        return x0 if self.config.clip is None else x0.clamp(-self.config.clip, self.config.clip)

    def decode(self, x0: Tensor) -> Tensor:
        """Data of clean states: themselves, scaled back, or decoded by the VAE in its dtype."""
        if scaling := self.config.get("scaling"):
            return x0 * _channels(scaling["std"], x0) + _channels(scaling["mean"], x0)
        if self.vae is None:
            return x0
        vae, config = self.vae, self.vae.config
        if vae.dtype == torch.float16 and config.get("force_upcast"):
            vae.to(torch.float32)  # such a VAE overflows in half precision, and says so
        mean, std = config.get("latents_mean"), config.get("latents_std")
        if mean is not None and std is not None:
            scale = config.get("scaling_factor", 1.0)
            z = x0 * _channels(std, x0) / scale + _channels(mean, x0)
        else:
            z = x0 / (config.get("scaling_factor") or 1.0) + (config.get("shift_factor") or 0.0)
        return vae.decode(z.to(vae.dtype)).sample  # type: ignore[no-any-return]

    def _output(self, x0: Tensor, output_type: str) -> Any:
        if output_type == "latent":
            return x0
        data = self.decode(x0).float()
        if self.makes == "series":  # no bound, no range of their own
            return data if output_type == "pt" else np.asarray(data.cpu())
        data = (data.clamp(-1, 1) + 1) / 2
        if output_type == "pt":
            return data
        array = np.asarray(data.permute(0, 2, 3, 1).cpu())
        return array if output_type == "np" else self.numpy_to_pil(array)  # type: ignore[attr-defined]

    def _count(self, batch_size: Any, generator: Generators) -> int:
        whole = isinstance(batch_size, (int, np.integer)) and not isinstance(batch_size, bool)
        if not whole or batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: expected at least 1, a whole number")
        if isinstance(generator, Sequence) and len(generator) != batch_size:
            found = f"a list of {len(generator)} for batch_size = {batch_size}"
            raise ValueError(f"generator: {found}; expected one generator, or one for each image")
        return int(batch_size)

    def _condition(self, wanted: Any, n: int, device: torch.device) -> dict[str, Tensor] | None:
        """The network's keyword arguments for the classes that were asked for."""
        classes = self.config.num_classes
        if classes is None:
            if wanted is not None:
                raise ValueError("class_labels: this student has no classes; leave them out")
            return None
        known = f"0..{classes - 1}"
        expected = f"expected {n} classes in {known}"
        if wanted is None:
            conditional = "class_labels: this student is conditional"
            raise ValueError(f"{conditional}; give a class {known}, or one per image")
        values = np.asarray(wanted.cpu() if isinstance(wanted, Tensor) else wanted)
        if values.dtype.kind not in "iu":
            raise ValueError(f"class_labels {wanted}: {expected}, whole numbers")
        values = np.repeat(values, n) if values.ndim == 0 else values
        if values.shape != (n,) or values.min() < 0 or values.max() >= classes:
            raise ValueError(f"class_labels {values.tolist()}: {expected}")
        return {"class_labels": torch.from_numpy(values.astype(np.int64)).to(device)}

    @classmethod
    def load_config(cls, *args: Any, **options: Any) -> Any:
        """diffusers' own, with the class's plain name: no code of the folder runs then."""
        loaded = super().load_config(*args, **options)  # type: ignore[misc]
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if isinstance(config.get("_class_name"), list):
            config["_class_name"] = config["_class_name"][-1]
        return loaded

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Write the folder: weights as safetensors, model_index.json, and the code that opens it.

        Where networks were read from is left out: equal students have equal bytes.
        Raises ValueError for ``push_to_hub``, which would leave the code out.
        """
        if options.pop("push_to_hub", False):
            raise ValueError("push_to_hub: expected False; call push_to_hub(repo_id) instead")
        options = {"safe_serialization": True, **options}
        super().save_pretrained(save_directory, **options)  # type: ignore[misc]
        folder = Path(save_directory)
        for weights in folder.rglob("*.safetensors"):
            weights.chmod(0o644)  # safetensors writes 0600, unreadable for other users
        files = travelling_code(type(self))
        for name, text in files.items():
            (folder / f"{name}.py").write_text(text, encoding="utf-8")
        networks = {}
        for part, network in self.components.items():  # type: ignore[attr-defined]
            if network is not None and (code := network_code(type(network))):
                (folder / part / f"{code[0]}.py").write_text(code[1], encoding="utf-8")
                networks[part] = [code[0], type(network).__name__]
        for path in (folder / "model_index.json", *folder.glob("*/config.json")):
            content = json.loads(path.read_text(encoding="utf-8"))
            content.pop("_name_or_path", None)
            if path.parent == folder:
                content["_class_name"] = [next(iter(files)), type(self).__name__]
                content = {
                    k: v for k, v in content.items() if k not in TEXT_PARTS or v != [None, None]
                } | networks
            text = json.dumps(content, indent=2, sort_keys=True)
            path.write_text(text + "\n", encoding="utf-8")


def travelling_code(kind: type) -> dict[str, str]:
    """The files that open a student without this project, by module name, the class's own first.

    diffusers imports all local pipelines into one package, where modules of one name run into each
    other. So names carry a digest of the code: different code never shares a name.
    """
    own, shared = (Path(str(sys.modules[c.__module__].__file__)) for c in (kind, StudentPipeline))
    if own == shared:
        raise TypeError(f"{kind.__name__}: expected a file of its own beside student_pipeline.py")
    base = _with_calls(shared.read_text(encoding="utf-8"))
    text = own.read_text(encoding="utf-8")
    plain = re.sub(rf"^from {_SHARED} import", "from . import", text, flags=re.MULTILINE)
    digest = hashlib.sha256((base + plain).encode()).hexdigest()[:8]
    names = [f"{kind.__name__.lower()}_{digest}", f"student_pipeline_{digest}"]
    found = re.findall(rf"^from {_SHARED} import", text, flags=re.MULTILINE)
    if len(found) != 1:
        expected = "expected one import from student_pipeline"
        raise TypeError(f"{own.name}: {expected}, found {len(found)}")
    moved = re.sub(rf"^from {_SHARED} import", f"from .{names[1]} import", text, flags=re.MULTILINE)
    if left := re.findall(r"^\s*(?:from|import)\s+((?:models|tasks|flows)\b[\w.]*)", moved, re.M):
        raise TypeError(
            f"{own.name} travels with its students: expected no import of this project beside "
            f"student_pipeline, found {left[0]}; put the pipeline into a file of its own"
        )
    return {names[0]: moved, names[1]: base}


def _with_calls(text: str) -> str:
    """The text of this file with those of other files in the place of their imports; one that
    travelled is so already.
    """
    for used in (PromptMixin, call_for):
        name = re.escape(used.__module__)
        found = re.search(rf"^from {name} import .*\n", text, re.MULTILINE)
        if found is not None:
            file = Path(str(sys.modules[used.__module__].__file__))
            own = file.read_text(encoding="utf-8").partition("import annotations\n")[2]
            text = text[: found.start()] + own.strip() + "\n\n" + text[found.end() :]
    return text


_SHARED = r"[\w.]*student_pipeline(?:_[0-9a-f]{8})?"


def network_code(kind: type) -> tuple[str, str] | None:
    """(module name, text) of the file that opens a network of a class of its own, with all that it
    uses of its module. None for installed classes; TypeError where it needs other files.
    """
    top = kind.__module__.partition(".")[0]
    if top in ("diffusers", "transformers") or top in packages_distributions().keys() - _PROJECT:
        return None
    place = getattr(sys.modules.get(kind.__module__), "__file__", None)
    if place is None:
        raise TypeError(f"{kind.__name__}: expected a class in a file")
    text = _cut_out(Path(place), kind.__name__)
    return f"{kind.__name__.lower()}_{hashlib.sha256(text.encode()).hexdigest()[:8]}", text


_PROJECT = {"models", "tasks", "flows"}


def _cut_out(file: Path, name: str) -> str:
    """The statements of a file that define ``name``, and those that define what they use."""
    text = file.read_text(encoding="utf-8")
    body = ast.parse(text).body
    needed, kept = {name}, {i for i, node in enumerate(body) if _module(node) == "__future__"}
    while more := {i for i, node in enumerate(body) if i not in kept and needed & set(_sets(node))}:
        kept |= more
        used = (each for i in more for each in ast.walk(body[i]) if isinstance(each, ast.Name))
        needed |= {each.id for each in used}
    lines = text.splitlines()
    pieces = []
    for node in (body[i] for i in sorted(kept)):
        for each in ast.walk(node):
            names = [each.names[0].name] if isinstance(each, ast.Import) else [_module(each) or ""]
            top = names[0].partition(".")[0]
            beside = top and ((file.parent / f"{top}.py").exists() or (file.parent / top).is_dir())
            if top in _PROJECT or names[0].startswith(".") or beside:
                raise TypeError(
                    f"{name} in {file.name} uses {names[0]}, which cannot travel with it"
                )
        first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
        pieces.append("\n".join(lines[first - 1 : node.end_lineno]))
    return "\n\n\n".join(pieces) + "\n"


def _module(node: ast.AST) -> str | None:
    """What a ``from`` import imports from; dots in front where that is relative."""
    return "." * node.level + (node.module or "") if isinstance(node, ast.ImportFrom) else None


def _sets(node: ast.AST) -> Iterator[str]:
    """Names of a module that a statement of it defines or changes."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    else:
        root: Any = node  # of TABLE["a"] = 1, or of TABLE.update()
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            root = node.value.func
        if root is not node or isinstance(getattr(node, "ctx", None), ast.Store):
            while isinstance(root, ast.Attribute | ast.Subscript):
                root = root.value
                yield getattr(root, "id", "")
        for inner in ast.iter_child_nodes(node):
            yield from _sets(inner)


def prediction_to_x0(prediction: str, output: Tensor, x: Tensor, level: Any) -> Tensor:
    """x0 from the network's output in the teacher's parametrization, at ``level``."""
    x0: Tensor = output
    if prediction in ("epsilon", "ve"):
        x0 = (x - level.sigma * output) / level.alpha
    elif prediction in ("v_prediction", "edm_v"):
        x0 = level.alpha * x - level.sigma * output
    elif prediction == "edm":
        x0 = level.alpha * x + level.sigma * output
    elif prediction == "flow":
        x0 = x - level.sigma * output
    return x0


def normals(
    shape: Sequence[int], device: torch.device | str, generator: Generators = None
) -> Tensor:
    """Standard normals (n, ...), float32 on ``device``.

    Drawn where a generator lives, so that a CPU seed gives the same on any device; of a list of n
    generators each draws its own row.
    """
    if isinstance(generator, Sequence):
        return torch.cat([normals((1, *shape[1:]), device, g) for g in generator])
    where = device if generator is None else generator.device
    drawn = torch.randn(tuple(shape), generator=generator, device=where, dtype=torch.float32)
    return drawn.to(device)


def _channels(values: Any, like: Tensor) -> Tensor:  # (1, C, 1, ...), beside like (n, C, ...)
    return torch.tensor(values).to(like).view(1, -1, *[1] * (like.dim() - 2))
