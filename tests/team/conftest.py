"""A team's services and machines, started once for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.team.machine import Machine
from tests.team.services import Team, missing, team
from tests.team.site import VENV, Site, credentials, exported, make_site


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of them are slow; those of services and machines are `team`. The page's come first: they
    begin with a team that has nothing yet.
    """
    here = Path(__file__).parent
    items.sort(key=lambda item: item.path.parent == here and item.path.stem != "test_page")
    for item in items:
        if here in item.path.parents and {"services", "site"} & set(
            getattr(item, "fixturenames", ())
        ):
            item.add_marker(pytest.mark.team)
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.timeout(3600))  # a busy machine is no failure


@pytest.fixture(scope="session")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    if why := missing(VENV):
        pytest.skip(why)
    with team(tmp_path_factory.mktemp("services"), VENV, credentials()) as found:
        yield found


@pytest.fixture(scope="session")
def site(services: Team, tmp_path_factory: pytest.TempPathFactory) -> Site:
    return make_site(tmp_path_factory.mktemp("site"), services)


@pytest.fixture(scope="session")
def ana(site: Site) -> Machine:
    """The second person's shell."""
    return exported(site)
