"""A Ray cluster of three nodes on this machine's loopback addresses, two declared CPUs each."""

from __future__ import annotations

import json
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.team.machine import Machine
from tests.team.processes import Processes, free_ports

ADDRESSES = ("127.0.0.2", "127.0.0.3", "127.0.0.4")  # Ray takes 127.0.0.1 for any of the machine's
# A mount namespace of its own, in which the folders before "--" are empty.
HIDING = """
while [ "$1" != -- ]; do mount -t tmpfs none "$1" || exit 1; shift; done
shift
exec "$@"
"""
USED = """
import json, sys
from ray.util.state import list_actors, list_nodes
at = {node.node_id: node.node_ip for node in list_nodes(address=sys.argv[1])}
actors = list_actors(address=sys.argv[1], limit=1000)
print("used", json.dumps(sorted({at[actor.node_id] for actor in actors if actor.node_id})))
"""


@dataclass
class Nodes:
    """The cluster at `address`; each node is the process `node-IP`."""

    machine: Machine
    processes: Processes
    place: str  # RAY_TMPDIR of the head, by which `auto` finds it
    address: str
    pages: str  # of the dashboard
    token: str
    hidden: Sequence[Path] = ()  # folders that the nodes after the first do not see

    @property
    def env(self) -> dict[str, str]:
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token, "RAY_TMPDIR": self.place}
        return self.machine.env | own | {"RAY_USAGE_STATS_ENABLED": "0"}

    def start(self, ip: str, *more: str, cpus: int = 2) -> None:
        """Start the node at that address of loopback and wait until it has joined."""
        ray = str((self.machine.root / ".venv").resolve() / "bin/ray")
        own = [
            f"--node-ip-address={ip}",
            f"--num-cpus={cpus}",
            "--block",
            "--object-store-memory=200000000",
        ]
        where = [] if more else [f"--address={self.address}"]
        command = [ray, "start", *own, *where, *more]
        place = self.machine.root
        if self.hidden and not more:
            hide = ["unshare", "--mount", "sh", "-c", HIDING, "sh", *map(str, self.hidden), "--"]
            command, place = [*hide, *command], Path("/")
        log = self.processes.folder / f"node-{ip}.log"
        self.processes.start(f"node-{ip}", command, self.env, place)
        self.processes.wait(f"node-{ip}", lambda: "Ray runtime started" in log.read_text())

    def kill(self, ip: str) -> None:
        """As when its machine loses power."""
        self.processes.end(f"node-{ip}", kill=True)

    def of(self, pid: int) -> str:
        """The address of the node that a process belongs to."""
        for name, node in self.processes.running.items():
            if any(child.pid == pid for child in psutil.Process(node.pid).children(recursive=True)):
                return name.removeprefix("node-")
        raise AssertionError(f"process {pid} is of no node")

    def used(self) -> set[str]:
        """Addresses of the nodes on which an actor has worked so far."""
        told = Machine(self.machine.root, self.env).shell(
            f".venv/bin/python -c '{USED}' {self.pages}"
        )
        (line,) = [line for line in told.splitlines() if line.startswith("used ")]
        return set(json.loads(line.removeprefix("used ")))


@contextmanager
def cluster(
    machine: Machine, folder: Path, head_cpus: int = 2, hidden: Sequence[Path] = ()
) -> Iterator[Nodes]:
    """Three raylets for the block, the first of them the head; they work in `machine`'s folder. The
    others see the `hidden` folders as empty ones.
    """
    folder.mkdir(exist_ok=True)
    place = tempfile.mkdtemp(prefix="r", dir="/tmp")  # paths of sockets are short
    port, pages = free_ports(2)
    address = f"{ADDRESSES[0]}:{port}"
    found = Nodes(
        machine,
        Processes(folder),
        place,
        address,
        f"http://127.0.0.1:{pages}",
        secrets.token_hex(16),
        hidden,
    )
    try:
        head = ["--head", f"--port={port}", f"--dashboard-port={pages}"]
        found.start(ADDRESSES[0], *head, cpus=head_cpus)
        for ip in ADDRESSES[1:]:
            found.start(ip)
        yield found
    finally:
        found.processes.end_all()
        shutil.rmtree(place, ignore_errors=True)
