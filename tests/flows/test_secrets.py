"""What a stage prints reaches the terminal, files and Prefect's database without secrets."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from flows.subprocess_stream import Discreet, stream
from models.common.errors import InputError
from tests.flows.project import REPOSITORY, make_project
from tests.flows.test_distill import ask, last_run

TOKEN, URL = "hf_qwertzuiop", "postgresql://anna:geheim@db/x"
LEAK = """
print("token", os.environ["HF_TOKEN"], "at", "postgresql://anna:geheim@db/x", flush=True)
print("error: cannot reach postgresql://anna:geheim@db/x with " + os.environ["HF_TOKEN"], file=sys.stderr)
sys.exit(2)
"""


def test_a_secret_cut_in_two_is_still_hidden(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    output = Discreet(sys.stdout)
    for part in (
        "with hf_qwer",
        "tzuiop at postgresql://anna:ge",
        "heim@db/x",
        " 10%\r",
        "20%\nlast",
    ):
        output.write(part)
    output.close()
    assert capsys.readouterr().out == "with *** at postgresql://***@db/x 10%\r20%\nlast"


def test_output_of_a_program_is_passed_on_without_secrets(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    seen: list[str] = []
    code = f"import os; print('at {URL} with', os.environ['HF_TOKEN'])"
    assert stream([sys.executable, "-c", code], tmp_path, os.environ, seen.append) == 0
    assert seen == ["at postgresql://***@db/x with ***"]
    assert capsys.readouterr().out == "at postgresql://***@db/x with ***\n"


def test_no_secret_reaches_prefect(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    prefect_server: None,
) -> None:
    from prefect import flow
    from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

    from flows.stages import run_stage

    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    root = make_project(tmp_path / "project")
    with (root / "stages/dataset.py").open("a") as file:
        file.write(LEAK)
    monkeypatch.chdir(root)

    @flow(name="leak")
    def leak() -> None:
        run_stage(root, "dataset")

    with pytest.raises(InputError) as error:
        leak()
    assert str(error.value) == "cannot reach postgresql://***@db/x with ***"
    run = last_run()
    own = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id]))
    logs: list[str] = []
    for _ in range(80):  # they are sent in batches
        logs = [
            log.message for log in ask(lambda client: client.read_logs(log_filter=own, limit=100))
        ]
        if any("token" in line for line in logs):
            break
        time.sleep(0.25)
    assert "token *** at postgresql://***@db/x" in logs
    everything = "\n".join([*logs, run.state.message, capsys.readouterr().out])
    assert TOKEN not in everything and "geheim" not in everything
