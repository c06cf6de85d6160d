"""docs/team.md, word for word: its commands on the worker's and on a second person's machine."""

from __future__ import annotations

import json
import shutil
import urllib.request
from pathlib import Path

import psutil

from flows.dvc.repro import STAGES
from tests.team import page
from tests.team.machine import Machine
from tests.team.nodes import ADDRESSES, cluster
from tests.team.processes import Processes, free_ports
from tests.team.services import refusal
from tests.team.site import MODEL, YOURS, Site


def test_the_page_has_no_command_that_is_not_run() -> None:
    sections = ("Credentials", "Servers and worker", "What is set once and committed", YOURS)
    known = [line for name in (*sections, "Models", "Ray cluster") for line in page.commands(name)]
    text = page.PAGE.read_text()
    assert text.count("\n    ") == sum(line.count("\n") + 1 for line in known)
    skipped = [line for line in known if line.startswith(("docker", "cd ", ".venv/bin/pip"))]
    assert len(skipped) == 5


def test_servers_refuse_strangers(site: Site) -> None:
    asked = {"limit": 1}
    assert refusal(f"{site.team.prefect}/api/flows/filter", asked) == 401
    asked = {"max_results": 1}
    assert refusal(f"{site.team.mlflow}/api/2.0/mlflow/experiments/search", asked) == 401
    assert refusal(f"{site.team.mlflow}/api/2.0/mlflow-artifacts/artifacts") == 401


def test_a_run_on_the_worker_is_registered(site: Site, ana: Machine) -> None:
    assert "s3://fewstep/dvc answers" in site.typed(ana, YOURS, "make doctor")
    told = site.typed(ana, YOURS, ".venv/bin/prefect deployment run")
    assert "Completed" in told, told + site.team.processes.log("worker", 60)
    (version,) = site.versions()
    assert site.champion() == version["version"] == "1"
    listed = site.team.bucket().list_objects_v2(Bucket="fewstep")["Contents"]
    places = {item["Key"].split("/")[0] for item in listed}
    assert places == {"dvc", "mlflow"}
    assert not (site.worker.root / "data/student").exists()  # the run had a worktree of its own


def test_what_the_worker_has_made_is_not_computed_again(site: Site, ana: Machine) -> None:
    site.typed(ana, YOURS, ".venv/bin/python -m tasks.utils.environment dvc")
    told = site.typed(ana, YOURS, "make run PRESET=tiny")
    assert told.count("made before; its result comes from the cache") == len(STAGES), told
    assert not (ana.root / ".fewstep/scratch").exists()  # no stage has worked here
    (version,) = site.versions()
    digest = "from tasks.registry.registration import folder_hash; from pathlib import Path; "
    digest += "print(folder_hash(Path('data/student')))"
    tags = {tag["key"]: tag["value"] for tag in version["tags"]}
    assert ana.shell(f'.venv/bin/python -c "{digest}"').strip() == tags["student.sha256"]


def test_three_ray_nodes(site: Site, ana: Machine) -> None:
    """The worker's checkout as the folder that all nodes mount; a driver on the head."""
    exports = page.here(page.command("Ray cluster", "export RAY_ADDRESS"), site.places)
    line = page.here(page.command("Ray cluster", "make run"), site.places)
    shutil.rmtree(site.worker.root / ".fewstep/scratch/trajectories")  # made on the worker
    with cluster(site.worker, Path(site.team.folder) / "ray") as nodes:
        shared = ana.env | {"RAY_AUTH_TOKEN": nodes.token, "RAY_TMPDIR": nodes.place}
        head = Machine(site.worker.root, shared)
        stranger = f"{exports}; export RAY_AUTH_TOKEN=wrong; {line}"
        assert "error: RAY_ADDRESS" in head.shell(stranger, status=None)
        told = head.shell(f"{exports}; {line}", seconds=2400)
        assert "version 2" in told, told
        assert nodes.used() == set(ADDRESSES)
    assert [version["version"] for version in site.versions()] == ["1", "2"]


def test_a_user_of_her_own_promotes_and_rolls_back(site: Site, ana: Machine) -> None:
    site.typed(ana, "Models", ".venv/bin/python -c")
    own = {"MLFLOW_TRACKING_USERNAME": "ana", "MLFLOW_TRACKING_PASSWORD": "at-least-12-characters"}
    second = Machine(site.worker.root, ana.env | own)  # where the second version was made
    second.shell(".venv/bin/python -m flows.register --force")
    assert site.champion() == "2"
    told = site.typed(Machine(ana.root, ana.env | own), "Models", "make rollback")
    assert f"{MODEL}: version 1 is champion again, in place of version 2" in told
    assert site.champion() == "1"
    second.shell(".venv/bin/python -m flows.register --force")
    told = site.typed(ana, "Models", ".venv/bin/prefect deployment run")
    assert "Completed" in told, site.team.processes.log("worker", 60)
    assert site.champion() == "1"
    wrong = own | {"MLFLOW_TRACKING_PASSWORD": "expired-password"}
    refused = Machine(ana.root, ana.env | wrong).shell(
        f'make rollback ARGS="registration.name={MODEL}"', status=2
    )
    assert "the server refuses these credentials" in refused and "Traceback" not in refused


def test_the_champion_is_served_from_the_registry(site: Site, ana: Machine, tmp_path: Path) -> None:
    export, serve = (
        page.here(page.command("Models", start), site.places)
        for start in ("export MLFLOW_TRACKING_URI", ".venv/bin/python -m tasks.utils.environment")
    )
    (port,) = free_ports(1)
    line = f"{export}; exec {serve.replace('5001', str(port))}"
    processes = Processes(tmp_path)
    url = f"http://127.0.0.1:{port}"
    processes.start("serving", ["bash", "-c", line], ana.env, ana.root)
    try:
        processes.wait("serving", lambda: site.team.answers(f"{url}/health"))
        asked = {
            "dataframe_records": [{"request": "mine"}],
            "params": {"num_images": 2, "seed": 7, "steps": 4},
        }
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/invocations", json.dumps(asked).encode(), headers)
        with urllib.request.urlopen(request, timeout=120) as reply:
            images = json.load(reply)["predictions"]
        assert len(images) == 2 and len(images[0]) == 8
    finally:
        processes.end("serving")


def test_no_secret_is_in_files_or_process_lists(site: Site) -> None:
    secrets = {value.rpartition(":")[2] for value in site.team.credentials.values()}
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        assert not any(secret in line for secret in secrets), line.split()[0]
    searched = 0
    for root in (site.worker.root, site.ana.root):
        for folder in (".fewstep", ".dvc/config", "conf", "params.yaml", "data/evaluation"):
            place = root / folder
            for path in [place] if place.is_file() else place.rglob("*"):
                if path.is_file() and path.stat().st_size < 10_000_000:
                    content = path.read_bytes()
                    assert not any(secret.encode() in content for secret in secrets), path
                    searched += 1
    for log in site.team.folder.glob("*.log"):
        content = log.read_bytes()
        assert not any(secret.encode() in content for secret in secrets), log
        searched += 1
    assert searched > 20
