"""What a Prefect server needs to know of this project: work pool, deployments, and what to do with
dead runs.

`python -m flows.services.prefect_setup`, with PREFECT_API_URL naming the server; doing it again
changes nothing.
"""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.utils import environment

if __name__ == "__main__":  # Prefect reads its settings when it is imported
    environment.prepare(Path.cwd())

from prefect import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectAlreadyExists

from flows.console import refuse
from models.common.errors import InputError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

POOL = "local"
IN_ORDER = "in-order"  # as in prefect.yaml
ZOMBIES = "crash zombie flows"
HEARTBEAT = "prefect.flow-run.heartbeat"
SILENCE = timedelta(seconds=90)  # three heartbeats
SILENCE_SECONDS = "FEWSTEP_SILENCE_SECONDS"  # a team's servers may be away for longer than that
# After these events no heartbeat is to be expected. Events are named by the state's name: an end
# with a name of its own
# belongs here too. "Running" does not: it follows the first heartbeat, and a run killed soon after
# would go unseen.
RESTS = (
    "Completed",
    "Failed",
    "Crashed",
    "Cancelled",
    "TimedOut",
    "Paused",
    "Suspended",
    "AwaitingRetry",
)
OWN_ENDS = ("NothingChanged",)


def silence() -> timedelta:
    """After how long without a heartbeat a run counts as dead: SILENCE, or what the environment's
    FEWSTEP_SILENCE_SECONDS says, 60 or more. Raises InputError for anything else.
    """
    given = os.environ.get(SILENCE_SECONDS)
    if given is None:
        return SILENCE
    if not given.isdecimal() or int(given) < 60:
        raise InputError(
            f"{SILENCE_SECONDS} = {given}: expected a whole number of seconds, 60 or more (two "
            "heartbeats)"
        )
    return timedelta(seconds=int(given))


def zombie_automation() -> AutomationCore:
    """A run that has sent a heartbeat and then neither another nor its end for 90 s (`silence`) is
    marked as crashed.

    That frees its turn. The server looks as often, so it may take twice as long.
    """
    within = silence()
    return AutomationCore(
        name=ZOMBIES,
        description="Marks runs whose process was killed as crashed, so that the next can start.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={HEARTBEAT},
            expect={HEARTBEAT, *(f"prefect.flow-run.{name}" for name in RESTS + OWN_ENDS)},
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            for_each={"prefect.resource.id"},
            threshold=1,
            within=within,
        ),
        actions=[
            ChangeFlowRunState(
                name=None,
                state=StateType.CRASHED,
                force=False,
                message=f"No heartbeat for {int(within.total_seconds())} s: the run's process has "
                "gone. Run it again.",
            )
        ],
    )


def create_pool(client: SyncPrefectClient) -> None:
    """The work pool `local`, of type process, unless it is there."""
    from prefect.workers.process import ProcessWorker

    template = ProcessWorker.get_default_base_job_template()
    try:
        client.create_work_pool(
            WorkPoolCreate(name=POOL, type="process", base_job_template=template)
        )
    except ObjectAlreadyExists:
        return


def create_queue(client: SyncPrefectClient) -> None:
    """The queue whose runs start one by one, in the order in which they were asked for."""
    try:
        client.create_work_queue(IN_ORDER, work_pool_name=POOL, concurrency_limit=1)
    except ObjectAlreadyExists:
        queue = client.read_work_queue_by_name(IN_ORDER, work_pool_name=POOL)
        client.update_work_queue(queue.id, concurrency_limit=1)


def create_automation(client: SyncPrefectClient) -> None:
    """The automation against zombie runs; one of that name from an earlier version is replaced."""
    wanted = zombie_automation()
    same = [found for found in client.read_automations_by_name(ZOMBIES) if found.name == ZOMBIES]
    for extra in same[1:]:
        client.delete_automation(extra.id)
    if same:
        client.update_automation(same[0].id, wanted)
    else:
        client.create_automation(wanted)


def deploy(root: Path) -> int:
    """Apply every deployment of prefect.yaml; returns the command's exit status, its output on
    failure on stderr.
    """
    command = [sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"]
    env = os.environ | {"PWD": str(root)}  # prefect.yaml takes the project's folder from there
    done = subprocess.run(
        command, cwd=root, env=env, capture_output=True, text=True, errors="replace", check=False
    )
    if done.returncode:
        print(done.stdout + done.stderr, file=sys.stderr)
    return done.returncode


def main() -> int:
    """Set the server up; returns the exit status."""
    try:
        silence()
    except InputError as error:
        return refuse(error)
    with get_client(sync_client=True) as client:
        create_pool(client)
        create_queue(client)
        create_automation(client)
    return deploy(Path.cwd())


if __name__ == "__main__":
    sys.exit(main())
