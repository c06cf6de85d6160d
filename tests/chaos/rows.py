"""The failure matrix: what is killed or broken, when, what one sees, and what the next run does.

Every row is a test of this folder, found by its id; docs/failures.md shows the rows (`python -m
tests.chaos.rows` writes it anew).
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.paths import PROJECT

DOCUMENT = PROJECT / "docs/failures.md"
BEGIN, END = "<!-- rows: written by python -m tests.chaos.rows -->", "<!-- end of rows -->"
PUBLISHED = r"\A(?:(?!resumed)[\s\S])*student: best at step 6 of 6"
KILLED = "the run ends; MLflow may show it as RUNNING until the next one"
UNMOVED = "the run ends; the champion is the old one or the new one"
ENDED = "the stage ends; `make run` tries it once more"


@dataclass(frozen=True)
class Row:
    """One line of the table. `id` names the test; `quick`: part of `make test`."""

    id: str
    broken: str
    when: str
    seen: str
    then: str
    quick: bool = False


@dataclass(frozen=True)
class Kill(Row):
    """SIGKILL of the stage `stage` when it reaches `point`; the rerun's output must match
    `says`.
    """

    stage: str = ""
    point: str = ""
    says: str = ""


def _kill(id: str, point: str, when: str, then: str, says: str = "", quick: bool = False) -> Kill:
    stage = id.partition("-")[0]
    return Kill(id, f"{stage} stage", when, ENDED, then, quick, stage, point, says)


STAGES = (
    _kill("dataset-reading", "dataset.read", "images read, nothing written", "starts over"),
    _kill("dataset-unpublished", "atomic.folder", "all files written, folder not in place", "starts over", quick=True),
    _kill("dataset-done", "atomic.done", "folder in place, process not ended", "makes the same folder again"),
    _kill(
        "teacher-early", "training.step:3", "training, before the first checkpoint", "starts over",
        says="teacher: 12/12",
    ),
    _kill(
        "teacher-between", "training.step:6", "training, between two checkpoints", "goes on from the last checkpoint",
        says="resumed at step 4 of 12",
    ),
    _kill(
        "teacher-checkpoint", "checkpoint.tensors:2", "inside the second checkpoint",
        "goes on from the first checkpoint", says="resumed at step 4 of 12",
    ),
    _kill(
        "teacher-trained", "teacher.ready", "training over, nothing published", "publishes, without training",
        says="resumed at step 12 of 12",
    ),
    _kill(
        "teacher-saved", "teacher.saved", "pipeline folder half written", "publishes, without training",
        says="resumed at step 12 of 12",
    ),
    _kill(
        "trajectories-grid", "atomic.file", "choosing the coarse grid", "starts over", says="; 40 are new",
    ),
    _kill(
        "trajectories-between", "trajectories.shard:2", "between the second and the third shard",
        "keeps both shards", says="; 24 are new", quick=True,
    ),
    _kill(
        "trajectories-inside", "trajectories.paths:2", "paths of the second shard computed, none written",
        "keeps the first shard", says="; 32 are new",
    ),
    _kill(
        "trajectories-files", "shard.array:5", "between the files of a shard", "keeps the whole shards",
        says="; 24 are new",
    ),
    _kill(
        "trajectories-publishing", "shards.linked", "shards linked, manifest not written",
        "publishes, without the teacher", says="; 0 are new",
    ),
    _kill(
        "student-measured", "student.measured", "diagnostics of the cache measured, training not begun",
        "trains", says="student: 6/6",
    ),
    _kill(
        "student-between", "training.step:3", "training, between two checkpoints",
        "goes on from the last checkpoint", says="resumed at step 2 of 6", quick=True,
    ),
    _kill(
        "student-checkpoint", "checkpoint.tensors:6", "inside a checkpoint, between its files",
        "goes on from the one before", says="resumed at step 2 of 6",
    ),
    _kill(
        "student-rename", "atomic.folder:6", "checkpoint complete, not yet in its place",
        "goes on from the one before", says="resumed at step 2 of 6", quick=True,
    ),
    _kill(
        "student-kept", "selection.kept:3", "best weights kept, their checkpoint not yet written",
        "goes on from the checkpoint before", says="resumed at step 2 of 6",
    ),
    _kill(
        "student-written", "checkpoint.written:4", "checkpoint in place, older ones not yet removed",
        "goes on from the new one", says="resumed at step 2 of 6",
    ),
    _kill(
        "student-trained", "student.trained", "training over, nothing published", "publishes, without training",
        says=PUBLISHED,
    ),
    _kill(
        "student-saved", "student.saved", "pipeline folder half written", "publishes, without training",
        says=PUBLISHED,
    ),
    _kill(
        "student-replacing", "atomic.between", "the old student moved aside, the new one not yet in its place",
        "publishes, without training", says=PUBLISHED,
    ),
    _kill("evaluation-batch", "evaluation.batch", "a batch of samples made", "starts over"),
    _kill("evaluation-measured", "evaluation.measured", "samplers measured, nothing written", "starts over"),
    _kill("evaluation-tables", "evaluation.tables", "tables written, report not", "starts over", quick=True),
)  # fmt: skip


def _registration(
    id: str, point: str, when: str, then: str, says: str = "", quick: bool = False
) -> Kill:
    return Kill(
        id, "`make run` or `python -m flows.register`", when, KILLED, then, quick, "", point, says
    )


REGISTRATION = (
    _registration(
        "registration-database", "database.made", "tables of MLflow's database made, its file not in its place",
        "makes it again",
    ),
    _registration(
        "registration-run", "tracking.created", "MLflow run made, nothing logged", "marks it FAILED, makes another"
    ),
    _registration(
        "registration-metrics", "tracking.metrics", "figures logged, files not", "marks the run FAILED, makes another",
        quick=True,
    ),
    _registration(
        "registration-uploaded", "registration.uploaded", "model uploaded, its MLflow run open",
        "marks the run FAILED, makes another",
    ),
    _registration(
        "registration-logged", "registration.logged", "model uploaded, no version made", "makes the version",
    ),
    _registration(
        "registration-created", "registration.created", "version made, no alias", "finds the version, sets its aliases",
        says="registered before",
    ),
)  # fmt: skip
PROMOTION = tuple(
    Kill(
        f"promotion-{name}",
        "promotion of a better student",
        when,
        UNMOVED,
        then,
        False,
        "",
        f"promotion.{name}",
    )
    for name, when, then in (
        ("announced", "intention written, alias not moved", "drops the intention, promotes"),
        ("moved", "alias moved, history not", "completes the promotion"),
        ("recorded", "history written, intention not removed", "completes the promotion"),
    )
)

AGAIN = "one line with the reason, exit status 1; `make run` tries it once more"
REFUSED = "one line that names the file, exit status 2"

MACHINE = (
    Row("full-disk-dataset", "disk full", "the dataset is written", AGAIN, "starts over"),
    Row("full-disk-trajectories", "disk full", "shards are written", AGAIN, "keeps the whole shards"),
    Row("full-disk-checkpoint", "disk full", "checkpoints are written", AGAIN, "goes on from the last one", True),
    Row(
        "full-disk-registration", "disk full", "a student is registered", "one line with the reason, exit status 1",
        "marks the MLflow run FAILED, registers one version",
    ),
    Row("read-only-project", "project folder read-only", "a stage begins", AGAIN, "works once it can be written"),
    Row("read-only-cache", "DVC's cache read-only", "a result is recorded", AGAIN, "records it, does not train"),
    Row(
        "damaged-cache", "a file in DVC's cache, results removed from data/", "before a run", "nothing",
        "drops the file, makes the result again",
    ),
    Row(
        "damaged-dvc-notes", "DVC's own notes in .dvc/tmp half written", "before a run", "nothing", "removes them",
    ),
    Row(
        "damaged-registry", "one bit of a registered version", "before its promotion",
        "one line, exit status 2: not promoted; a server refuses to load it", "registers it again, promotes that",
    ),
    Row(
        "remote-missing", "DVC's remote not reachable", "a deployment's run pushes",
        "a warning, and in the run's message: kept in this project's cache", "pushes both",
    ),
    Row(
        "port-in-use", "nothing; a port is taken", "`make up`", "one line that names the process, exit status 2",
        "`make up PORT=...` works",
    ),
    Row(
        "damaged-shard", "an unpublished shard truncated", "after a kill of the trajectories stage",
        "a warning that names the file", "makes that shard again", True,
    ),
    Row(
        "damaged-trajectories", "a published shard truncated", "before the student stage", REFUSED,
        "`python -m tasks.stages.trajectories` publishes it again from the scratch folder, or anew",
    ),
    Row(
        "damaged-checkpoint", "one bit of the last checkpoint", "after a kill of the student stage",
        "a warning that names the checkpoint", "goes on from the one before it", True,
    ),
    Row(
        "damaged-best-weights", "one bit of the best weights", "training over, nothing published",
        "a warning that names the file", "trains anew",
    ),
    Row(
        "damaged-notes", "grid, diagnostics and result in scratch folders", "training over, nothing published",
        "a warning that names each file", "makes them again from the last checkpoint",
    ),
    Row(
        "damaged-weights", "weights of student or teacher truncated", "before the next stage", REFUSED,
        "works once the file is whole",
    ),
)  # fmt: skip

SERVICES = (
    Row(
        "dvc-killed", "`dvc repro`", "the student stage is at work", "the stage ends within a second, too",
        "waits for the stage's end if need be, goes on from the checkpoint",
    ),
    Row(
        "orphan-waited-for", "nothing; the same stage is at work already", "a second run starts",
        "\"waiting for process N\"", "uses what the first has made, trains nothing twice",
    ),
    Row(
        "ray-worker-killed", "a Ray worker", "between two checkpoints", "nothing: Ray starts another",
        "(the same run) goes on from the checkpoint",
    ),
    Row(
        "ray-driver-killed", "the student stage with Ray workers", "between two checkpoints",
        "the workers end within a minute, too", "goes on from the checkpoint",
    ),
    Row(
        "engine-killed", "`make run`, or a deployment's run", "a stage is at work",
        "its stage ends within seconds, too", "goes on from the checkpoint",
    ),
    Row(
        "worker-killed", "the worker and its run", "a stage is at work; another run waits for its turn",
        "the dead run is marked Crashed after 90 to 180 s, which frees its turn",
        "after `make up` has started a worker, the waiting run begins and goes on from the "
        "checkpoint",
    ),
    Row(
        "server-killed", "the Prefect server", "a run is at work", "no answer until `make up` starts it again",
        "the same run ends Completed",
    ),
)  # fmt: skip

# Shown by tests/team, `make team-test`.
TEAM = (
    Row(
        "s3-gone", "the S3 server", "a student is registered; a stage's result is on the remote",
        "one line that names MLflow's server, exit status 1; `make doctor` names S3; stages run here",
        "registers one version",
    ),
    Row(
        "mlflow-gone", "the MLflow server", "a student is registered",
        "two minutes of asking, then one line, exit status 1", "registers one version",
    ),
    Row(
        "credentials-expired", "nothing; Prefect, MLflow or S3 refuse the credentials", "`make run`, `make doctor`",
        "one line that names the variables to set, before any work", "works with the right ones",
    ),
    Row(
        "promotions-at-once", "nothing; two machines promote", "at the same moment",
        "\"waiting for another promotion\"", "(both runs) one after the other, none lost, none twice",
    ),
    Row(
        "clocks-apart", "nothing; two machines promote, one clock five minutes ahead", "at the same moment",
        "\"waiting for another promotion\"", "(both runs) one after the other, none lost, none twice",
    ),
    Row(
        "node-lost-in-trajectories", "a Ray node, with a common folder or without", "its workers compute shards",
        "a warning: a Ray worker was lost", "(the same run) makes the shards again on another node",
    ),
    Row(
        "node-lost-in-training", "a Ray node, with a common folder or without", "its worker trains",
        "a warning: a training worker was lost", "(the same run) goes on from the checkpoint on the other nodes",
    ),
    Row(
        "node-lost-in-evaluation", "a Ray node, with a common folder or without", "its workers make samples",
        "a warning: a Ray worker was lost", "(the same run) makes the batch again on another node",
    ),
    Row(
        "head-lost", "the Ray cluster's head", "workers compute shards",
        "one line that names RAY_ADDRESS, exit status 1", "keeps the whole shards",
    ),
    Row(
        "s3-busy", "nothing; S3 answers 503 for a minute, or is slow", "results are pushed",
        "nothing: it is asked again", "(the same push) succeeds",
    ),
    Row(
        "s3-full", "nothing; S3 has no room", "results are pushed", "DVC's error",
        "pushes what is missing",
    ),
    Row(
        "s3-wrong-keys", "nothing; S3 refuses the keys", "a result of others could be fetched",
        "a warning with S3's reason", "(the same run) computes it here",
    ),
    Row(
        "postgres-restarted", "Postgres, for 20 s", "a deployment's run is at work", "nothing",
        "(the same run) ends Completed, registers one version",
    ),
    Row(
        "redis-gone", "Redis, for 20 s", "a deployment's run is at work", "nothing",
        "(the same run) ends Completed, registers one version",
    ),
    Row(
        "worker-cut-off", "the network between worker and Prefect, for 2 minutes", "a run is at work",
        "nothing",
        "(the same run) ends Completed, registers one version",
    ),
    Row(
        "worker-cut-off-for-long", "the network between worker and Prefect, for 10 minutes", "a run is at work",
        "the run is marked Crashed after five minutes; its stages go on, and it ends when the network is back",
        "takes the finished stages from the cache, registers one version",
    ),
)  # fmt: skip

CONDITIONS = (
    _kill(
        "conditions-between",
        "conditions.shard:2",
        "between the second and the third shard of encoded prompts",
        "keeps both shards",
        says="; 5 are new",
    ),
)

ROWS: tuple[Row, ...] = STAGES + CONDITIONS + REGISTRATION + PROMOTION + SERVICES + MACHINE + TEAM


def table() -> str:
    """The rows as a Markdown table."""
    lines = [
        "| killed or broken | when | what you see | what the next run does | test |",
        "|---|---|---|---|---|",
    ]
    for row in ROWS:
        mark = " (quick)" if row.quick else " (team)" if row in TEAM else ""
        lines.append(f"| {row.broken} | {row.when} | {row.seen} | {row.then} | `{row.id}`{mark} |")
    return "\n".join(lines)


def document(text: str) -> str:
    """`text` with the table between its two marks written anew."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{table()}\n\n{END}{tail}"


if __name__ == "__main__":
    DOCUMENT.write_text(document(DOCUMENT.read_text()))
