from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from pydantic import ValidationError

from models.common.errors import InputError
from tasks.config.schema import Params, load_params, params_dict
from tasks.config.teacher import TrainedTeacher
from tasks.utils.hashing import fingerprint
from tests.paths import PROJECT

FILE = PROJECT / "params.yaml"


def sections(data: object, prefix: str = "") -> set[str]:
    if not isinstance(data, dict):
        return {prefix}
    return set().union(*(sections(value, f"{prefix}.{key}") for key, value in data.items()))


def test_shipped_file_names_every_key() -> None:
    from ruamel.yaml import YAML

    written = YAML(typ="safe", pure=True).load(FILE.read_text())
    assert sections(written) == sections(params_dict(load_params(FILE)))


def test_an_empty_section_list_means_defaults(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("{}\n")
    assert load_params(tmp_path / "p.yaml") == Params()


def test_params_are_frozen() -> None:
    params = Params()
    with pytest.raises(ValidationError, match="frozen"):
        params.student.steps = 3  # type: ignore[misc]


def test_overrides_are_yaml_and_the_last_wins() -> None:
    params = load_params(
        FILE,
        [
            "student.learning_rate=1e-4",
            "student.clip=2",
            "student.steps=5",
            "student.steps=6",
            "method.nfe=[4, 2]",
            "method.conditioning_limit=null",
            "trajectories.grid={kind: given, points: [0, 10, 20, 60, 100]}",
            "trajectories.intervals=4",
            "trajectories.steps=100",
            "registration.tracking_uri=http://localhost:5000/?a=b",
            "registration.promote=false",
        ],
    )
    assert (
        params.student.learning_rate == 1e-4
        and params.student.clip == 2.0
        and params.student.steps == 6
    )
    assert params.method.nfe == (4, 2) and params.method.conditioning_limit is None
    assert params_dict(params)["trajectories"]["grid"] == {
        "kind": "given",
        "points": [0, 10, 20, 60, 100],
    }
    assert (
        params.registration.tracking_uri == "http://localhost:5000/?a=b"
        and not params.registration.promote
    )


def test_another_variant_drops_the_keys_of_the_former_one() -> None:
    # the variant is chosen first, wherever it stands
    params = load_params(FILE, ["teacher.steps=3", "teacher.source=train"])
    assert params.teacher == TrainedTeacher(steps=3)
    swapped = load_params(
        FILE, ["dataset.kind=npz", "dataset.path=/elsewhere/a.npz", "dataset.size=8"]
    )
    assert params_dict(swapped.dataset) == {
        "kind": "npz", "path": "/elsewhere/a.npz", "images": "images", "labels": None, "pad": 0,
        "size": 8, "holdout": 1000, "exclude": None, "seed": 0, "digest": None,
    }  # fmt: skip
    base = ["trajectories.steps=100", "trajectories.intervals=1", "method.nfe=[1]"]
    grid = ["trajectories.grid.kind=given", "trajectories.grid.points=[0, 100]"]
    assert params_dict(load_params(FILE, base + grid).trajectories.grid) == {
        "kind": "given",
        "points": [0, 100],
    }


# values that the cases below count on, whatever the shipped file is tuned to
BASE = """
dataset: {kind: mnist, size: 16}
teacher: {source: pretrained}
trajectories: {train: 1024, validation: 1000, steps: 100, intervals: 20}
method: {kind: sigdeg, nfe: [10, 5]}
student: {batch_size: 32, validation_samples: 500}
evaluation: {features: {kind: mnist}, samples: 1000}
"""

BAD: list[tuple[str, str]] = [
    ("student.learning_rate=-1", "student.learning_rate = -1: expected a number > 0"),
    ("student.learning_rate=.nan", "student.learning_rate = NaN: expected"),
    ("student.learning_rate=fast", 'student.learning_rate = "fast": expected a number'),
    ("student.clip=.inf", "student.clip = Infinity: expected a finite number"),
    ("student.steps=true", "student.steps = true: expected a whole number"),
    ("student.steps='3'", 'student.steps = "3": expected a whole number'),
    ("student.steps=2.5", "student.steps = 2.5: expected a whole number"),
    ("student.steps=", "student.steps = null: expected a whole number"),
    ("student.ema=1", "student.ema = 1: expected a number < 1"),
    (
        "student.gradient_checkpointing=1",
        "student.gradient_checkpointing = 1: expected true or false",
    ),
    (
        "student.precision=half",
        "student.precision = \"half\": expected 'float32', 'bfloat16' or 'float16'",
    ),
    (
        "evaluation.metrics=[kid,clip_score]",
        "evaluation.metrics: clip_score needs evaluation.clip.path; set evaluation.clip=",
    ),
    ("student=3", "student = 3: expected a mapping of keys to values"),
    ("student.stepz=3", "override student.stepz: unknown key, did you mean steps?"),
    ("studnt.steps=3", "override studnt: unknown key, did you mean student?"),
    ("zzz=3", "override zzz: unknown key, expected one of conditions, dataset, ev"),
    ("student.steps.more=3", "override student.steps.more: student.steps has no keys below it"),
    ("student.steps", "'student.steps': expected key=value"),
    ("=3", "'=3': expected key=value"),
    ("student..steps=3", "'student..steps=3': expected key=value"),
    ("student.steps=[1", "override student.steps, line 1, column 3: not valid YAML"),
    (
        "dataset={kind: mnist, siez: 8}",
        "dataset.siez: unknown key with kind = mnist, did you mean size?",
    ),
    (
        "dataset={size: 8}",
        "dataset.kind: missing, expected one of 'mnist', 'digits', 'folder', 'npz'",
    ),
    (
        "dataset.kind=cifar",
        "dataset.kind = cifar: expected one of 'mnist', 'digits', 'folder', 'npz'",
    ),
    ("dataset.kind=folder", "dataset.path: missing, expected a value"),
    ("dataset={kind: npz, images: path}", "dataset.path: missing, expected a value"),
    (
        "dataset={kind: folder, path: ../x}",
        'dataset.path = "../x": expected a path inside the project',
    ),
    (
        "dataset={kind: folder, path: a/../../x}",
        'dataset.path = "a/../../x": expected a path inside',
    ),
    (
        "dataset={kind: folder, path: ~/x}",
        'dataset.path = "~/x": expected a path inside the project or an abs',
    ),
    (
        "dataset={kind: folder, path: x, channels: true}",
        "dataset.channels = true: expected a whole number",
    ),
    ("dataset={kind: folder, path: x, channels: 2}", "dataset.channels = 2: expected 1 or 3"),
    (
        "dataset.exclude=cifar",
        'dataset.exclude = "cifar": expected mnist, digits, or the path of an .npz',
    ),
    ("dataset.seed=-1", "dataset.seed = -1: expected a number >= 0"),
    (
        "teacher.steps=5",
        "teacher.steps: unknown key with source = pretrained, expected one of config, digest",
    ),
    (
        "teacher={source: train, scales: [8, 16], channels: [1, 1, 1, 1, 1]}",
        "teacher.scales [8]: 5 channel levels",
    ),
    (
        "teacher={source: train, scales: [8]}",
        "teacher.scales: largest is 8, expected dataset.size = 16",
    ),
    ("trajectories.steps=1", "trajectories.steps = 1: expected a number >= 2"),
    ("trajectories.steps=10", "trajectories.intervals = 20: expected at most steps = 10"),
    ("trajectories.eta=1.5", "trajectories.eta = 1.5: expected a number <= 1"),
    ("trajectories.depth=0", "trajectories.depth = 0: expected a number >= 1"),
    ("trajectories.shard_size=0", "trajectories.shard_size = 0: expected a number >= 1"),
    (
        "trajectories.guidance_range=[4.0, 2.0]",
        "trajectories.guidance_range = [4, 2]: expected a lower weight, then a higher one; for one "
        "weight use guidance alone",
    ),
    (
        "trajectories.guidance_range=[2.0, 8.0]",
        "trajectories.guidance = 1: expected one within guidance_range = [2, 8], since the student "
        "samples at it where nobody says a weight",
    ),
    ("trajectories.guidance_range=[-1.0, 8.0]", "trajectories.guidance_range.0 = -1.0: expected a"),
    ("trajectories.classes=[]", "trajectories.classes = []: expected at least 1 entries"),
    (
        "trajectories.grid={kind: given, points: [1, 100]}",
        "trajectories.grid.points start at 1: expected 0",
    ),
    (
        "trajectories.grid={kind: given, points: [0, 5, 5]}",
        "trajectories.grid.points: expected strictly incr",
    ),
    (
        "trajectories.grid={kind: given, points: [0, 90]}",
        "trajectories.grid.points end at 90: expected steps",
    ),
    (
        "trajectories.grid={kind: given, points: [0, 100]}",
        "trajectories.grid.points has 2 entries: expected",
    ),
    (
        "trajectories.grid={kind: given, points: [0, a]}",
        'trajectories.grid.points.1 = "a": expected a whole',
    ),
    ("method.nfe=[10, 21]", "method.nfe = 21: expected at most trajectories.intervals = 20"),
    ("method.nfe=[5, 5]", "method.nfe = [5, 5]: expected distinct entries"),
    ("method.nfe=5", "method.nfe = 5: expected a list such as [1, 2]"),
    ("method.kind=other", "method.kind = other: expected one of 'sigdeg', 'swd'"),
    (
        "method={kind: swd, mmd: {compare: image}}",
        "method.backward_simulation = true: inputs from noise have no image of their own",
    ),
    (
        "method={kind: swd, dmd: {weight: 0}, mmd: {weight: 0}, gan: {weight: 1}}",
        "method.dmd.weight and mmd.weight are 0: a GAN alone does not converge",
    ),
    ("method.window.start=0", "method.window.start = 0: expected a number >= 1"),
    (
        "evaluation.baselines=[ddim, dim]",
        "evaluation.baselines.1 = \"dim\": expected 'ddim', 'ddpm'",
    ),
    (
        "evaluation.neighbours=2000",
        "evaluation.neighbours = 2000: expected fewer than samples = 1000",
    ),
    ("evaluation.reference={kind: npz}", "evaluation.reference.path: missing, expected a value"),
    ("evaluation.reference={path: x.npz}", "evaluation.reference.kind: missing, expected one of"),
    ("evaluation.features.kind=torchscript", "evaluation.features.path: missing, expected a value"),
    (
        "trajectories.validation=400",
        "student.validation_samples = 500: expected at most trajectories.validation",
    ),
    ("trajectories.train=8", "student.batch_size = 32: expected at most trajectories.train = 8"),
    ("registration.name=a/b", 'registration.name = "a/b": expected text that matches'),
]


def test_a_key_has_its_own_name_where_the_variant_is_not_said(tmp_path: Path) -> None:
    """`kind` has a default; it is no part of the keys below `method`."""
    for kind in ("", "kind: sigdeg, "):
        text = "method: {" + kind + "nfe: [4], scales: {pairs: [[0.9, 8]]}}\n"
        (tmp_path / "p.yaml").write_text(text)
        with pytest.raises(
            InputError, match=r"^p\.yaml: method\.scales\.pairs: first sigma is 0\.9"
        ):
            load_params(tmp_path / "p.yaml")
    (tmp_path / "p.yaml").write_text("teacher: {source: factory}\n")
    with pytest.raises(InputError, match=r"^p\.yaml: teacher\.factory: missing, expected a value"):
        load_params(tmp_path / "p.yaml")


@pytest.mark.parametrize(("override", "message"), BAD, ids=[override for override, _ in BAD])
def test_bad_override(tmp_path: Path, override: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(BASE)
    with pytest.raises(InputError) as caught:
        load_params(tmp_path / "params.yaml", [override])
    told = str(caught.value)
    assert told.removeprefix("params.yaml: ").startswith(message) and "\n" not in told
    assert told.startswith(("params.yaml: ", "override ", "'"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "student: {steps: 3, steps: 4}",
            r"params.yaml, line 1, column \d+: not valid YAML \(found duplicate key",
        ),
        ("a: b: c", r"params.yaml, line 1, column \d+: not valid YAML"),
        ("student:\n\tsteps: 3", r"params.yaml, line 2, column 1: not valid YAML"),
        ("- student", r'params.yaml: found \["student"\], expected a mapping'),
        ("", "params.yaml: found null, expected a mapping"),
        ("1: 2", "params.yaml: 1: unknown key, expected one of conditions, dataset"),
        ("student: {steps: no}", 'params.yaml: student.steps = "no": expected a whole number'),
    ],
)
def test_bad_file(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "params.yaml").write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load_params(tmp_path / "params.yaml")
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.yaml: no such parameter file"):
        load_params(tmp_path / "absent.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot be read as UTF-8"):
        load_params(tmp_path / "binary.yaml")


def test_several_errors_share_one_line() -> None:
    bad = [
        "student.steps=-1",
        "student.clip=0",
        "student.ema=2",
        "student.warmup=-1",
        "student.seed=-1",
    ]
    with pytest.raises(InputError) as caught:
        load_params(FILE, bad)
    told = str(caught.value)
    assert told.count("expected") == 3 and told.endswith("(and 2 more)") and "\n" not in told


def test_fingerprint_is_canonical() -> None:
    expected = hashlib.sha256(b'{"a":[1,0.5],"b":null}').hexdigest()
    assert fingerprint({"b": None, "a": (1, 0.5)}) == expected
    section = Params().student
    assert fingerprint([section]) == fingerprint([params_dict(section)])
    assert fingerprint(section) != fingerprint(section.model_copy(update={"seed": 1}))
    with pytest.raises(ValueError, match="JSON"):
        fingerprint(float("nan"))
    with pytest.raises(TypeError, match="PosixPath has no canonical JSON"):
        fingerprint(Path("x"))


def test_another_variant_brings_its_own_defaults_and_what_is_said_beside_it_wins() -> None:
    """sigdeg's lora_rank in the file is not swd's; the same variant again changes nothing."""
    defaults = type(load_params(FILE, ["method.kind=swd"]).method)
    assert load_params(FILE, ["method.kind=swd"]).method == defaults()
    assert load_params(FILE, ["method.lora_rank=8", "method.kind=swd"]).method.lora_rank == 8
    assert load_params(FILE, ["method.lora_rank=8", "method.kind=sigdeg"]).method.lora_rank == 8
