"""Views of emoji: moved, scaled, turned and mirrored within the frame."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.common.random import generator_for
from scripts.emoji.data import load_emoji
from scripts.emoji.views import DEGREES, LARGEST, SMALLEST, prompts_in_turn, view, views
from tests.scripts.emoji.samples import write_emoji

SIDE = 64


def _places(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(ink, centre): the dark area (n,) in pixels and its centre (n, 2), right and down."""
    ink = (1 - images.mean(1)) / 2
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    mass = ink.sum((1, 2))
    return mass, torch.stack([(ink.sum(1) * axis).sum(1), (ink.sum(2) * axis).sum(1)], 1) / mass[
        :, None
    ]


def test_drawings_stay_within_the_frame_and_the_rest_is_white() -> None:
    disc = torch.ones(256, 3, SIDE, SIDE)
    y, x = torch.meshgrid(*(torch.arange(SIDE) - 31.5,) * 2, indexing="ij")
    disc[:, :, x.hypot(y) < 31] = -1.0
    mass, centre = _places(view(disc, generator_for("cpu", 0)))
    factor = (mass / _places(disc)[0]).sqrt()
    assert float(factor.min()) > SMALLEST - 0.02 and float(factor.max()) < LARGEST + 0.02
    assert abs(float(factor.mean()) - (SMALLEST + LARGEST) / 2) < 0.02
    # a disc as wide as the frame touches its border at most
    reach = centre.abs() + 31 * factor[:, None]
    assert float(reach.max()) < SIDE / 2 + 0.5
    spread = (1 - factor) * SIDE / 2  # each place within it is as likely
    assert abs(float((centre / spread[:, None]).square().mean()) - 1 / 3) < 0.06


def test_angles_and_mirrors() -> None:
    bar = torch.ones(400, 3, SIDE, SIDE)
    bar[:, :, 31:33, 32:60] = -1.0  # to the right of the middle
    images = view(bar, generator_for("cpu", 1))
    ink = (1 - images.mean(1)) / 2
    _, centre = _places(images)
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    dx = axis[None, None] - centre[:, 0, None, None]
    dy = axis[None, :, None] - centre[:, 1, None, None]
    second = [(ink * a * b).sum((1, 2)) for a, b in ((dx, dx), (dx, dy), (dy, dy))]
    angle = torch.rad2deg(0.5 * torch.atan2(2 * second[1], second[0] - second[2]))
    assert float(angle.abs().max()) < DEGREES + 1
    assert abs(float(angle.square().mean().sqrt()) - DEGREES / 3**0.5) < 1.5
    assert abs(float(angle.mean())) < 2.5


def test_views_of_a_file(tmp_path: Path) -> None:
    emoji = load_emoji(write_emoji(tmp_path / "e.npz"))
    three = views(emoji, 3, seed=0)
    assert three.images.dtype == torch.uint8 and len(three) == 3 * len(emoji)
    assert three.captions == emoji.captions * 3 and three.styles == emoji.styles * 3
    n = len(emoji)
    assert not torch.equal(three.images[:n], three.images[n : 2 * n])
    assert torch.equal(views(emoji, 2, seed=0).images, three.images[: 2 * n])
    assert not torch.equal(views(emoji, 1, seed=1).images, three.images[:n])
    assert views(emoji, 0, seed=0) is emoji
    prompts = prompts_in_turn(emoji, 3)
    assert prompts == emoji.prompts + emoji.captions + emoji.prompts


@pytest.mark.parametrize("mirrored", [False, True])
def test_half_are_mirrored(mirrored: bool) -> None:
    half = torch.ones(200, 3, SIDE, SIDE)
    half[:, 0, :, 32:] = -1.0  # without red on the right
    half[:, 1, :, :32] = -1.0  # without green on the left
    images = view(half, generator_for("cpu", 2))
    axis = torch.arange(SIDE) - (SIDE - 1) / 2
    places = [((1 - images[:, c]).sum(1) * axis).sum(1) for c in (0, 1)]
    share = float(((places[0] < places[1]) == mirrored).float().mean())
    assert 0.35 < share < 0.65
