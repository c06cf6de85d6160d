"""What the evaluation loads: cached paths on every grid, real images, errors for what does not
fit.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline
from PIL import Image

from models.common.errors import InputError
from models.methods.sigdeg.build import build_pipeline
from models.sampling.grids import subgrid
from models.sampling.signature import bases, feature_matrix
from models.sampling.trajectories import path_noise
from models.teachers.architectures import build_scheduler, build_unet
from models.teachers.base import Denoiser
from models.teachers.loading import load_denoiser
from tasks.config.evaluation import FolderReference, NpzReference, Reference
from tasks.config.schema import Params
from tasks.data.dataset import load_split
from tasks.data.student import open_student
from tasks.evaluation.load import load_inputs, load_paths, real_images
from tasks.registry.lineage import stage_sums
from tasks.stages import dataset, trajectories

PARAMS = Params.model_validate(
    {
        "dataset": {"kind": "digits", "size": 8, "holdout": 50},
        "trajectories": {
            "train": 4, "validation": 6, "steps": 16, "intervals": 8, "depth": 2, "dtype": "float32",
            "batch_size": 4, "shard_size": 4,
        },
        "method": {"kind": "sigdeg", "nfe": [4, 2]},
        "student": {"validation_samples": 4, "batch_size": 4},
        "evaluation": {"samples": 5, "neighbours": 2},
    }
)  # fmt: skip


def save_teacher(root: Path, seed: int) -> Denoiser:
    torch.manual_seed(seed)
    network = build_unet(8, 1, (8, 16), 1)
    DDPMPipeline(network, build_scheduler("epsilon", "linear")).save_pretrained(
        root / "data" / "teacher"
    )
    return load_denoiser(root / "data" / "teacher")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    save_teacher(folder, 0)
    dataset.run(PARAMS, folder)
    trajectories.run(PARAMS, folder)
    return folder


def test_paths_hold_the_features_of_every_coarser_grid(root: Path) -> None:
    """Chen's identity on the cache agrees with features taken directly from the fine noise."""
    teacher = load_denoiser(root / "data" / "teacher")
    paths = load_paths(PARAMS, root, teacher, (8, 4, 2))
    assert len(paths) == 5 and paths.states.shape == (5, 9, 1, 8, 8) and paths.condition is None
    assert torch.equal(paths.noise, paths.states[:, 0])
    spec = trajectories.path_spec(PARAMS.trajectories, teacher)
    noise = path_noise(spec, "validation", range(5), teacher.shape)
    assert torch.equal(paths.noise, noise[:, 0])
    for nfe in (8, 4, 2):
        parts = bases(spec.chain, subgrid(spec.grid, nfe), PARAMS.trajectories.depth)
        weights = torch.from_numpy(feature_matrix(parts)).float()
        direct = torch.einsum("ipk,bkchw->bipchw", weights, noise[:, 1:])
        assert torch.allclose(paths.xi[nfe], direct, atol=1e-4), nfe
        assert paths.coarse(nfe).shape[1] == nfe + 1


def test_another_teacher_is_refused(root: Path, tmp_path: Path) -> None:
    other = save_teacher(tmp_path, 1)
    with pytest.raises(InputError, match="made with another teacher; run python -m tasks"):
        load_paths(PARAMS, root, other, (4,))


def seeded(seed: int, reference: Reference | None = None) -> Params:
    evaluation = PARAMS.evaluation.model_copy(update={"seed": seed, "reference": reference})
    return PARAMS.model_copy(update={"evaluation": evaluation})


def teacher_of(root: Path) -> Denoiser:
    """The teacher, which is asked where there is no dataset."""
    return load_denoiser(root / "data" / "teacher")


def test_real_images_are_disjoint_and_equally_many(root: Path) -> None:
    real, other = real_images(seeded(0), root, teacher_of(root))
    assert real.shape == other.shape == (50, 1, 8, 8)
    assert float(real.min()) == -1 and float(real.max()) <= 1
    again, another = (real_images(seeded(s), root, teacher_of(root))[1] for s in (0, 1))
    assert torch.equal(other, again)
    assert not torch.equal(other, another)
    train, _ = load_split(root, "train")
    known = {image.tobytes() for image in np.asarray(train[:])}
    assert all(
        image.tobytes() in known for image in ((other + 1) * 127.5).round().to(torch.uint8).numpy()
    )


