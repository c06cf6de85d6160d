"""A person's machine: a clone of the project with an environment of its own, and its shell."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

STAMP = ".venv/.installed"  # what the Makefile looks at
OWN = ("python", "pip", "activate")  # commands that a venv has of its own


@dataclass
class Machine:
    """The clone at `root`; `env` is what its shell exports."""

    root: Path
    env: dict[str, str]

    def shell(self, line: str, seconds: float = 2400, status: int | None = 0, **more: str) -> str:
        """Run a line as bash in the clone; returns what it printed, on both streams.

        AssertionError with that text for another exit status (None: any will do).
        """
        done = subprocess.run(
            ["bash", "-c", line],
            cwd=self.root,
            env=self.env | {"PWD": str(self.root)} | more,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
        )
        assert status is None or done.returncode == status, f"{line}\n{done.stdout}"
        return done.stdout


def clone(source: Path, root: Path, packages: Path, exports: Mapping[str, str]) -> Machine:
    """`git clone`, and an environment with the packages of the venv `packages` and this clone's
    code: what `make .venv` and `pip install -r deploy/requirements-team.txt` would download again.
    """
    subprocess.run(["git", "clone", "--quiet", str(source), str(root)], check=True)
    overlay(root / ".venv", packages, root)
    (root / STAMP).touch()
    kept = ("LANG", "TZ", "TMPDIR", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "PATH")
    home = root.with_name(f"{root.name}-home")
    home.mkdir()
    env = {name: os.environ[name] for name in kept if name in os.environ}
    for who in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{who}_NAME": root.name, f"GIT_{who}_EMAIL": f"{root.name}@example.org"}
    return Machine(root, env | {"HOME": str(home)} | dict(exports))


def overlay(place: Path, packages: Path, code: Path | None = None) -> None:
    """Make the venv `place`, which sees the packages and commands of the venv `packages`; first of
    all the code in `code`.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    lines = [str(code)] if code else []
    lines.append(f"import site; site.addsitedir({str(_site(packages))!r})")
    (_site(place) / "packages.pth").write_text("\n".join(lines) + "\n")
    for script in (packages / "bin").iterdir():
        copy = place / "bin" / script.name
        if script.is_dir() or copy.exists() or script.name.lower().startswith(OWN):
            continue
        if (text := script.read_bytes()).startswith(b"#!"):
            _, _, rest = text.partition(b"\n")
            copy.write_bytes(b"#!" + os.fsencode(place.absolute() / "bin/python") + b"\n" + rest)
            copy.chmod(0o755)


def _site(venv: Path) -> Path:
    """Where a venv keeps its packages."""
    version = sysconfig.get_python_version()
    return (venv / f"lib/python{version}/site-packages").absolute()


if __name__ == "__main__":
    overlay(Path(sys.argv[1]), Path(sys.argv[2]))
