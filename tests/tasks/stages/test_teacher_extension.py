"""A family of denoisers and a teacher that is no diffusers pipeline, from one file outside the
package, through the stages.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler

from models.common.errors import InputError
from models.sampling.baselines import sample_baseline
from models.teachers import trust
from models.teachers.families import FAMILIES
from tasks.config.schema import Params, load_params
from tasks.data.teacher import load_teacher
from tasks.data.trajectories import open_trajectories
from tasks.stages import teacher, trajectories
from tests.paths import PROJECT

TOY = '''
"""A denoiser of its own kind, as a family of diffusers pipelines and by a factory."""

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from models.teachers.base import Denoiser
from models.teachers.codec import Codec
from models.teachers.diffusers_model import DiffusersDenoiser
from models.teachers.families import register_family
from models.teachers.schedule import VariancePreserving


class ToyNet(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, sample_size=8, in_channels=1):
        super().__init__()
        self.conv_in = torch.nn.Conv2d(in_channels, 4, 3, padding=1)
        self.conv_out = torch.nn.Conv2d(4, in_channels, 3, padding=1)

    def forward(self, x, t, return_dict=False):
        return (self.conv_out(torch.sin(self.conv_in(x)) + t.view(-1, 1, 1, 1) / 1000),)


class Toy(DiffusersDenoiser):
    @staticmethod
    def state_shape(config):
        return config.in_channels, config.sample_size, config.sample_size

    def middle_block(self):
        return self.network.conv_in


register_family("ToyNet", "toy_teacher:Toy")


class Series(torch.nn.Module):
    """Any PyTorch module: states (C, L), prediction of v, labels as a keyword."""

    def __init__(self, channels, width):
        super().__init__()
        self.first = torch.nn.Conv1d(channels, width, 3, padding=1)
        self.label = torch.nn.Embedding(4, width)
        self.last = torch.nn.Conv1d(width, channels, 3, padding=1)

    def forward(self, x, t, class_labels):
        hidden = self.first(x) + self.label(class_labels)[..., None] + t.view(-1, 1, 1) / 1000
        return self.last(torch.tanh(hidden))


def make(channels=2, length=12, seed=0):
    torch.manual_seed(seed)
    schedule = VariancePreserving(np.cumprod(1 - np.linspace(1e-3, 0.2, 50)))
    return Denoiser(
        Series(channels, 6), schedule, shape=(channels, length), prediction_type="v_prediction",
        codec=Codec(None), num_classes=3, null_class=3,
    )


def wrong():
    return 3
'''
SMALL = {"train": 6, "validation": 3, "steps": 6, "intervals": 3, "lane": 4, "batch_size": 4,
         "grid": {"kind": "index"}, "guidance": 1.0}  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    (tmp_path / "toy_teacher.py").write_text(TOY)
    families, trusted = dict(FAMILIES), set(trust._TRUSTED)
    yield tmp_path
    FAMILIES.clear()
    FAMILIES.update(families)
    trust._TRUSTED.clear()
    trust._TRUSTED.update(trusted)
    sys.modules.pop("toy_teacher", None)


def params(root: Path, section: dict[str, Any], **more: Any) -> Params:
    content = json.loads(Params().model_dump_json())
    content |= {"teacher": section, "extensions": ["toy_teacher.py"]}
    content["trajectories"] |= SMALL | more
    content["method"]["nfe"] = [3]
    content["student"] |= {"validation_samples": 3, "batch_size": 2}
    (root / "params.yaml").write_text(json.dumps(content))
    return load_params(root / "params.yaml")


def factory(**more: Any) -> dict[str, Any]:
    found = {"source": "factory", "factory": "toy_teacher:make", "trust_remote_code": True}
    return found | {"arguments": {"length": 16}} | more


def test_a_family_of_its_own(root: Path) -> None:
    """A pipeline with a network that the project does not know."""
    given = {"source": "pretrained", "path": "mine"}
    settings = params(root, given)
    toy = sys.modules["toy_teacher"]
    torch.manual_seed(1)
    network = toy.ToyNet()
    DDPMPipeline(network, DDPMScheduler(clip_sample=False)).save_pretrained(root / "mine")
    teacher.run(settings, root)
    found = load_teacher(root)
    assert type(found) is toy.Toy and found.shape == (1, 8, 8)
    x = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(found.predict(x, 5.0), network(x, torch.full((2,), 5))[0])
    assert found.features(x, 5.0).shape == (2, 4, 8, 8)
    trajectories.run(settings, root)
    assert open_trajectories(root).array("train", "Y").shape == (6, 4, 1, 8, 8)


def test_a_factory_through_fresh_processes(root: Path) -> None:
    """The weights are those of the teacher stage; the next stage runs in a process of its own."""
    settings = params(root, factory(), guidance=2.0)
    teacher.run(settings, root)
    found = load_teacher(root)
    assert found.shape == (2, 16) and (found.num_classes, found.null_class) == (3, 3)
    command = [sys.executable, "-m", "tasks.stages.trajectories"]
    ended = subprocess.run(
        command, cwd=root, env={"PYTHONPATH": str(PROJECT), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    shards = open_trajectories(root)
    assert shards.meta["teacher"] == found.fingerprint()
    Y = shards.array("train", "Y")
    assert Y.shape == (6, 4, 2, 16) and np.isfinite(Y[:].astype(float)).all()
    noise = torch.randn(3, 2, 16)
    condition = found.default_condition(3)
    assert sample_baseline(found, "unipc", 5, noise, condition, 2.0).shape == (3, 2, 16)


def test_factories_are_called_only_where_the_params_trust_them(root: Path) -> None:
    settings = params(root, factory(trust_remote_code=False))
    with pytest.raises(InputError, match="code is not run unasked"):
        teacher.run(settings, root)
    teacher.run(params(root, factory()), root)
    trust._TRUSTED.clear()  # another process, whose params name another teacher
    with pytest.raises(InputError, match="code is not run unasked"):
        load_teacher(root)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"factory": "toy_teacher:wrong", "arguments": {}}, "returned int; expected a models"),
        ({"factory": "toy_teacher:none"}, "has no attribute 'none'"),
        ({"factory": "no_such_module:make"}, "No module named 'no_such_module'"),
        ({"arguments": {"width": 3}}, "unexpected keyword argument 'width'"),
    ],
)
def test_factories_that_cannot_be_used(root: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        teacher.run(params(root, factory(**changes)), root)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (root / "data").exists()


def test_a_factory_that_changed_is_noticed(root: Path) -> None:
    teacher.run(params(root, factory()), root)
    record = root / "data" / "teacher" / "teacher.json"
    content = json.loads(record.read_text())
    record.write_text(json.dumps(content | {"arguments": {"length": 16, "channels": 3}}))
    with pytest.raises(InputError, match="does not fit what teacher.factory"):
        load_teacher(root)
    record.write_text(json.dumps(content | {"arguments": {"length": 24}}))
    with pytest.raises(InputError, match="it makes another teacher than the one in"):
        load_teacher(root)
