"""What text-to-image transformers share: square patches of a state are tokens."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from models.teachers.prompts import PromptDenoiser


class TransformerDenoiser(PromptDenoiser):
    """Features are those of the middle block, its tokens laid out as (n, F, H / p, W / p) for
    patches of p x p entries.
    """

    @staticmethod
    def multiple(config: Any) -> int:
        return int(config.patch_size)

    @classmethod
    def tokens(cls, config: Any, shape: tuple[int, ...]) -> int | None:
        patch = cls.multiple(config)
        return (shape[1] // patch) * (shape[2] // patch)

    def blocks(self) -> list[nn.Module]:
        """In their order."""
        return list(self.network.transformer_blocks)

    def middle_block(self) -> nn.Module:
        blocks = self.blocks()
        return blocks[len(blocks) // 2]

    def feature_map(self, output: Any, x: Tensor) -> Tensor:
        """Blocks of two streams give the text's tokens first."""
        tokens: Tensor = output[1] if isinstance(output, tuple) else output
        n, _, width = tokens.shape
        grid = (side // self.stride for side in x.shape[2:])
        return tokens.transpose(1, 2).reshape(n, width, *grid)
