"""The set-up that the tests of this folder share: services, the team's repository, two machines."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tasks.utils.failpoints import HOLD_AT, MARK, release
from tests.chaos.project import PARAMS, VARIANTS
from tests.flows.served import FINAL
from tests.paths import PROJECT
from tests.team import page
from tests.team.machine import Machine, clone
from tests.team.services import Team

VENV = PROJECT / ".venv-team"
MODEL = "fewstep-tiny"
YOURS = "Your machine"  # a section of the page
PLAIN = {"S3_ENDPOINT", "S3_BUCKET"}  # exported on the page, but no secrets


@dataclass
class Site:
    """`worker` is the checkout that the worker works in, `ana` the second person's machine."""

    team: Team
    worker: Machine
    ana: Machine
    places: dict[str, str]
    mark: Path  # the first training to reach its third step is held while this file is not there

    def typed(self, machine: Machine, section: str, beginning: str, **more: Any) -> str:
        """What the page's command prints on the machine."""
        return machine.shell(page.here(page.command(section, beginning), self.places), **more)

    def versions(self) -> list[dict[str, Any]]:
        """The registered versions, the first first."""
        found = self.team.registry(f"model-versions/search?filter=name%3D'{MODEL}'")
        return sorted(found.get("model_versions", []), key=lambda item: int(item["version"]))

    @property
    def held(self) -> dict[str, str]:
        """The worker's environment, by which its first training is held."""
        hold = {HOLD_AT: "training.step:3", MARK: str(self.mark)}
        return hold | {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}  # the default asks for two minutes

    def submit(self, **student: Any) -> str:
        """Ask for a run of `distill/preset` with these settings of the student; returns its id."""
        found = self.team.api("deployments/name/distill/preset")["id"]
        given = {"preset": "tiny", "overrides": {"student": student}}
        made = self.team.api(f"deployments/{found}/create_flow_run", {"parameters": given})
        return str(made["id"])

    def start_run(self, **student: Any) -> str:
        """Start a run with these settings; returns its id once its training is held."""
        for path in (self.mark, self.mark.with_name("mark.go")):
            path.unlink(missing_ok=True)
        run = self.submit(**student)
        wait(self.mark.exists, 900, lambda: self.told(run))
        return run

    def end_of(self, run: str, seconds: float = 1200) -> dict[str, Any]:
        """Let the held training go on; the run's last state."""
        release(self.mark)

        def state() -> Any:
            with suppress(OSError):  # a server that is just being restarted
                found = self.team.api(f"flow_runs/{run}")["state"]
                return found if found["type"] in FINAL else None

        return dict(wait(state, seconds, lambda: self.told(run)))

    def told(self, run: str) -> str:
        """The run's state and the end of the worker's output."""
        with suppress(OSError):
            state = self.team.api(f"flow_runs/{run}")["state"]
            return f"{state}\n{self.team.processes.log('worker', 60)}"
        return self.team.processes.log("worker", 60)

    def champion(self) -> str:
        path = f"registered-models/alias?name={MODEL}&alias=champion"
        return str(self.team.registry(path)["model_version"]["version"])


def exported(site: Site) -> Machine:
    """The second person's machine, the exports of its section made."""
    lines = [page.here(line, site.places) for line in page.commands(YOURS)]
    exports = "\n".join(
        line for line in lines if line.startswith("export ")
    )  # some end in a comment
    told = site.ana.shell(f"{exports}\nenv -0").split("\0")
    env = dict(item.split("=", 1) for item in told if "=" in item)
    assert all(name in env for name in page.names(YOURS))
    return Machine(site.ana.root, env)


def wait(ready: Callable[[], Any], seconds: float, told: Callable[[], str]) -> Any:
    """What `ready` returns once that is something; AssertionError with what is told by then."""
    deadline = time.monotonic() + seconds
    while not (found := ready()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {told()}"
        time.sleep(0.5)
    return found


def credentials() -> dict[str, str]:
    """A value for every secret that the page's first block exports."""
    wanted = [name for name in page.names("Credentials") if name not in PLAIN]
    values = {name: secrets.token_hex(16) for name in wanted}
    return values | {"PREFECT_AUTH": f"fewstep:{values['PREFECT_AUTH']}"}


def make_site(folder: Path, team: Team) -> Site:
    """The team's repository with its addresses committed, as the page says, the worker in its
    checkout, and the clone of a second person.
    """
    hub = folder / "hub.git"
    subprocess.run(["git", "clone", "-q", "--bare", str(PROJECT), str(hub)], check=True)
    branch = ["git", "-C", str(hub), "symbolic-ref", "HEAD"]
    if subprocess.run(branch, capture_output=True).returncode:  # made from a checkout of a commit
        subprocess.run(["git", "-C", str(hub), "branch", "team", "HEAD"], check=True)
        subprocess.run([*branch, "refs/heads/team"], check=True)
    places = {
        "https://prefect.example.org": team.prefect,
        "https://mlflow.example.org": team.mlflow,
        "https://s3.example.org": team.s3,
    }
    worker = clone(hub, folder / "srv", VENV, secrets_of(team))
    write_tiny(worker.root)
    for line in page.commands("What is set once and committed"):
        if "pip install" not in line:  # done when the clone was made
            worker.shell(page.here(line, places))
    mark = folder / "mark"
    mark.touch()
    ana = clone(hub, folder / "ana", VENV, secrets_of(team))
    site = Site(team, worker, ana, places, mark)
    team.start_worker(worker.root, **site.held)
    return site


def secrets_of(team: Team) -> dict[str, str]:
    """What a person's shell has: the first block's exports."""
    return {name: team.credentials[name] for name in page.names("Credentials") if name not in PLAIN}


def write_tiny(root: Path) -> None:
    """Make the preset `tiny` one that is done in seconds."""
    preset = {"defaults": VARIANTS} | PARAMS | {"registration": {"name": MODEL}}
    text = yaml.safe_dump(preset, sort_keys=False)
    (root / "conf/preset/tiny.yaml").write_text(f"# @package _global_\n# For trying.\n{text}")
