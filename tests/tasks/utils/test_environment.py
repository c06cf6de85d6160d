"""Proxies, encodings and other people's settings."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import httpx
import pytest

from tasks.utils.proxies import spare_loopback
from tasks.utils.streams import tolerate_encodings
from tests.paths import PROJECT

PROXIES = ("ALL_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ALL_PROXY", "socks5://127.0.0.1:9"),
        ("all_proxy", "socks5h://127.0.0.1:9"),
        ("ALL_PROXY", "socks://127.0.0.1:9/"),
        ("all_proxy", "socks4://127.0.0.1:9"),
        ("HTTP_PROXY", "http://127.0.0.1:9"),
        ("http_proxy", "127.0.0.1:9"),
        ("https_proxy", "http://proxy.example:3128"),
    ],
)
def test_loopback_goes_past_every_proxy(name: str, value: str, clean: pytest.MonkeyPatch) -> None:
    clean.setenv(name, value)
    dropped = spare_loopback(os.environ)
    assert len(dropped) == ("socks4" in value)
    for host in ("127.0.0.1", "localhost"):
        assert urllib.request.proxy_bypass(host)
        with httpx.Client() as client:  # with an unknown or uninstalled scheme this raises
            used = client._transport_for_url(httpx.URL(f"http://{host}:4200/api"))
            assert used is client._transport
            if "socks4" not in value:
                scheme = "https" if "https" in name else "http"
                there = client._transport_for_url(httpx.URL(f"{scheme}://example.org"))
                assert there is not client._transport


def test_what_goes_past_a_proxy_already_still_does(clean: pytest.MonkeyPatch) -> None:
    clean.setenv("NO_PROXY", "intern.example, 10.0.0.1,localhost")
    spare_loopback(os.environ)
    expected = "intern.example,10.0.0.1,localhost,127.0.0.1,::1"
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == expected
    clean.setenv("no_proxy", "*")
    spare_loopback(os.environ)
    assert os.environ["no_proxy"] == "*"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_output_in_other_encodings(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding))
    tolerate_encodings()
    print("✓ done", flush=True)
    assert raw.getvalue() == b"\\u2713 done\n"


def test_safe_path_does_not_reach_the_stages() -> None:
    """`python -m tasks.stages.NAME` finds the project in the current folder."""
    program = (
        "import os, sys; sys.path.insert(0, os.getcwd())\n"
        "from tasks.utils.environment import main\n"
        "main([sys.executable, '-m', 'tasks.stages.dataset', '--help'])"
    )
    env = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=PROJECT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "key=value" in done.stdout


def test_make_installs_into_the_environment_whatever_pip_is_told(tmp_path: Path) -> None:
    """Gitpod sets PIP_USER=yes; others keep `user = true` in pip.conf."""
    (tmp_path / "Makefile").write_text(
        (PROJECT / "Makefile").read_text() + "\nshow:\n\t@env | grep -E '^(PIP_|PYTHON)' | sort\n"
    )
    hostile = {
        "PIP_USER": "yes", "PIP_TARGET": "/elsewhere", "PIP_PREFIX": "/elsewhere",
        "PYTHONSAFEPATH": "1", "PYTHONPATH": "/elsewhere", "PYTHONHOME": "/elsewhere",
    }  # fmt: skip
    kept = {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    done = subprocess.run(
        ["make", "-s", "show"], cwd=tmp_path, env=kept | hostile, capture_output=True, text=True
    )
    assert done.stdout.split() == ["PIP_DISABLE_PIP_VERSION_CHECK=1", "PIP_USER=0"], done.stderr


@pytest.mark.skipif(sys.prefix == sys.base_prefix, reason="not in a virtual environment")
def test_pip_user(tmp_path: Path) -> None:
    """With the setting that `make` exports, pip accepts a virtual environment."""
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PIP_USER": "0"}
    (tmp_path / ".config/pip").mkdir(parents=True)
    (tmp_path / ".config/pip/pip.conf").write_text("[global]\nuser = true\n")
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "pip"]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    env["PIP_USER"] = "1"
    refused = subprocess.run(command, env=env, capture_output=True, text=True)
    assert refused.returncode != 0 and "--user" in refused.stderr
