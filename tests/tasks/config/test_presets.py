from __future__ import annotations

import itertools
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flows.dvc.params_file import write_preset
from models.common.errors import InputError
from tasks.config.evaluation import NpzReference
from tasks.config.presets import DEFAULT, compose, presets
from tasks.config.schema import load_params
from tests.paths import PROJECT

NAMES = sorted(presets(PROJECT))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with the presets alone, without params.yaml."""
    shutil.copytree(PROJECT / "conf", tmp_path / "conf")
    return tmp_path


def test_the_shipped_file_is_the_default_preset(root: Path) -> None:
    write_preset(root, DEFAULT, [])
    assert (root / "params.yaml").read_text() == (PROJECT / "params.yaml").read_text()
    assert load_params(PROJECT / "params.yaml") == compose(PROJECT)


def test_every_preset_says_in_one_line_what_it_is_for() -> None:
    assert {
        "mnist-sigdeg",
        "mnist-swd",
        "mnist-sfd",
        "mnist-consistency",
        "emoji-swd",
        "tiny",
    } <= set(NAMES)
    assert all(10 < len(line) <= 120 for line in presets(PROJECT).values())


def test_students_of_one_text_to_image_teacher_differ_in_method_and_training_alone() -> None:
    """So the second of them begins with the first one's paths, out of DVC's cache."""
    one, other = (compose(PROJECT, name) for name in ("emoji-text", "emoji-text-swd"))
    differ = {name for name in type(one).model_fields if getattr(one, name) != getattr(other, name)}
    assert differ == {"method", "student", "registration"}
    assert one.trajectories.guidance == 3.0 and one.evaluation.criterion == "kid"
    assert one.conditions.prompts and "caption_retrieval" in one.evaluation.metrics


def test_what_presets_share_is_no_preset() -> None:
    shared = {path.stem for path in (PROJECT / "conf/shared").glob("*.yaml")}
    texts = [(PROJECT / f"conf/preset/{name}.yaml").read_text() for name in NAMES]
    for name in shared:
        assert sum(f"- /shared/{name}\n" in text for text in texts) >= 2, name


def test_what_ran_before_changes_nothing(root: Path) -> None:
    """After every other preset, params.yaml is that of a fresh clone."""
    fresh = {}
    for name in NAMES:
        write_preset(root, name, [])
        fresh[name] = (root / "params.yaml").read_text()
        (root / "params.yaml").unlink()
    # a walk along all ordered pairs: a, b, a, c, a, .., then b, c, b, ..
    walk = [name for i, first in enumerate(NAMES) for name in _to_and_fro(first, NAMES[i + 1 :])]
    assert set(itertools.permutations(NAMES, 2)) <= set(itertools.pairwise(walk))
    for name in walk:
        write_preset(root, name, [])
        assert (root / "params.yaml").read_text() == fresh[name]


def _to_and_fro(first: str, others: list[str]) -> list[str]:
    return [first, *itertools.chain.from_iterable((other, first) for other in others)]


@pytest.mark.parametrize("second", NAMES)
def test_former_overrides_are_forgotten(root: Path, second: str) -> None:
    write_preset(root, second, [])
    fresh = (root / "params.yaml").read_text()
    write_preset(root, NAMES[NAMES.index(second) - 1], ["student.seed=7"])
    params, changes = write_preset(root, second, [])
    assert (root / "params.yaml").read_text() == fresh and changes
    assert load_params(root / "params.yaml") == params


def test_a_method_and_back_again_is_the_default_job(root: Path) -> None:
    first, _ = write_preset(root, DEFAULT, [])
    swd, _ = write_preset(root, DEFAULT, ["method.kind=swd"])
    assert swd.method == compose(root, "mnist-swd").method
    assert (swd.student.steps, swd.student.learning_rate, swd.student.ema) == (3000, 1e-4, 0.999)
    back, _ = write_preset(root, DEFAULT, [])
    assert back == first and back.method.kind == "sigdeg"
    assert (back.method.loss.path, back.method.loss.score, back.method.window.start) == (0, 1, 3)
    assert (back.student.steps, back.student.learning_rate) == (300, 1e-3)


def test_what_is_said_beside_a_variant_wins_over_what_it_brings() -> None:
    for order in (["method.kind=swd", "student.ema=0.5"], ["student.ema=0.5", "method.kind=swd"]):
        chosen = compose(PROJECT, DEFAULT, [*order, "method.lora_rank=8"])
        assert chosen.student.ema == 0.5 and chosen.student.steps == 3000
        assert chosen.method.kind == "swd" and chosen.method.lora_rank == 8
    whole = compose(PROJECT, DEFAULT, ["method={kind: swd, fake_updates: 2}"])
    assert whole.student.steps == 3000 and whole.method.fake_updates == 2
    grid = compose(PROJECT, "tiny", ["trajectories.grid={kind: given, points: [0, 5, 9, 14, 20]}"])
    assert grid.trajectories.grid.points == (0, 5, 9, 14, 20)
    free = compose(
        PROJECT, DEFAULT, ["teacher.source=factory", "teacher.factory=a.b:c", "teacher.arguments.width=3",
                           "teacher.trust_remote_code=true"],
    )  # fmt: skip
    assert free.teacher.arguments == {"width": 3}
    inner = compose(PROJECT, "mnist-swd", ["method.schedule.kind=auto"])
    assert inner.method.schedule.sigmas == (1.0, 0.8959, 0.7371, 0.6022)


@pytest.mark.parametrize(
    ("preset", "overrides", "message"),
    [
        ("tinny", [], "preset = tinny: no such preset, did you mean tiny?"),
        ("x", [], "preset = x: no such preset, expected one of "),
        ("tiny", ["student.step=5"], "override student.step: unknown key, did you mean steps?"),
        ("tiny", ["student.steps=-1"], "preset tiny: student.steps = -1: expected a number >= 0"),
        ("tiny", ["method.kind=swdd"], "preset tiny: method.kind = swdd: expected one of 'sigdeg',"),
        ("mnist-swd", ["method.nfe=[4]"], "preset mnist-swd: method.nfe: unknown key with kind ="),
        ("tiny", ["extensions=toy.py"], "extensions = 'toy.py': expected a list of modules and"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(preset: str, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        compose(PROJECT, preset, overrides)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["evaluation.reference={kind: npz, path: x.npz, pad: 2}"],
        [f"evaluation.reference.{said}" for said in ("pad=2", "path=x.npz", "kind=npz")],
    ],
)
def test_a_section_that_is_null_by_default_can_be_given(overrides: list[str]) -> None:
    found = compose(PROJECT, "mnist-sigdeg", overrides).evaluation.reference
    assert found == NpzReference(path="x.npz", pad=2)


def test_a_section_without_its_kind_names_its_own_kinds() -> None:
    with pytest.raises(InputError) as caught:
        compose(PROJECT, "mnist-sigdeg", ["evaluation.reference.path=x"])
    told = "evaluation.reference.kind: missing, expected one of 'folder', 'npz'"
    assert str(caught.value) == f"preset mnist-sigdeg: {told}"


def test_a_broken_preset_is_refused_with_hydras_reason(root: Path) -> None:
    text = "# @package _global_\n# Mine.\ndefaults:\n  - override /method: swdd\n"
    (root / "conf/preset/mine.yaml").write_text(text)
    with pytest.raises(InputError, match=r"preset mine: Hydra cannot compose it: .*method/swdd"):
        compose(root, "mine")
    (root / "conf/preset/mine.yaml").write_text("# @package _global_\nstudent: {stepz: 3}\n")
    with pytest.raises(InputError, match=r"preset mine: student\.stepz: unknown key, did you mean"):
        compose(root, "mine")


def test_dvc_composes_the_same_values(root: Path) -> None:
    """`dvc exp run -S` lets DVC compose with Hydra itself, in a program of its own."""
    program = f"""if True:
        import sys
        from dvc.utils.hydra import compose_and_dump
        plugins = {str(PROJECT / "tasks/config")!r}
        for name in sys.argv[1:]:
            choices = ["preset=" + name]
            compose_and_dump(name + ".yaml", {str(root / "conf")!r}, None, "config", plugins, choices)
        compose_and_dump("both.yaml", {str(root / "conf")!r}, None, "config", plugins,
            ["method=swd", "trajectories/grid=index", "student.ema=0.5"])
    """
    done = subprocess.run(
        [sys.executable, "-c", program, *NAMES], cwd=root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for name in NAMES:
        assert load_params(root / f"{name}.yaml") == compose(root, name)
    asked = ["method.kind=swd", "trajectories.grid.kind=index", "student.ema=0.5"]
    assert load_params(root / "both.yaml") == compose(root, DEFAULT, asked)
