"""The dataset stage on folders of images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.common.errors import InputError
from tasks.data.dataset import load_manifest, load_split
from tasks.data.image_dataset import split_rows
from tests.paths import PROJECT
from tests.tasks.stages.dataset_project import make


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for number in range(6):
        place = folder / "more" if number > 3 else folder
        Image.fromarray(np.full((9, 12, 3), 40 * number, np.uint8)).save(place / f"{number}.png")
    return folder


def test_folder_with_labels(
    tmp_path: Path, pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (pictures / "notes.txt").write_text("not an image")
    (pictures / "metadata.csv").write_text(
        "file_name,label\n0.png,zebra\n1.png,ant\n2.png,\nmore/4.png, ant\ngone.png,bee\n"
    )
    manifest = make(tmp_path, kind="folder", path="pictures", size=4, holdout=1)
    assert manifest["class_names"] == ["ant", "zebra"] and manifest["unlabelled"] == 3
    found = {}
    for split in ("train", "holdout"):
        images, labels = load_split(tmp_path, split)
        assert images.shape[1:] == (3, 4, 4)
        found |= {
            int(image[0, 0, 0]): int(label) for image, label in zip(images, labels, strict=True)
        }
    assert found == {0: 1, 40: 0, 80: -1, 120: -1, 160: 0, 200: -1}
    assert "1 rows name no image file: gone.png" in caplog.text
    assert "3 images have no label: 2.png, 3.png, more/5.png" in caplog.text
    assert "left out 1 files without an image suffix" in caplog.text


def test_unreadable_images_are_named_counted_and_left_out(pictures: Path, tmp_path: Path) -> None:
    (pictures / "1.png").write_bytes((pictures / "1.png").read_bytes()[:40])
    (pictures / "more" / "bad.jpg").write_bytes(b"nonsense")
    (tmp_path / "params.yaml").write_text(
        "dataset: {kind: folder, path: pictures, size: 4, holdout: 2, channels: 1}\n"
    )
    ended = subprocess.run(
        [sys.executable, "-m", "tasks.stages.dataset"],
        cwd=tmp_path, env={"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert (
        "unreadable image 1.png: " in ended.stderr
        and "unreadable image more/bad.jpg: " in ended.stderr
    )
    manifest = load_manifest(tmp_path)
    assert [entry["name"] for entry in manifest["unreadable"]] == ["1.png", "more/bad.jpg"]
    assert manifest["counts"] == {"train": 3, "holdout": 2}
    grey = sorted(
        int(image[0, 0, 0])
        for split in ("train", "holdout")
        for image in load_split(tmp_path, split)[0]
    )
    assert grey == [0, 80, 120, 160, 200]


def test_mostly_unreadable_is_an_error_and_keeps_the_old_dataset(
    pictures: Path, tmp_path: Path
) -> None:
    before = make(tmp_path, kind="folder", path="pictures", size=4, holdout=1)
    for number in range(4):
        (pictures / f"{number}.png").write_bytes(b"")
    with pytest.raises(
        InputError, match=r"4 of 6 images are unreadable, such as 0\.png \(not an image"
    ):
        make(tmp_path, kind="folder", path="pictures", size=4, holdout=1)
    assert load_manifest(tmp_path) == before and len(load_split(tmp_path, "train")[0]) == 5
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["dataset"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,label\n0.png,a\n", "columns name, label, expected file_name and label"),
        ("file_name,label\n0.png,a\n0.png,b\n", "0.png has two labels"),
        ('file_name,label\n"0.png,a\n', "not readable as CSV"),
        ("", "not readable as CSV"),
    ],
)
def test_bad_metadata(pictures: Path, tmp_path: Path, table: str, message: str) -> None:
    (pictures / "metadata.csv").write_text(table)
    with pytest.raises(InputError, match=message):
        make(tmp_path, kind="folder", path="pictures", holdout=1)


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        make(tmp_path, kind="folder", path="absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images in"):
        make(tmp_path, kind="folder", path="empty")


def test_identical_images_stay_on_one_side(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Copies that differ in file, size and label are still one image to the split."""
    rng = np.random.default_rng(0)
    for number in range(30):
        pixels = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
        for copy in range(1 + number % 3):
            place = tmp_path / "in" / f"class{copy}" / f"{number}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.repeat(1 + copy, 0).repeat(1 + copy, 1)).save(place)
    crossed = 0
    for seed in range(5):
        manifest = make(tmp_path, kind="folder", path="in", size=4, holdout=20, seed=seed)
        images = [load_split(tmp_path, split)[0] for split in ("train", "holdout")]
        sides = [{image.tobytes() for image in part} for part in images]
        assert not sides[0] & sides[1] and len(images[1]) == 20
        assert manifest["identical"] == 30 and manifest["counts"] == {"train": 40, "holdout": 20}
        numbers = np.arange(60) // 2  # without groups, pairs do fall on both sides
        train, held = split_rows(np.zeros(60), 20, seed)
        crossed += len(set(numbers[train]) & set(numbers[held]))
    assert crossed > 10
    assert "30 images are identical to others at this size" in caplog.text
