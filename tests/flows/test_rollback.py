from __future__ import annotations

from pathlib import Path

import pytest

from flows import rollback
from models.common.errors import InputError
from tasks.config.schema import load_params
from tasks.registry import promotion, registration, tracking
from tests.flows.project import REPOSITORY
from tests.tasks.results import write_results


def test_the_command_says_which_or_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "project"
    for number, kid in (("1", 0.01), ("2", 0.005)):
        write_results(root, kid, seed=int(number))
        params = load_params(root / "params.yaml")
        registration.register_student(root, params, tracking.track_run(root, params).run_id)
        assert promotion.promote(root, params, number).champion
    monkeypatch.chdir(root)
    assert rollback.main([]) == 0
    assert (
        capsys.readouterr().out
        == "fewstep-mnist16: version 1 is champion again, in place of version 2\n"
    )
    assert rollback.main([]) == 2
    refusal = capsys.readouterr().err
    assert (
        refusal
        == "error: fewstep-mnist16 version 1 has no earlier champion: nothing to roll back to\n"
    )
    assert rollback.main(["registration.name=other"]) == 2
    assert "other has no champion" in capsys.readouterr().err


def test_the_deployment_takes_a_preset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "project"
    write_results(root, 0.01, seed=1)
    (root / "conf").symlink_to(REPOSITORY / "conf")
    monkeypatch.chdir(root)
    for preset, name in ((None, "fewstep-mnist16"), ("tiny", "fewstep-tiny")):
        with pytest.raises(InputError, match=f"{name} has no champion"):
            rollback.rollback.fn(preset)
