from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.common.errors import InputError
from tasks.config.schema import Params
from tasks.data.dataset import load_manifest, load_split
from tasks.data.image_dataset import split_rows
from tasks.data.images import UnreadableImage, decode, fit, with_channels
from tasks.data.sources.digits import digits_source
from tasks.data.sources.mnist import mnist_source
from tasks.stages.dataset import run
from tests.paths import PROJECT


def make(root: Path, **dataset: object) -> dict:
    run(Params.model_validate({"dataset": dataset}), root)
    return load_manifest(root)


def gradient(rows: int, columns: int, channels: int = 3) -> np.ndarray:
    values = np.arange(rows * columns * channels) % 251
    return values.reshape(rows, columns, channels).astype(np.uint8)


def test_fit_reduces_by_area_exactly() -> None:
    image = gradient(12, 12)
    expected = (
        image.reshape(4, 3, 4, 3, 3).astype(float).mean(axis=(1, 3)).round().transpose(2, 0, 1)
    )
    assert np.array_equal(fit(image, 4), expected)


def test_fit_crops_the_centre() -> None:
    image = gradient(4, 10)
    assert np.array_equal(fit(image, 4), image[:, 3:7].transpose(2, 0, 1))
    assert np.array_equal(fit(image.transpose(1, 0, 2), 4), image[:, 3:7].transpose(2, 1, 0))


def test_fit_enlarges_bicubically() -> None:
    ramp = np.repeat(np.arange(0, 128, 8, dtype=np.uint8)[None, :, None], 16, axis=0)
    inner = fit(ramp, 32)[0, 16, 8:24].astype(int)
    assert set(np.diff(inner)) == {4}  # cubic interpolation keeps a straight line straight
    assert np.array_equal(fit(np.full((4, 4, 1), 77, np.uint8), 9), np.full((1, 9, 9), 77))


def test_decode_composites_alpha_on_white(tmp_path: Path) -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 0], rgba[0, :, 3] = 200, (0, 255, 51)  # red, alpha 0, 1 and 0.2
    Image.fromarray(rgba).save(tmp_path / "a.png")
    assert decode(tmp_path / "a.png", 3).tolist() == [
        [[255, 255, 255], [200, 0, 0], [244, 204, 204]]
    ]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "p.png", transparency=0)
    assert decode(tmp_path / "p.png", 3).tolist() == [[[255, 255, 255], [40, 50, 60]]]


def test_decode_turns_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    Image.fromarray(gradient(2, 3)).save(tmp_path / "a.png", exif=exif)
    assert np.array_equal(decode(tmp_path / "a.png", 3), np.rot90(gradient(2, 3), -1))


def test_decode_channels_and_depths(tmp_path: Path) -> None:
    Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8)).save(
        tmp_path / "c.png"
    )
    assert decode(tmp_path / "c.png", 1)[..., 0].tolist() == [[76, 150, 29]]  # 0.299, 0.587, 0.114
    Image.fromarray(np.array([[0, 257, 65535]], np.uint16)).save(tmp_path / "deep.png")
    assert decode(tmp_path / "deep.png", 1)[..., 0].tolist() == [[0, 1, 255]]
    assert decode(tmp_path / "deep.png", 3)[0, 2].tolist() == [255, 255, 255]
    assert with_channels(np.full((2, 2, 1), 9, np.uint8), 3).tolist() == [[[9, 9, 9]] * 2] * 2