def test_another_reference_is_read_whole_and_shuffled(root: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 6, 6), dtype=np.uint8)
    np.savez(tmp_path / "x.npz", images=pixels, test=pixels)
    (tmp_path / "folder").mkdir()
    for index, image in enumerate(pixels):
        Image.fromarray(np.pad(image, 1)).save(tmp_path / "folder" / f"{index:02}.png")
    expected = np.pad(pixels, ((0, 0), (1, 1), (1, 1)))
    for reference in (
        NpzReference(path=str(tmp_path / "x.npz"), images="test", pad=1),
        FolderReference(path=str(tmp_path / "folder")),
    ):
        real, other = real_images(seeded(0, reference), root, teacher_of(root))
        found = ((real + 1) * 127.5).round().to(torch.uint8).numpy()[:, 0]
        assert real.shape == other.shape == (30, 1, 8, 8)
        assert sorted(image.tobytes() for image in found) == sorted(
            image.tobytes() for image in expected
        )
        assert not (found == expected).all()
        assert torch.equal(real, real_images(seeded(0, reference), root, teacher_of(root))[0])


def test_a_reference_that_cannot_be_read_is_one_line(root: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    for reference, message in (
        (
            NpzReference(path="nowhere.npz"),
            r"evaluation\.reference\.path: no file .*nowhere\.npz, expected an \.npz",
        ),
        (
            FolderReference(path="nowhere"),
            r"evaluation\.reference\.path: .*nowhere is not a folder",
        ),
        (
            FolderReference(path=str(tmp_path)),
            r"evaluation\.reference: broken\.png is unreadable .*remove it",
        ),
    ):
        with pytest.raises(InputError, match=message):
            real_images(seeded(0, reference), root, teacher_of(root))


def test_no_student_is_one_line(root: Path) -> None:
    with pytest.raises(
        InputError, match=r"data/student cannot be opened .*run python -m tasks\.stages\.student"
    ):
        open_student(root, torch.device("cpu"))


def test_stage_hashes_come_from_the_lock_file(tmp_path: Path) -> None:
    assert stage_sums(tmp_path) == {}
    stages = "".join(
        f"  {name}:\n    outs:\n    - path: data/{name}\n      md5: {name[:3]}.dir\n"
        for name in ("student", "evaluation")
    )
    (tmp_path / "dvc.lock").write_text(f"schema: '2.0'\nstages:\n{stages}")
    assert stage_sums(tmp_path) == {"data/student (dvc)": "stu.dir"}


def test_load_inputs_has_a_working_student_and_untrained_generator(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A student that was not trained yet is the untrained generator: same states on the cached
    paths.
    """
    teacher = load_denoiser(root / "data" / "teacher")
    spec = trajectories.path_spec(PARAMS.trajectories, teacher)
    pipeline = build_pipeline(teacher, spec, PARAMS.method)
    monkeypatch.setattr(
        "tasks.evaluation.load.open_student", lambda root, device: pipeline.to(device)
    )
    inputs = load_inputs(PARAMS, root)
    assert (
        inputs.nfe == (4, 2)
        and inputs.steps == 16
        and set(inputs.generators) == {"student", "untrained"}
    )
    for nfe in inputs.nfe:
        x0, states = inputs.generators["student"](
            inputs.paths.noise, inputs.paths.xi[nfe], None, nfe, None
        )
        _, other = inputs.generators["untrained"](
            inputs.paths.noise, inputs.paths.xi[nfe], None, nfe, None
        )
        assert states.shape == inputs.paths.coarse(nfe).shape and torch.equal(x0, states[:, -1])
        assert torch.allclose(states, other, atol=1e-3)
    assert inputs.lineage["teacher fingerprint"] == teacher.fingerprint()
