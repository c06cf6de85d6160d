"""How many samples pass through diffusion networks while a block runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass
class Passes:
    """``rows``: samples, once for every call of a network that they pass through; ``trained``:
    those of them for whose calls gradients were recorded. ``known`` is False once a network was
    called in a way that tells no number of samples.
    """

    rows: int = 0
    trained: int = 0
    known: bool = True

    def record(self) -> dict[str, int]:
        """For the stage's measurement; {} where the number is not known, or all work was done in
        other processes.
        """
        if not self.known or not self.rows:
            return {}
        return {"network_evaluations": self.rows, "trained_evaluations": self.trained}


@contextmanager
def count_passes() -> Iterator[Passes]:
    """Count the calls of every diffusers network of this process, autoencoders left out.

    torch must not be compiling the networks: the counting would become part of what is compiled.
    """
    import torch
    from torch.nn.modules.module import register_module_forward_pre_hook

    passes, kinds = Passes(), dict[type, bool]()

    def count(module: Any, args: tuple[Any, ...]) -> None:
        kind = type(module)
        if kind not in kinds:
            kinds[kind] = _is_network(kind)
        if not kinds[kind]:
            return
        if not args:
            passes.known = False
            return
        passes.rows += len(args[0])
        if torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters()):
            passes.trained += len(args[0])

    hook = register_module_forward_pre_hook(count)
    try:
        yield passes
    finally:
        hook.remove()


def _is_network(kind: type) -> bool:
    """By the name of the base class, so that diffusers is not imported for this."""
    return any(base.__name__ == "ModelMixin" for base in kind.__mro__) and not hasattr(
        kind, "encode"
    )
