"""Retraining by schedule, event or hand: nothing if nothing changed, else distil, promote what is
better beyond chance.

The deployments `retrain/nightly` and `retrain/manual` run it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from prefect.states import Completed

from flows import artifacts
from flows.distill import configure, keep, promote, register, run_id, run_stages
from flows.dvc import fingerprints
from flows.dvc.worktree import workspace
from flows.parameters import Overrides, Preset, Revision
from flows.services.reachable import check_tracking
from flows.stages import run_program
from models.common.errors import InputError
from tasks.config.presets import DEFAULT
from tasks.config.schema import Params
from tasks.utils import environment

if TYPE_CHECKING:
    from tasks.evaluation.champion_challenger import Round
    from tasks.registry.promotion import Finding

DECIDED = "promotion.decided"


@flow(name="retrain", log_prints=False, validate_parameters=True)
def retrain(
    preset: Preset = DEFAULT,
    overrides: Overrides = {},  # noqa: B006
    revision: Revision = "HEAD",
    force: bool = False,
) -> Any:
    """Distil again if code, params, data or teacher changed (or by `force`), and promote if that is
    better.

    Ends as NothingChanged where a version made from the same has been decided on before.
    `preset`, `overrides` and `revision` as for `distill`.
    """
    project = Path.cwd()
    environment.prepare(project)
    with workspace(project, revision, run_id()) as work:
        params = configure(work, preset, overrides)
        check_tracking(params)
        inputs = fingerprints.inputs_of(work.root)
        same = unchanged(work.root, params, inputs)
        if same and not force:
            return Completed(name="NothingChanged", message=same)
        run_stages(work.root)
        kept = keep(work)
        model = register(work.root, params, inputs)
        finding, rounds = compare_with_champion(work.root, params, model["version"])
        verdict = promote(work.root, params, model["version"], finding)
        announce(params, model["version"], finding, rounds, verdict)
        report = artifacts.publish(work, params, model["run_id"])
        summary = artifacts.summary(work.root, report, model, verdict)
    return Completed(message=f"{verdict}{kept}", data=summary)


@task(retries=1, retry_delay_seconds=2, cache_policy=NO_CACHE)
def unchanged(root: Path, params: Params, inputs: dict[str, str]) -> str:
    """What was decided about a version made from the same inputs, in one line; "" if there is
    none.
    """
    from tasks.registry import promotion

    logger = get_run_logger()
    if found := promotion.latest_decision(root, params, inputs):
        number, decision = found
        line = f"nothing changed since {params.registration.name} version {number}: {decision}"
        logger.info("%s", line)
        return line
    if known := promotion.latest_tags(root, params):
        logger.info(
            "changed since the latest version: %s",
            ", ".join(fingerprints.changed(inputs, known)) or "nothing",
        )
    return ""


@task(retries=1, retry_delay_seconds=2, cache_policy=NO_CACHE)
def compare_with_champion(
    root: Path, params: Params, number: str
) -> tuple[Finding | None, list[Round]]:
    """Measure champion and challenger on the present evaluation set; None if there is no other
    champion.

    A champion that cannot be measured there stays champion; the finding says why.
    """
    from tasks.evaluation import champion_challenger as comparison
    from tasks.registry import promotion

    with tempfile.TemporaryDirectory() as place:
        champion = promotion.fetch_champion(root, params, Path(place))
        if champion is None or champion[0] == number:
            return None, []
        present, student = champion
        result = Path(place) / "rounds.json"
        command = [
            sys.executable,
            "-m",
            "tasks.stages.champion_challenger",
            str(student),
            str(result),
        ]
        try:
            run_program("champion against challenger", command, root)
        except InputError as error:
            return promotion.Finding(present, False, str(error)), []
        rounds = comparison.load(result)
        return promotion.Finding(present, *comparison.decide(rounds)), rounds


@task(cache_policy=NO_CACHE)
def announce(
    params: Params, number: str, finding: Finding | None, rounds: list[Round], verdict: str
) -> None:
    """The decision as an event and as a table of the present run."""
    against = finding.against if finding else None
    rows = [
        {
            "steps": each.nfe,
            f"{each.title}, version {number}": _shown(each.challenger),
            f"{each.title}, champion {against}": _shown(each.champion),
            "difference": _shown(each.difference),
        }
        for each in rounds
    ]
    create_table_artifact(rows or [{"decision": verdict}], key="promotion", description=verdict)
    emit_event(
        DECIDED,
        resource={
            "prefect.resource.id": f"fewstep.model.{params.registration.name}",
            "prefect.resource.name": params.registration.name,
        },
        payload={"version": number, "against": against, "decision": verdict, "figures": rows},
    )


def _shown(interval: Any) -> str:
    return f"{interval.value:.5f} ({interval.low:.5f} to {interval.high:.5f})"
