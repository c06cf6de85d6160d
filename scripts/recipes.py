"""Write docs/recipes.md: the presets for large published teachers, with what they will cost.

    python -m scripts.recipes [PRESET ...]

The figures are estimates (docs/estimate.md); nothing of it has been run.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from tasks.config.presets import CONF, compose, presets
from tasks.estimate.devices import device_named
from tasks.estimate.fits import misfits
from tasks.estimate.report import estimate, lines

PAGE = Path("docs/recipes.md")
# the device that each is meant for; training is spread over as many as student.workers says
RECIPES = {
    "sd15": "A100-80GB",
    "sdxl": "A100-80GB",
    "sd35-medium": "A100-80GB",
    "sd35-large": "H200",
    "flux-dev": "H200",
}
HEAD = """# Recipes for published teachers

Presets for large text-to-image models, each with the settings that its method was published with.
**None of them has been run here**: this project's machines have no GPU. What they would cost is
estimated ([estimate.md](estimate.md)), and every family is tested on tiny pipelines of its real
classes ([teachers.md](teachers.md)).

    make estimate PRESET=sdxl ARGS="--device H100"
    make run PRESET=sdxl ARGS="teacher.path=/models/my-fine-tune conditions.prompts=prompts.txt"

`teacher.path` is a hub id in the presets; a folder of a fine-tune takes its place. A run begins
with a look at the machine: where there is no GPU, where its memory is too small, or where the disk
is too full, it stops with one line that says what to change. `ARGS="--anyway ..."` starts all the
same.

With LoRA the roles share one float32 copy of the teacher's weights (`teacher.dtype` stays float32);
a student whose weights are all trained is a copy of its own.

This page is written by `python -m scripts.recipes`. Memory is that of one device.
A recipe without a table has not been estimated for this page yet; the command above does it.
"""


def main(argv: list[str] | None = None) -> None:
    """Write the page: the recipes that are named are estimated, the others stay as they are."""
    parser = argparse.ArgumentParser("python -m scripts.recipes", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="PRESET", help="default: all")
    names, root = parser.parse_args(argv).names or list(RECIPES), Path.cwd()
    for name in names:
        made = "\n".join(section(name, RECIPES[name], root))
        told = written(root) | {name: made}
        bare = {each: told.get(each) or "\n".join(heading(each, root)) for each in RECIPES}
        PAGE.write_text("\n".join([HEAD, *bare.values()]), encoding="utf-8")
        print(f"{PAGE}: {name}")


def written(root: Path) -> dict[str, str]:
    """The sections of the page as it is, by preset."""
    text = (root / PAGE).read_text(encoding="utf-8") if (root / PAGE).is_file() else ""
    parts = text.split("\n## ")[1:]
    return {part.splitlines()[0]: f"## {part.rstrip()}\n" for part in parts}


def heading(name: str, root: Path) -> Iterator[str]:
    """What a recipe is, and where its settings are from."""
    yield f"## {name}\n\n{presets(root)[name]}\n"
    yield f"{source_of(root / CONF / 'preset' / f'{name}.yaml')}\n"


def section(name: str, device: str, root: Path) -> Iterator[str]:
    """One recipe with its estimate."""
    yield from heading(name, root)
    found = estimate(compose(root, name), root, device_named(device))
    yield f"`fewstep estimate --preset {name} --device {device}`:\n"
    yield "\n".join(f"    {line}".rstrip() for line in lines(found)) + "\n"
    # the disk of the machine that writes the page says nothing
    if told := misfits(found, float("inf")):
        yield "Does not fit that device: " + "; ".join(told) + "\n"


def source_of(file: Path) -> str:
    """The comment of a preset beyond its first line, as one paragraph."""
    comments = [
        line.lstrip("# ")
        for line in file.read_text(encoding="utf-8").splitlines()
        if line.startswith("#") and "@package" not in line
    ]
    return " ".join(line for line in comments[1:] if line)


if __name__ == "__main__":
    main()
