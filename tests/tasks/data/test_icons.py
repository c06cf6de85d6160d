"""Icon packs: what is read of the JSON, what is drawn, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.common.errors import InputError
from tasks.config.schema import Params
from tasks.data.dataset import load_manifest, load_split
from tasks.data.icons import Icon, read_pack, renderer, svg
from tasks.data.images import UnreadableImage
from tasks.data.sources.icons import IconsDataset, icons_source
from tasks.stages import dataset

RED = '<path d="M0 0h8v16H0z" fill="red"/>'
PACK: dict[str, Any] = {
    "prefix": "tiny",
    "height": 16,
    "icons": {
        "b": {"body": RED},
        "a": {"body": RED, "hFlip": True},
        "wide": {"body": RED, "width": 32, "left": -8},
        "a-dark-skin-tone": {"body": RED},
        "old": {"body": RED, "hidden": True},
    },
    "aliases": {"again": {"parent": "a"}},
}
CATEGORIES = {"categories": {"Things": ["b", "wide"], "People": ["a", "b", "a-dark-skin-tone"]}}


@pytest.fixture()
def pack(tmp_path: Path) -> Path:
    folder = tmp_path / "tiny-icons"
    folder.mkdir()
    (folder / "icons.json").write_text(json.dumps(PACK))
    (folder / "metadata.json").write_text(json.dumps(CATEGORIES))
    return folder


def test_icons_by_name_without_aliases_hidden_ones_and_variants(pack: Path) -> None:
    icons = read_pack(pack, "skin-tone")
    assert [(icon.name, icon.category) for icon in icons] == [
        ("tiny:a", "People"), ("tiny:b", "Things"), ("tiny:wide", "Things"),
    ]  # fmt: skip
    assert icons[0].mirrored == (True, False) and icons[2].box == (-8, 0, 32, 16)
    assert len(read_pack(pack)) == 4
    whole = pack.parent / "whole.json"  # one file with both, as in @iconify/json
    whole.write_text(json.dumps(PACK | CATEGORIES))
    assert read_pack(whole, "skin-tone") == icons


def test_svg_is_centred_in_a_square() -> None:
    text = svg(Icon("x", "", RED, (-8, 0, 32, 16)), 24)
    assert (
        'viewBox="-8 -8 32 32"' in text and 'width="24"' in text and text.endswith(f"{RED}</svg>")
    )


def test_drawing_mirrors_and_turns() -> None:
    draw = renderer(8)
    plain = draw(Icon("x", "", RED, (0, 0, 16, 16)))
    assert (
        plain.shape == (8, 8, 3)
        and (plain[:, :4] == (255, 0, 0)).all()
        and (plain[:, 4:] == 255).all()
    )
    assert np.array_equal(
        draw(Icon("x", "", RED, (0, 0, 16, 16), 0, (True, False))), plain[:, ::-1]
    )
    turned = draw(Icon("x", "", RED, (0, 0, 16, 16), 1))  # clockwise: left goes up
    assert (turned[:4] == (255, 0, 0)).all() and (turned[4:] == 255).all()


@pytest.mark.parametrize(
    "body",
    ['<image href="/etc/passwd"/>', '<use xlink:href = "a.svg#b"/>', "<g fill='url(http://a)'/>"],
)
def test_links_to_other_files_are_not_followed(body: str) -> None:
    with pytest.raises(UnreadableImage, match="links"):
        renderer(8)(Icon("x", "", body, (0, 0, 16, 16)))
    inside = '<use xlink:href="#p"/><g fill="url(#q)"/>'
    assert renderer(8)(Icon("x", "", inside, (0, 0, 16, 16))).shape == (8, 8, 3)


def test_dataset_stage_makes_labelled_images(pack: Path, tmp_path: Path) -> None:
    content = json.loads((pack / "icons.json").read_text())
    content["icons"]["bad"] = {"body": "<broken"}
    (pack / "icons.json").write_text(json.dumps(content))
    params = Params(dataset=IconsDataset(packs=(str(pack),), size=8, holdout=1))
    dataset.run(params, tmp_path)
    manifest = load_manifest(tmp_path)
    assert manifest["class_names"] == ["People", "Things"] and manifest["counts"] == {
        "train": 2,
        "holdout": 1,
    }
    assert [entry["name"] for entry in manifest["unreadable"]] == ["tiny:bad"]
    images, labels = load_split(tmp_path, "train")
    assert images.shape == (2, 3, 8, 8) and set(labels) <= {0, 1}
    assert all(0.2 < (image[1:] == 0).mean() < 0.6 for image in images)  # a red part on white


def test_what_is_missing_is_one_line(
    pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"icons.json not found; expected an npm package folder"):
        read_pack(tmp_path)
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(InputError, match="pip install resvg-py"):
        renderer(8)
    (pack / "icons.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        read_pack(pack)
    (pack / "icons.json").write_text(json.dumps(PACK))
    with pytest.raises(InputError, match="leaves no icon"):
        icons_source([pack], IconsDataset(packs=(str(pack),), leave_out="."))


def test_categories_become_classes_and_the_others_are_left_out(tmp_path: Path) -> None:
    square = {"body": "<path d='M0 0h8v8z'/>"}
    pack = {"prefix": "p", "icons": dict.fromkeys(("cat", "pear", "car"), square)}
    pack["categories"] = {"Nature": ["cat"], "Food": ["pear"], "Travel": ["car"]}
    (tmp_path / "p.json").write_text(json.dumps(pack))
    pairs = [["Nature", "living"], ["Food", "living"]]
    given = {"packs": ["p.json"], "size": 8, "categories": pairs}
    source = IconsDataset.model_validate(given).open(tmp_path)
    assert source.names == ["p:cat", "p:pear"] and source.class_names == ("living",)
    given["categories"] = [["Animals", "living"]]
    with pytest.raises(InputError, match="Animals is no category of the packs, expected some of F"):
        IconsDataset.model_validate(given).open(tmp_path)
