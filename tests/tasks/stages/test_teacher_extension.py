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
"""Denoisers of their own kind: a family of diffusers pipelines, and factories."""

import math

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config

from models.teachers.base import Denoiser
from models.teachers.codec import Codec
from models.teachers.diffusers_model import DiffusersDenoiser
from models.teachers.families import register_family
from models.teachers.schedule import VariancePreserving

SCALES = {"time": 1}
SCALES.update(time=1000)


class ToyNet(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, sample_size=8, in_channels=1, out_channels=1):
        super().__init__()
        self.conv_in = torch.nn.Conv2d(in_channels, 4, 3, padding=1)
        self.conv_out = torch.nn.Conv2d(4, out_channels, 3, padding=1)

    def forward(self, x, t, return_dict=False):
        t = t.view(-1, 1, 1, 1) / SCALES["time"]
        return (self.conv_out(torch.sin(self.conv_in(x)) + t),)


class Toy(DiffusersDenoiser):
    @staticmethod
    def state_shape(config):
        return config.in_channels, config.sample_size, config.sample_size

    def middle_block(self):
        return self.network.conv_in


register_family("ToyNet", "toy_teacher:Toy")


def embedded(t, width):
    return torch.cos(t[:, None] * torch.linspace(0.0, 1.0, width, device=t.device) * math.pi / 50)


class Net(ModelMixin, ConfigMixin):
    """Series (C, L) or images (C, H, W), prediction of v, labels as a keyword."""

    @register_to_config
    def __init__(self, in_channels=2, out_channels=2, width=6, dimensions=1):
        super().__init__()
        conv = torch.nn.Conv1d if dimensions == 1 else torch.nn.Conv2d
        self.first = conv(in_channels, width, 3, padding=1)
        self.label = torch.nn.Embedding(4, width)
        self.last = conv(width, out_channels, 3, padding=1)

    def forward(self, x, t, class_labels, return_dict=True):
        hidden = self.first(x)
        added = self.label(class_labels) + embedded(t, hidden.shape[1])
        hidden = hidden + added.view(*added.shape, *[1] * (x.dim() - 2))
        return (self.last(torch.tanh(hidden)),)


class Own(DiffusersDenoiser):
    input_layer = "first"
    lora_targets = ("last",)

    def middle_block(self):
        return self.network.first


def make(channels=2, length=12, images=False, seed=0, kind=Own, network=None):
    torch.manual_seed(seed)
    schedule = VariancePreserving(np.cumprod(1 - np.linspace(1e-3, 0.2, 50)))
    network = network or Net(channels, channels, 6, 2 if images else 1)
    return kind(
        network, schedule, shape=(channels, length, length) if images else (channels, length),
        prediction_type="v_prediction", codec=Codec((-1, 1) if images else None), num_classes=3,
        null_class=3,
    )


def wrong():
    return 3


def plain():
    return make(network=torch.nn.Conv1d(2, 2, 3))


class Unnamed(Own):
    input_layer = "conv_in"


def unnamed():
    return make(kind=Unnamed)


def featureless():
    return make(kind=DiffusersDenoiser)


class Fixed(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, in_channels=2):
        super().__init__()
        self.first = torch.nn.Conv1d(in_channels, in_channels, 3, padding=1)


def fixed():
    return make(network=Fixed())


class Tied(Net):
    def forward(self, x, t, class_labels, return_dict=True):
        found = super().forward(x, t, class_labels)
        return (found[0] * Codec(None).decode(x)[:, :2],)


def tied():
    return make(network=Tied())


class Negative(Own):
    def call_network(self, x, t, condition):
        return -super().call_network(x, t, condition)


def negative():
    return make(kind=Negative)
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


def named(function: str) -> dict[str, Any]:
    return {"factory": f"toy_teacher:{function}", "arguments": {}}


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


def test_the_docs_example(root: Path) -> None:
    """The file in docs/extending.md is a teacher that students can be made of."""
    page = (PROJECT / "docs" / "extending.md").read_text(encoding="utf-8")
    section = page[page.index("## A teacher") :]
    (root / "my_teacher.py").write_text(section.split("```python\n")[1].split("```")[0])
    content = json.loads(params(root, factory()).model_dump_json())
    content["teacher"] |= {"factory": "my_teacher:make", "arguments": {}}
    (root / "params.yaml").write_text(json.dumps(content | {"extensions": ["my_teacher.py"]}))
    try:
        teacher.run(load_params(root / "params.yaml"), root)
        assert load_teacher(root).shape == (1, 16, 16)
    finally:
        sys.modules.pop("my_teacher", None)


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
        (named("plain"), "a plain PyTorch module, which no student's folder can hold"),
        (named("unnamed"), "its conv_in is NoneType; expected a convolution or a linear layer"),
        (named("featureless"), "DiffusersDenoiser names no layer whose features losses compare"),
        (named("fixed"), "its config has in_channels"),
        (named("tied"), "uses models.teachers.codec, which cannot travel with it"),
        (named("negative"), "it denoises otherwise than its Negative (by up to"),
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