@pytest.mark.parametrize(
    ("name", "content"),
    [("empty.png", b""), ("text.jpg", b"not an image"), ("half.png", None), ("flipped.png", None)],
)
def test_decode_refuses_damage(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / name
    if content is None:
        noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        whole = bytearray(path.read_bytes())
        whole[len(whole) // 2] ^= 255
        content = bytes(whole) if name == "flipped.png" else bytes(whole[: len(whole) // 2])
    path.write_bytes(content)
    with pytest.raises(UnreadableImage):
        decode(path, 3)


def test_split_is_stratified_and_seeded() -> None:
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    train, holdout = split_rows(labels, 50, seed=3)
    assert sorted([*train, *holdout]) == list(range(1000))
    assert np.bincount(labels[holdout]).tolist() == [30, 15, 5]
    again = split_rows(labels, 50, seed=3)
    assert np.array_equal(train, again[0]) and np.array_equal(holdout, again[1])
    assert not np.array_equal(holdout, split_rows(labels, 50, seed=4)[1])
    assert np.mean(np.diff(labels[train]) < 0) > 0.1  # shuffled, not sorted by class


def test_digits(tmp_path: Path) -> None:
    manifest = make(tmp_path, kind="digits", size=8, holdout=297)
    images, labels = load_split(tmp_path, "train")
    assert (
        images.shape == (1500, 1, 8, 8) and images.dtype == np.uint8 and not images.flags.writeable
    )
    assert labels.shape == (1500,) and labels.dtype == np.int64
    assert manifest["counts"] == {"train": 1500, "holdout": 297}
    assert (
        manifest["class_names"] == [str(digit) for digit in range(10)]
        and manifest["unlabelled"] == 0
    )
    held, held_labels = load_split(tmp_path, "holdout")
    source = digits_source()
    wanted = sorted((int(source.labels[i]), source.read(i).tobytes()) for i in range(1797))
    pairs = [*zip(labels, images, strict=True), *zip(held_labels, held, strict=True)]
    assert sorted((int(label), image.tobytes()) for label, image in pairs) == wanted


def test_mnist_is_padded_and_reduced_by_area(tmp_path: Path) -> None:
    make(tmp_path, kind="mnist", size=16, holdout=1000)
    images, labels = load_split(tmp_path, "train")
    assert images.shape == (4000, 1, 16, 16) and np.bincount(labels).tolist() == [400] * 10
    assert not images[:, :, 0].any() and not images[:, :, :, -1].any()  # the padding
    source = mnist_source()
    first = source.read(0)[2:30, 2:30, 0].astype(float)  # 28 x 28
    halved = np.pad(first, 2).reshape(16, 2, 16, 2).mean(axis=(1, 3)).round().astype(np.uint8)
    held, _ = load_split(tmp_path, "holdout")
    found = {image.tobytes() for image in [*images, *held]}
    assert halved.tobytes() in found and first.max() > 200


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    sums = [make(tmp_path / name, kind="digits", size=8, holdout=100, seed=seed)["sha256"] for name, seed in
            (("a", 1), ("b", 1), ("c", 2))]  # fmt: skip
    assert sums[0] == sums[1]
    assert sums[0]["train_images.npy"] != sums[2]["train_images.npy"]


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


@pytest.fixture
def arrays(tmp_path: Path) -> Path:
    rgb = np.random.default_rng(0).integers(0, 256, (12, 6, 6, 3), dtype=np.uint8)
    np.savez(
        tmp_path / "set.npz",
        images=rgb, first=rgb.transpose(0, 3, 1, 2), grey=rgb[..., 0], names=np.array(["b", "a", "c"] * 4),
        numbers=np.array([10, 2, -1] * 4), floats=rgb / 255, few=np.zeros(3, np.int64),
        objects=np.array([{}]),
    )  # fmt: skip
    return tmp_path


def test_npz_layouts_agree(arrays: Path) -> None:
    sums = {}
    for key in ("images", "first"):
        sums[key] = make(
            arrays, kind="npz", path="set.npz", images=key, labels="names", size=6, holdout=3
        )["sha256"]
    assert sums["images"] == sums["first"]
    manifest = make(
        arrays,
        kind="npz",
        path="set.npz",
        images="grey",
        labels="numbers",
        size=8,
        holdout=3,
        pad=1,
    )
    assert (
        manifest["shape"] == [1, 8, 8]
        and manifest["class_names"] == ["2", "10"]
        and manifest["unlabelled"] == 4
    )
    images, _ = load_split(arrays, "train")
    assert not images[:, :, 0].any() and images[:, :, 1:7, 1:7].any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"path": "absent.npz"}, "no file .*absent.npz"),
        ({"images": "image"}, "no array image; did you mean images?"),
        ({"images": "floats"}, r"expected uint8 .*convert with"),
        ({"images": "objects"}, "array objects is not readable"),
        ({"labels": "few"}, "expected 12 integers or strings"),
        ({"labels": "grey"}, "expected 12 integers or strings"),
        ({"holdout": 12}, "dataset.holdout = 12: expected fewer than the 12 images"),
    ],
)
def test_bad_npz(arrays: Path, settings: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(arrays, **{"kind": "npz", "path": "set.npz", "holdout": 3, **settings})


def test_not_an_npz(tmp_path: Path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(InputError, match="not readable as"):
        make(tmp_path, kind="npz", path="x.npz")
    noise = np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8)
    np.savez_compressed(tmp_path / "z.npz", images=noise)
    content = bytearray((tmp_path / "z.npz").read_bytes())
    content[300] ^= 255
    (tmp_path / "z.npz").write_bytes(content)
    with pytest.raises(InputError, match="array images is not readable"):
        make(tmp_path, kind="npz", path="z.npz")
    np.save(tmp_path / "y.npy", np.zeros(3))
    with pytest.raises(InputError, match="a single array"):
        make(tmp_path, kind="npz", path="y.npy")


def test_exclude_drops_identical_images_only(tmp_path: Path) -> None:
    source = digits_source()
    digits = np.stack([source.read(i) for i in range(40)])
    fresh = np.random.default_rng(1).integers(0, 256, (10, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "mixed.npz", images=np.concatenate([digits, fresh]))
    np.savez(tmp_path / "known.npz", held=fresh[:4])
    settings = {"kind": "npz", "path": "mixed.npz", "size": 4, "holdout": 2}
    manifest = make(tmp_path, **settings, exclude="digits")
    assert manifest["excluded"] == 40 and manifest["counts"] == {"train": 8, "holdout": 2}
    kept = {
        image.tobytes()
        for split in ("train", "holdout")
        for image in load_split(tmp_path, split)[0]
    }
    assert kept == {fit(image, 4).tobytes() for image in fresh}
    assert make(tmp_path, **settings, exclude="known.npz")["excluded"] == 4
    with pytest.raises(
        InputError, match=r"fewer than the 0 images .*\(0 unreadable, 1797 excluded\)"
    ):
        make(tmp_path, kind="digits", exclude="digits", holdout=5)


def test_load_before_the_stage_ran(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"manifest\.json: missing; run python -m tasks\.stages\.dataset"
    ):
        load_split(tmp_path, "train")


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "manifest"])
def test_load_detects_damage(tmp_path: Path, damage: str) -> None:
    make(tmp_path, kind="digits", size=8, holdout=5)
    file = tmp_path / "data" / "dataset" / "train_images.npy"
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "manifest":
        (file.parent / "manifest.json").write_text(json.dumps([1]))
    elif damage == "truncated":
        file.write_bytes(content[:-1])
    else:
        content[500] ^= 1
        file.write_bytes(content)
    with pytest.raises(
        InputError, match=r"manifest\.json: damaged" if damage == "manifest" else "train_images"
    ):
        load_split(tmp_path, "train")
    if damage != "manifest":
        assert len(load_split(tmp_path, "holdout")[0]) == 5


def test_manifest_sums_are_of_the_files(tmp_path: Path) -> None:
    sums = make(tmp_path, kind="digits", size=8, holdout=5)["sha256"]
    assert sorted(path.name for path in (tmp_path / "data" / "dataset").iterdir()) == sorted(
        [*sums, "manifest.json"]
    )
    for name, value in sums.items():
        assert (
            hashlib.sha256((tmp_path / "data" / "dataset" / name).read_bytes()).hexdigest() == value
        )


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


def test_groups_that_leave_no_way_are_told() -> None:
    labels, pairs = np.zeros(6, dtype=np.int64), np.array([0, 0, 1, 1, 2, 2])
    with pytest.raises(
        InputError, match=r"holdout = 3: identical images .* try dataset\.holdout=2"
    ):
        split_rows(labels, 3, 0, pairs)
    train, held = split_rows(labels, 2, 0, pairs)
    assert len(held) == 2 and len(set(pairs[held])) == 1 and len(train) == 4
    alone = np.arange(6)
    for mine, plain in zip(split_rows(labels, 3, 5, alone), split_rows(labels, 3, 5), strict=True):
        assert np.array_equal(mine, plain)
