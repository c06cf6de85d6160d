"""What is measured: conf/benchmark.yaml, or another plan, as typed settings, and the runs that it
asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from models.common.config import Count, Section, Seed, distinct
from models.common.errors import InputError
from tasks.config.overrides import read_mapping, validated
from tasks.config.presets import compose
from tasks.config.schema import Params
from tasks.config.types import MetricName, Text

PLANS, PAGES = Path("conf"), Path("docs")
RESULTS = Path("data/benchmark")  # not below .fewstep, which `make clean` removes

# of trajectories: what decides start noise and the teacher's own samples, and
# of evaluation: what does not change how a sampler is measured
SHARED_PATHS = ("validation", "steps", "guidance", "guidance_range", "classes", "seed")
OWN_EVALUATION = {"nfe", "baselines", "batch_size"}

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]  # names a folder
Seeds = Annotated[tuple[Seed, ...], Field(min_length=1), AfterValidator(distinct)]


class Job(Section):
    """One row of the tables, or the rows of all training-free samplers."""

    title: Text
    preset: Text
    """Of conf/preset."""
    overrides: tuple[Text, ...] = ()
    """As for `make run`, after those of the domain."""
    rows: Literal["student", "rivals"] = "student"
    """What is shown: the student; or all that needs no training, and the references."""
    seeds: Seeds | None = None
    """Training seeds; null = those of the file."""
    note: str = ""
    """Said below the table, such as that nobody has tuned the settings."""


class Domain(Section):
    """A kind of data: its jobs share data, teacher, noise and the way of measuring."""

    title: Text
    about: Text
    metrics: Annotated[tuple[MetricName, ...], Field(min_length=1), AfterValidator(distinct)]
    """Figures that get a table, the one that decides first."""
    overrides: tuple[Text, ...] = ()
    jobs: Annotated[dict[Name, Job], Field(min_length=1)]


class Plan(Section):
    """The whole of a plan, conf/<name>.yaml."""

    name: Name
    title: Text
    """Of the page."""
    about: Text
    """What the page says before its tables."""
    seeds: Seeds = (0, 1, 2)
    calls: Annotated[tuple[Count, ...], Field(min_length=1), AfterValidator(distinct)]
    """Network calls that the tables show."""
    domains: Annotated[dict[Name, Domain], Field(min_length=1)]
    """No two plans have a domain of the same name: results are kept by it."""

    @property
    def file(self) -> Path:
        return PLANS / f"{self.name}.yaml"

    @property
    def page(self) -> Path:
        return PAGES / f"{self.name}.md"


@dataclass(frozen=True)
class Run:
    """One job with one training seed; ``first``: its students are kept, to be timed."""

    domain: str
    job: str
    seed: int
    preset: str
    overrides: tuple[str, ...]
    first: bool

    @property
    def name(self) -> str:
        return f"{self.domain}/{self.job}, seed {self.seed}"

    def folder(self, project: Path) -> Path:
        return project / RESULTS / self.domain / self.job / f"seed-{self.seed}"


def read_plan(path: Path) -> Plan:
    """The file's content; InputError, one line, for a mistake in it."""
    plan = validated(Plan, read_mapping(path), source=str(path))
    if path.stem != plan.name:
        raise InputError(f"{path}: name = {plan.name}: expected the file's own, {path.stem}")
    return plan


def check_alike(project: Path, plan: Plan, runs: Sequence[Run]) -> None:
    """InputError for a job whose figures could not stand beside those of its domain, or whose
    params cannot be composed.
    """
    first: dict[str, tuple[Run, dict[str, Any]]] = {}
    for run in (run for run in runs if run.first):
        try:
            own = _shared(compose(project, run.preset, run.overrides))
        except InputError as error:
            raise InputError(f"{plan.file}: {run.domain}/{run.job}: {error}") from None
        other, known = first.setdefault(run.domain, (run, own))
        if differing := [key for key in own if own[key] != known[key]]:
            raise InputError(
                f"{plan.file}: {run.domain}/{run.job} has another {differing[0]} than "
                f"{run.domain}/{other.job}: expected the same for all jobs of a domain; set it in "
                "the domain's overrides"
            )
        measured = own["evaluation.metrics"]
        if lacking := [m for m in plan.domains[run.domain].metrics if m not in measured]:
            raise InputError(
                f"{plan.file}: {run.domain}.metrics = {lacking[0]}: expected one that preset "
                f"{run.preset} measures, {', '.join(measured)}"
            )


def _shared(params: Params) -> dict[str, Any]:
    """What the jobs of a domain have in common, by dotted key."""
    content = params.model_dump(mode="json")
    found = {key: content[key] for key in ("dataset", "teacher")}
    found |= {f"trajectories.{key}": content["trajectories"][key] for key in SHARED_PATHS}
    own = set(content["evaluation"]) - OWN_EVALUATION
    return found | {f"evaluation.{key}": content["evaluation"][key] for key in sorted(own)}


def runs_of(plan: Plan) -> list[Run]:
    """All runs, in the file's order; a job's first seed comes before other jobs' second."""
    found = []
    for domain, section in plan.domains.items():
        for job, own in section.jobs.items():
            seeds = own.seeds or plan.seeds
            for seed in seeds:
                overrides = (*section.overrides, *own.overrides, f"student.seed={seed}")
                run = Run(domain, job, seed, own.preset, overrides, seed == seeds[0])
                found.append((seeds.index(seed), run))
    places = {domain: place for place, domain in enumerate(plan.domains)}
    return [run for _, run in sorted(found, key=lambda item: (places[item[1].domain], item[0]))]


def chosen(runs: Sequence[Run], only: Sequence[str], seeds: int | None) -> list[Run]:
    """The runs of the domains or jobs named by ``only`` ("paths", "paths/sigdeg"; all for none),
    with at most ``seeds`` seeds each; InputError for a name that there is none of.
    """
    known = {name for run in runs for name in (run.domain, f"{run.domain}/{run.job}")}
    if unknown := [name for name in only if name not in known]:
        raise InputError(
            f"--only {unknown[0]}: no such domain or job in the plan, expected one of "
            f"{', '.join(sorted(known))}"
        )
    if seeds is not None and seeds < 1:
        raise InputError(f"--seeds {seeds}: expected a number of seeds, 1 or more")
    kept: list[Run] = []
    for run in runs:
        same = [other for other in kept if (other.domain, other.job) == (run.domain, run.job)]
        wanted = not only or run.domain in only or f"{run.domain}/{run.job}" in only
        if wanted and (seeds is None or len(same) < seeds):
            kept.append(run)
    return kept
