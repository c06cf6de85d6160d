"""The files for a team lint: compose and Ray against their own schemas, YAML style, the image's
recipe, no secrets.
"""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows.doctor.machine_checks import requirements
from tests.flows.project import REPOSITORY

DEPLOY = REPOSITORY / "deploy"
SECRET = re.compile(r"(?i)(password|secret|_auth|auth_|access_key|token)")


def schema_of_ray() -> str:
    spec = find_spec("ray")
    assert spec is not None and spec.origin is not None
    return str(Path(spec.origin).parent / "autoscaler" / "ray-schema.json")


SCHEMAS = {
    "compose.yaml": ["--builtin-schema", "vendor.compose-spec"],
    "ray-cluster.yaml": ["--schemafile", schema_of_ray()],
}


def lint(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=REPOSITORY, capture_output=True, text=True
    )


def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    return content


@pytest.mark.parametrize("name", sorted(SCHEMAS))
def test_follows_its_schema(name: str, tmp_path: Path) -> None:
    done = lint("check_jsonschema", *SCHEMAS[name], str(DEPLOY / name))
    assert done.returncode == 0, done.stdout + done.stderr
    spoiled = tmp_path / name
    spoiled.write_text((DEPLOY / name).read_text() + "\nunknown_key: 1\n")
    assert lint("check_jsonschema", *SCHEMAS[name], str(spoiled)).returncode == 1


def test_style(tmp_path: Path) -> None:
    done = lint("yamllint", "--strict", "deploy", "prefect.yaml", "dvc.yaml")
    assert done.returncode == 0, done.stdout
    (tmp_path / "bad.yaml").write_text("a: 1\na: 2\n")
    assert lint("yamllint", "-c", ".yamllint", str(tmp_path / "bad.yaml")).returncode == 1


def test_ray_itself_accepts_the_cluster() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(yaml.safe_load((DEPLOY / "ray-cluster.yaml").read_text()))
    validate_config(config)
    assert config["available_node_types"][config["head_node_type"]]["max_workers"] == 2


def test_secrets_come_from_the_environment_and_are_required() -> None:
    """Every value with a secret's name is ${NAME:?message}, or has such a part, and nothing
    else.
    """
    found = 0
    for name, service in compose()["services"].items():
        for key, value in (service.get("environment") or {}).items():
            text = str(value or "")
            if key in ("MLFLOW_AUTH_CONFIG_PATH", "MLFLOW_AUTH_ADMIN_USERNAME"):
                continue  # named like a secret
            if SECRET.search(key) or ("://" in text and "@" in text):
                assert re.search(r"\$\{[A-Z0-9_]+:\?[^}]+\}", text), f"{name}.{key} = {text}"
                assert not re.search(r":[A-Za-z0-9]+@", text), f"{name}.{key} holds a password"
                found += 1
    assert found >= 20
    for path in DEPLOY.iterdir():
        assert not re.search(
            r"(?i)AKIA[0-9A-Z]{16}|-----BEGIN|ghp_\w+|minioadmin", path.read_text()
        ), path


def test_no_command_line_holds_a_secret() -> None:
    """Whoever may list processes sees their arguments: a shell must not put a secret variable among
    them.
    """
    for name, service in compose()["services"].items():
        text = " ".join(map(str, [*service.get("command", []), *service.get("entrypoint", [])]))
        variables = {
            v for v in re.findall(r"\$\$?\{?([A-Z0-9_]+)", text) if SECRET.search(v) or "URI" in v
        }
        shell_only = {"REDISCLI_AUTH"}  # echo is built into the shell
        allowed = (
            {"S3_PASSWORD"} if name == "bucket" else set()
        )  # a trial's, in a container that ends at once
        assert not variables - shell_only - allowed, f"{name}: {variables}"


def test_only_loopback_is_published_unless_told() -> None:
    published = {
        name: service["ports"]
        for name, service in compose()["services"].items()
        if "ports" in service
    }
    assert set(published) == {"prefect", "mlflow"}
    assert all(
        port.startswith("${LISTEN:-127.0.0.1}:") for ports in published.values() for port in ports
    )


def test_images_are_pinned() -> None:
    for name, service in compose()["services"].items():
        tag = re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", service["image"]).rpartition(":")[2]
        assert re.search(r"\d+\.\d+|RELEASE\.\d{4}", tag), f"{name}: {service['image']}"


def test_servers_wait_for_what_they_need() -> None:
    services = compose()["services"]
    for name, service in services.items():
        for needed, how in (service.get("depends_on") or {}).items() if name != "bucket" else ():
            assert how == {"condition": "service_healthy"} and "healthcheck" in services[needed], (
                name,
                needed,
            )


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n\s*", "", (DEPLOY / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def test_the_image_is_made_from_the_pins_and_runs_as_a_user() -> None:
    steps = instructions()
    known = {"FROM", "ARG", "ENV", "RUN", "COPY", "USER", "WORKDIR", "CMD"}
    assert steps[0][0] == "FROM" and {name for name, _ in steps} <= known
    bases = {text.split()[0] for name, text in steps if name == "FROM"}
    assert len(bases) == 1 and re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", bases.pop())
    sources = [
        part
        for name, text in steps
        if name == "COPY" and "--from" not in text
        for part in text.split()[:-1]
    ]
    assert sources and all((REPOSITORY / source).is_file() for source in sources)
    assert "requirements.lock" in sources
    last = max(index for index, (name, _) in enumerate(steps) if name == "FROM")
    assert [text for name, text in steps[last:] if name == "USER"] == ["fewstep"]
    assert not any(SECRET.search(text) for name, text in steps if name in ("ARG", "ENV"))
    installs = [text for name, text in steps if name == "RUN" and "apt-get install" in text]
    assert all(
        "--no-install-recommends" in text and "rm -rf /var/lib/apt/lists" in text
        for text in installs
    )


def test_the_teams_packages_are_pinned_and_do_not_contradict_the_lock() -> None:
    extra = requirements(DEPLOY / "requirements-team.txt")
    assert all(str(item.specifier).startswith("==") for item in extra)
    locked = {item.name.lower() for item in requirements(REPOSITORY / "requirements.lock")}
    assert not locked & {item.name.lower() for item in extra}
