from __future__ import annotations

import re

import pytest

from models.common.errors import InputError
from scripts import sbom
from scripts.sbom import Package
from tests.paths import PROJECT


@pytest.fixture(scope="module")
def found() -> list[Package]:
    return sbom.packages(sbom.locked((PROJECT / sbom.LOCK).read_text()))


def test_the_page_is_that_of_the_lock(found: list[Package]) -> None:
    assert (PROJECT / sbom.PAGE).read_text() == sbom.page(found), "run: make sbom"


def test_the_bill_has_every_package_once(found: list[Package]) -> None:
    made = sbom.bill(found, "0.2.0")
    lines = (PROJECT / sbom.LOCK).read_text().splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert [f"{item['name']}=={item['version']}" for item in made["components"]] == pinned
    places = {item["purl"] for item in made["components"]}
    assert len(places) == len(pinned)
    assert all(re.fullmatch(r"pkg:pypi/[a-z0-9-]+@\S+", place) for place in places)
    assert (made["bomFormat"], made["specVersion"]) == ("CycloneDX", "1.6")


def test_licences_are_read_from_what_packages_state(found: list[Package]) -> None:
    known = {package.name.lower(): package.licence for package in found}
    assert known["diffusers"] == "Apache-2.0" and known["filelock"] in ("MIT", "Unlicense")
    assert list(known.values()).count(sbom.UNSTATED) <= len(known) // 20


def test_what_is_installed_must_be_what_is_locked() -> None:
    with pytest.raises(InputError, match=r"numpy: installed is .*, requirements.lock has 0.0.1"):
        sbom.packages([("numpy", "0.0.1")])
    with pytest.raises(InputError, match="installed is none"):
        sbom.packages([("no-such-package", "1")])
    with pytest.raises(InputError, match="expected name==version"):
        sbom.locked("numpy>=1\n")
