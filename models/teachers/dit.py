"""Class-conditional diffusion transformers: ``DiTTransformer2DModel`` (Peebles and Xie 2023)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from models.common.errors import InputError
from models.teachers.diffusers_model import DiffusersDenoiser


class DiT(DiffusersDenoiser):
    """States (C, H, W); the class after the last one is the null class. Features are those of the
    middle transformer block, its tokens laid out as (n, F, H / patch, W / patch).
    """

    input_layer = "pos_embed.proj"

    @staticmethod
    def classes(config: Any, null_class: int | None) -> tuple[int | None, int | None]:
        classes = int(config.num_embeds_ada_norm)
        if null_class not in (None, classes):
            raise InputError(
                f"teacher.null_class = {null_class}: expected null or {classes}, a DiT's null "
                "class comes after its classes"
            )
        return classes, classes

    @staticmethod
    def splits_variance(scheduler: Any) -> bool:
        return True  # DiTPipeline cuts the second half off, whatever the scheduler says

    @property
    def stride(self) -> int:
        return int(self.network.config.patch_size)

    def sharded_blocks(self, network: nn.Module) -> list[nn.Module]:
        # the output layer reads weights of the first as well
        return super().sharded_blocks(network)[1:]

    def middle_block(self) -> nn.Module:
        blocks: Any = self.network.transformer_blocks
        block: nn.Module = blocks[len(blocks) // 2]
        return block

    def feature_map(self, output: Tensor, x: Tensor) -> Tensor:
        n, _, width = output.shape
        grid = (side // self.stride for side in x.shape[2:])
        return output.transpose(1, 2).reshape(n, width, *grid)
