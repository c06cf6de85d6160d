"""Prompts become distinct ones, chosen and split, without being kept in memory."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.common.errors import InputError
from tasks.config.conditions import Conditions
from tasks.data.conditions import PromptFile
from tasks.data.prompts import Collected, collect, open_prompts
from tasks.utils.atomic import sha256_file
from tests.paths import PROJECT


def collected(path: Path, **settings: Any) -> tuple[Collected, list[str]]:
    section = Conditions.model_validate({"prompts": path.name} | settings)
    found = collect(open_prompts(section, path.parent), section, path.parent)
    prompts = PromptFile(found.file)
    return found, prompts[range(len(prompts))]


def write(path: Path, prompts: list[str]) -> Path:
    path.write_text("\n".join(prompts) + "\n", encoding="utf-8")
    return path


def test_every_distinct_prompt_is_used_once_and_in_one_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    given = [f"Bär {i} \u2028 {'x' * (i % 7)}" for i in rng.integers(0, 300, 1000)] + ["", "\t"]
    found, prompts = collected(write(tmp_path / "p.txt", given), holdout=20)
    distinct = {prompt.strip() for prompt in given} - {""}
    assert sorted(prompts) == sorted(distinct)
    assert (found.train, found.holdout) == (len(distinct) - 20, 20)
    assert found.sha256 == sha256_file(found.file)
    repeated = 1000 - len(distinct)
    assert found.counts == {
        "read": 1002, "empty": 2, "repeated": repeated, "distinct": len(distinct), "used": len(distinct),
    }  # fmt: skip


def test_the_choice_is_random_by_the_seed_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", [f"cat {i:03d}" for i in range(400)])
    first, again, other = (
        collected(path, holdout=50, limit=200, seed=seed)[1] for seed in (0, 0, 1)
    )
    assert first == again != other and len(set(first)) == 200
    numbers = np.array([int(prompt[4:]) for prompt in first])
    for part in (numbers[:150], numbers[150:]):  # training, held out: both of the whole file
        assert abs(part.mean() - 199.5) < 4 * 115 / np.sqrt(len(part))
    assert not np.all(np.diff(numbers[:150]) > 0)


def test_a_prompt_is_found_by_its_row_whatever_it_holds(tmp_path: Path) -> None:
    given = ['a "quoted" one', "back\\slash", "tab\tinside", "ünï", "{}"]
    prompts = PromptFile(collected(write(tmp_path / "p.txt", given), holdout=1)[0].file)
    whole = prompts[range(5)]
    assert sorted(whole) == sorted(given)
    assert prompts[[3, 3, 0]] == [whole[3], whole[3], whole[0]]


def test_an_endless_line_is_refused_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_bytes(b"a cat\n" + b"x" * 30_000_000)
    tracemalloc.start()
    with pytest.raises(InputError, match=r"p\.txt, line 2: more than 800,000 characters"):
        collected(tmp_path / "p.txt")
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


MEMORY = """
import sys
from pathlib import Path
from tasks.config.conditions import Conditions
from tasks.data.conditions import PromptFile
from tasks.data.prompts import collect, open_prompts
from tasks.utils.peak_memory import own_peak

root = Path(sys.argv[1])
section = Conditions(prompts="p.txt", holdout=10)
before = own_peak()
found = collect(open_prompts(section, root), section, root)
print(len(PromptFile(found.file)), found.train + found.holdout, own_peak() - before)
"""


@pytest.mark.parametrize(
    ("count", "words"),
    [(30_000, 200), pytest.param(1_000_000, 8, marks=pytest.mark.slow)],
    ids=["long", "million"],
)
def test_memory_does_not_hold_the_texts(tmp_path: Path, count: int, words: int) -> None:
    """250 bytes of memory for each line at most, however long it is."""
    filler = "words " * words
    with (tmp_path / "p.txt").open("w") as file:
        file.writelines(f"{index} {filler}\n" for index in range(count))
    command = [sys.executable, "-c", MEMORY, str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=True)
    rows, used, peak = map(int, done.stdout.split())
    assert rows == used == count
    assert peak < 250 * count + 10_000_000
