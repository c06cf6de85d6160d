from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ruamel.yaml import YAML

from models.common.errors import InputError
from models.methods.registry import METHODS
from tasks.config.presets import compose
from tasks.config.schema import Params, load_params, params_dict
from tasks.config.written import check_written, params_text
from tests.paths import PROJECT
from tests.tasks.config.test_presets import NAMES

ONE_METHOD = '''
from typing import Literal
from models.common.config import Flag, Section
from models.methods.registry import register_method

class ToyConfig(Section):
    kind: Literal["toy"] = "toy"
    loud: Flag = False
    """Say more."""
    nfe: tuple[int, ...] = (1,)

register_method("toy", f"{__name__}:ToyConfig", f"{__name__}:Toy")
'''


@pytest.mark.parametrize("name", NAMES)
def test_yaml_1_1_and_1_2_read_what_was_written(tmp_path: Path, name: str) -> None:
    params = compose(PROJECT, name)
    text = params_text(params, "Of a test.\nTwo lines.")
    assert text.startswith("# Of a test.\n# Two lines.\n\ndataset:")
    assert yaml.safe_load(text) == params_dict(params) == YAML(typ="safe", pure=True).load(text)
    assert max(map(len, text.splitlines())) <= 240
    (tmp_path / "params.yaml").write_text(text)
    assert load_params(tmp_path / "params.yaml") == params
    check_written(tmp_path / "params.yaml", params)


def test_texts_that_yaml_would_misread_are_quoted() -> None:
    names = ["no", "1e5", "a: b", "null", "it's", "über", "a#b", "~", "2020-01-01"]
    given = {"teacher": {"source": "pretrained", "path": "a b"}, "extensions": names}
    params = Params.model_validate(given)
    assert yaml.safe_load(params_text(params, "x"))["extensions"] == names
    assert yaml.safe_load(params_text(params, "x"))["teacher"]["path"] == "a b"


def test_a_key_that_dvc_cannot_see_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    content = params_dict(Params())
    del content["method"]["loss"]["mmd"], content["student"]["ema"]
    path.write_text(json.dumps(content))
    with pytest.raises(InputError) as caught:
        check_written(path, load_params(path))
    assert str(caught.value).startswith(
        "params.yaml: method.loss.mmd (and 1 more): not written out"
    )
    path.write_text("student: 3\n")
    with pytest.raises(InputError, match="params.yaml: dataset"):
        check_written(path, Params())


@pytest.fixture
def toy(tmp_path: Path) -> Iterator[Path]:
    """A project with the presets and a method in one file of its own."""
    (tmp_path / "conf").symlink_to(PROJECT / "conf")
    (tmp_path / "toy_of_a_test.py").write_text(ONE_METHOD)
    before = dict(METHODS)
    yield tmp_path
    METHODS.clear()
    METHODS.update(before)
    sys.modules.pop("toy_of_a_test", None)


def test_an_extension_is_composed_like_the_rest_and_its_content_counts(toy: Path) -> None:
    asked = ["extensions=[toy_of_a_test.py]", "method.kind=toy"]
    params = compose(toy, "mnist-sigdeg", [*asked, "method.loud=true"])
    assert params_dict(params.method) == {"kind": "toy", "loud": True, "nfe": [1]}
    text = params_text(params, "x")
    assert "  loud: true               # Say more.\n" in text
    assert "# sigdeg | swd | sfd | consistency | toy" in text
    (toy / "params.yaml").write_text(text)
    assert load_params(toy / "params.yaml") == params
    check_written(toy / "params.yaml", params)
    (toy / "toy_of_a_test.py").write_text(ONE_METHOD + "# another\n")
    assert compose(toy, "mnist-sigdeg", asked).extensions_digest != params.extensions_digest
    with pytest.raises(InputError, match=r"toy_of_a_test.py changed since params.yaml was written"):
        check_written(toy / "params.yaml", params)
    with pytest.raises(InputError, match=r"override method.lod: unknown key, did you mean loud\?"):
        compose(toy, "tiny", [*asked, "method.lod=true"])


@pytest.mark.parametrize("place", ["config.yaml", "preset/tiny.yaml"])
def test_extensions_named_in_conf_are_imported_first(toy: Path, place: str) -> None:
    (toy / "conf").unlink()
    shutil.copytree(PROJECT / "conf", toy / "conf")
    with pytest.raises(InputError, match="kind"):
        compose(toy, "tiny", ["method.kind=toy"])
    with (toy / "conf" / place).open("a") as file:
        file.write("extensions: [toy_of_a_test.py]\n")
    params = compose(toy, "tiny", ["method.kind=toy"])
    assert params.method.kind == "toy" and params.extensions == ("toy_of_a_test.py",)
    assert params.extensions_digest is not None
