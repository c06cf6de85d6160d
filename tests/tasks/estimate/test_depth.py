"""Figures of deep networks from shallow ones, against the whole network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch import Tensor, nn

from tasks.estimate import depth
from tasks.estimate.depth import LONG, Run, long_runs, shortened
from tasks.estimate.simulation import count_flops, simulate


def _sd3() -> SD3Transformer2DModel:
    """Two kinds of blocks beside one another, and a last one of a third kind."""
    return SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=17, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=16, caption_projection_dim=32,
        pooled_projection_dim=16, pos_embed_max_size=8, patch_size=2,
        dual_attention_layers=tuple(range(8)), qk_norm="rms_norm",
    )  # fmt: skip


def _flux() -> FluxTransformer2DModel:
    return FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=8, num_single_layers=12, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=16, pooled_projection_dim=16,
        axes_dims_rope=(4, 4, 8),
    )  # fmt: skip


def _unet() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=2, norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16,
        attention_head_dim=4, transformer_layers_per_block=(1, 8),
    )  # fmt: skip


def _inputs(name: str) -> Callable[[int], dict[str, Tensor]]:
    def inputs(n: int) -> dict[str, Tensor]:
        given = {"t": torch.full((n,), 500.0), "tokens": torch.zeros(n, 5, 16)}
        if name == "flux":
            ids = {"txt_ids": torch.zeros(5, 3), "img_ids": torch.zeros(16, 3)}
            return given | ids | {"x": torch.zeros(n, 16, 16), "pooled": torch.zeros(n, 16)}
        given |= {"x": torch.zeros(n, 4, 8, 8)}
        return given | ({"pooled": torch.zeros(n, 16)} if name == "sd3" else {})

    return inputs


def _call(network: Any, given: dict[str, Tensor]) -> Tensor:
    options = {k: v for k, v in given.items() if k.endswith("_ids")}
    if "pooled" in given:
        options["pooled_projections"] = given["pooled"]
    made: Tensor = network(
        given["x"], timestep=given["t"], encoder_hidden_states=given["tokens"], **options,
        return_dict=False,
    )[0]  # fmt: skip
    return made


MAKE = {"sd3": _sd3, "flux": _flux, "unet": _unet}


class Deep(nn.Module):
    """A run of layers between two others."""

    def __init__(self) -> None:
        super().__init__()
        sides = [(16, 64), *[(64, 64)] * 40, (64, 16)]
        self.layers = nn.ModuleList(nn.Linear(a, b, bias=False) for a, b in sides)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x


def test_a_chain_of_layers() -> None:
    """tanh keeps its output, a linear layer the one before it; gradients of all weights at the end."""
    assert [(run.first, run.length) for run in long_runs(Deep())] == [(1, 40)]
    call, inputs = (lambda net, given: net(given["x"])), lambda n: {"x": torch.zeros(n, 16)}
    weights = 40 * 64 * 64 + 2 * 16 * 64
    told = simulate(Deep, inputs, call, "weights")
    assert told.held == pytest.approx((0.0, 4 * (41 * 64 + 16)), rel=1e-9, abs=1e-6)
    assert told.peak_of(0) == pytest.approx(4 * weights, rel=0.05)
    # backward: as much for each weight, and as much for each input but the first
    assert told.flops == pytest.approx(2 * (3 * weights - 16 * 64), rel=1e-9)
    assert count_flops(Deep, inputs, call) == pytest.approx(2 * weights, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "gradient"),
    [("sd3", "weights"), ("flux", "blocks again"), ("unet", "input"), ("flux", "none")],
)
def test_shallow_networks_tell_what_the_deep_one_costs(
    name: str, gradient: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = gradient == "blocks again"

    def make() -> Any:
        network = MAKE[name]().train()
        if again:
            network.enable_gradient_checkpointing()
        return network.requires_grad_(gradient not in ("none", "input"))

    way: Any = "weights" if again else gradient
    assert long_runs(make())
    told = simulate(make, _inputs(name), _call, way)
    flops = count_flops(make, _inputs(name), _call)
    monkeypatch.setattr(depth, "LONG", 1000)
    whole = simulate(make, _inputs(name), _call, way)
    assert told.flops == pytest.approx(whole.flops, rel=1e-9)
    assert flops == pytest.approx(count_flops(make, _inputs(name), _call), rel=1e-9)
    for rows in (1, 8, 16):
        assert told.held_by(rows) == pytest.approx(whole.held_by(rows), rel=1e-6)
        assert told.peak_of(rows) == pytest.approx(whole.peak_of(rows), rel=0.02)


def test_runs_are_of_alike_blocks() -> None:
    network = _sd3()
    assert [(run.first, run.length) for run in long_runs(network)] == [(0, 8), (8, 8)]
    network.transformer_blocks[4].requires_grad_(False)
    assert [(run.first, run.length) for run in long_runs(network)] == [(8, 8)]
    assert long_runs(nn.Sequential(nn.Linear(2, 2))) == []


def test_what_was_left_out_comes_back() -> None:
    blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(LONG + 3))
    before = list(blocks)
    with pytest.raises(RuntimeError), shortened([Run(blocks, 1, LONG)], {LONG: 3}):
        assert list(blocks) == before[:4] + before[LONG + 1 :]
        raise RuntimeError
    assert list(blocks) == before and list(blocks._modules) == [str(i) for i in range(LONG + 3)]
