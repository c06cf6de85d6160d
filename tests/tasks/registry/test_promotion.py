from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from models.common.errors import InputError
from tasks.config.evaluation import FolderReference
from tasks.config.schema import Params
from tasks.registry import promotion, registration, store, tracking
from tasks.registry.lineage import evaluation_set
from tasks.registry.promotion import Finding
from tasks.registry.registration import Version
from tasks.registry.scores import (
    Criterion,
    Decision,
    Score,
    compare,
    criterion_from_tag,
    from_tag,
    to_tag,
)
from tasks.utils.failpoints import KILL_AT, MARK
from tests.flows.project import REPOSITORY
from tests.tasks.results import NAME, write_results


def register(root: Path, params: Params, number: int, kid: float, dataset: str = "d") -> None:
    """Register another student as version `number`."""
    write_results(root, kid, seed=number, dataset=dataset)
    version = registration.register_student(root, params, tracking.track_run(root, params).run_id)
    assert version == Version(NAME, str(number), created=True)


def second_student(root: Path, params: Params, kid: float, dataset: str = "d") -> Decision:
    register(root, params, 2, kid, dataset)
    return promotion.promote(root, params, "2")


def state(root: Path, params: Params) -> dict[str, Any]:
    client = store.open_store(root, params)
    return {
        "champion": registration.aliased_version(client, NAME, "champion"),
        "history": promotion.history(client, NAME),
        "pending": promotion._pending(client, NAME),
    }


def settled(champion: str, *history: str) -> dict[str, Any]:
    return {"champion": champion, "history": history, "pending": None}


def aliases(root: Path, params: Params) -> dict[str, str | None]:
    client = store.open_store(root, params)
    return {
        alias: registration.aliased_version(client, NAME, alias)
        for alias in ("challenger", "champion")
    }


def test_a_better_student_becomes_champion(copy: tuple[Path, Params]) -> None:
    decision = second_student(*copy, kid=0.005)
    assert decision.champion and "0.00500 against 0.01000 at 5 steps" in decision.reason
    assert aliases(*copy) == {"challenger": "2", "champion": "2"}


def test_a_worse_student_stays_challenger_unless_forced(copy: tuple[Path, Params]) -> None:
    decision = second_student(*copy, kid=0.05)
    assert not decision.champion and decision.reason.startswith(
        "version 1 stays champion: not better"
    )
    assert aliases(*copy) == {"challenger": "2", "champion": "1"}
    assert promotion.promote(*copy, "2", force=True).champion
    assert aliases(*copy)["champion"] == "2"


def test_figures_on_another_evaluation_set_do_not_count(copy: tuple[Path, Params]) -> None:
    decision = second_student(*copy, kid=0.001, dataset="other")
    assert not decision.champion and "another evaluation set" in decision.reason


def with_evaluation(params: Params, **changes: object) -> Params:
    evaluation = params.evaluation.model_copy(update=changes)
    return params.model_copy(update={"evaluation": evaluation})


def test_figures_against_other_real_images_do_not_count(copy: tuple[Path, Params]) -> None:
    """A change of `evaluation.reference` alone, even where the evaluation recorded no digests."""
    root, params = copy
    other = with_evaluation(params, reference=FolderReference(path="/data/other"))
    decision = second_student(root, other, kid=0.001)
    assert not decision.champion and "another evaluation set" in decision.reason
    assert aliases(root, params)["champion"] == "1"


def test_the_evaluation_set_goes_by_content(registered: tuple[Path, Params]) -> None:
    _, params = registered
    hashes = {"dataset": "0" * 32}
    content = {"real": "a", "features": "b", "rivals.0": "c"}
    known = evaluation_set(params, hashes, content)
    moved = with_evaluation(params, reference=FolderReference(path="/elsewhere"))
    assert evaluation_set(moved, {"dataset": "1" * 32}, content) == known
    assert evaluation_set(params, hashes, content | {"rivals.0": "d"}) == known
    for changed in (content | {"real": "d"}, content | {"features": "d"}, None):
        assert evaluation_set(params, hashes, changed) != known
    assert evaluation_set(with_evaluation(params, seed=7), hashes, content) != known
    without = evaluation_set(params, hashes)
    assert evaluation_set(moved, hashes) != without
    assert evaluation_set(with_evaluation(params, digest="ab" * 16), hashes) != without


def test_another_criterion_does_not_count(copy: tuple[Path, Params]) -> None:
    root, params = copy
    write_results(root, 0.01, seed=2)
    file = root / "data/evaluation/metrics.json"
    metrics = json.loads(file.read_text())
    metrics["evaluation"] |= {"criterion": "recall", "lower_is_better": False}
    for row in metrics["student"].values():
        row["recall"] = 0.9
    file.write_text(json.dumps(metrics))
    run = tracking.track_run(root, params).run_id
    registration.register_student(root, params, run)
    tags = store.open_store(root, params).get_model_version(NAME, "2").tags
    assert json.loads(tags[registration.CRITERION]) == {"name": "recall", "lower_is_better": False}
    decision = promotion.promote(root, params, "2")
    assert not decision.champion and "ranked by recall, the champion by kid" in decision.reason


def test_more_is_better_where_the_criterion_says_so() -> None:
    recall = Criterion("recall", lower_is_better=False)
    assert compare({5: Score(0.9)}, {5: Score(0.8)}, recall).champion
    assert not compare({5: Score(0.7)}, {5: Score(0.8)}, recall).champion
    apart, touching = {5: Score(0.9, 0.85, 0.95)}, {5: Score(0.9, 0.75, 0.95), 10: Score(0.1)}
    old = {5: Score(0.8, 0.7, 0.82), 10: Score(0.9)}
    assert compare(apart, old, recall).champion and not compare(touching, old, recall).champion


def test_scores_of_earlier_releases_are_read() -> None:
    assert from_tag('{"5": {"kid": 0.1, "low": 0.0, "high": 0.2}}') == {5: Score(0.1, 0.0, 0.2)}
    assert from_tag(to_tag({5: Score(0.1, 0.0, 0.2)})) == {5: Score(0.1, 0.0, 0.2)}
    assert criterion_from_tag(None) == Criterion("kid", lower_is_better=True)


@pytest.mark.parametrize(
    ("new", "old", "better"),
    [
        ({5: Score(0.1)}, {5: Score(0.2)}, True),
        ({5: Score(0.2)}, {5: Score(0.2)}, False),
        ({10: Score(0.1)}, {5: Score(0.2)}, False),
        ({5: Score(0.3), 10: Score(0.1)}, {5: Score(0.2), 10: Score(0.9)}, False),
        ({5: Score(0.2), 10: Score(0.1)}, {10: Score(0.2), 20: Score(0.1)}, True),
        ({5: Score(0.10, 0.05, 0.15)}, {5: Score(0.20, 0.16, 0.3)}, True),
        (
            {5: Score(0.10, 0.0, 0.2), 10: Score(0.3)},
            {5: Score(0.11, 0.0, 0.2), 10: Score(0.1)},
            False,
        ),
        (
            {5: Score(0.10, 0.0, 0.2), 10: Score(0.1)},
            {5: Score(0.11, 0.0, 0.2), 10: Score(0.1)},
            True,
        ),
        ({5: Score(float("nan"))}, {5: Score(0.2)}, False),
    ],
)
def test_what_counts_as_better(new: dict[int, Score], old: dict[int, Score], better: bool) -> None:
    assert compare(new, old).champion is better


def test_a_direct_comparison_decides_where_there_is_one(copy: tuple[Path, Params]) -> None:
    register(*copy, 2, kid=0.05)  # worse by the recorded figures
    late = promotion.promote(*copy, "2", finding=Finding("7", True, "better"))
    assert not late.champion and "became champion during the comparison" in late.reason
    decision = promotion.promote(*copy, "2", finding=Finding("1", True, "KID difference -0.1"))
    assert (
        decision.champion and decision.reason == "version 2 replaces version 1: KID difference -0.1"
    )
    tags = store.open_store(*copy).get_model_version(NAME, "2").tags
    assert tags[promotion.DECISION] == decision.reason and tags[promotion.SINCE].startswith("20")
    assert promotion.promote(*copy, "2").reason == "version 2 is the champion already"
    again = store.open_store(*copy).get_model_version(NAME, "2").tags
    assert again[promotion.DECISION] == decision.reason  # asked again, the reason stays


def test_rollback_goes_back_champion_by_champion(copy: tuple[Path, Params]) -> None:
    with pytest.raises(InputError, match="version 1 has no earlier champion"):
        promotion.rollback(*copy)
    second_student(*copy, kid=0.005)
    register(*copy, 3, kid=0.001)
    assert promotion.promote(*copy, "3").champion and state(*copy) == settled("3", "1", "2")
    assert (
        promotion.rollback(*copy) == f"{NAME}: version 2 is champion again, in place of version 3"
    )
    assert state(*copy) == settled("2", "1")
    tags = store.open_store(*copy).get_model_version(NAME, "3").tags
    decided = promotion.latest_decision(*copy, {"student.sha256": tags["student.sha256"]})
    assert decided is not None and decided[0] == "3"
    assert f"; rolled back on {tags[promotion.ROLLED_BACK]}" in decided[1]
    again = promotion.promote(*copy, "3")
    assert not again.champion and "version 3 was rolled back on" in again.reason
    assert promotion.rollback(*copy).startswith(f"{NAME}: version 1 is champion again")
    with pytest.raises(InputError, match="nothing to roll back to"):
        promotion.rollback(*copy)
    assert promotion.promote(*copy, "3", force=True).champion and state(*copy) == settled("3", "1")
    tags = store.open_store(*copy).get_model_version(NAME, "3").tags
    assert tags[promotion.ROLLED_BACK] == ""


def test_deleted_versions_are_passed_over(copy: tuple[Path, Params]) -> None:
    second_student(*copy, kid=0.005)
    register(*copy, 3, kid=0.001)
    promotion.promote(*copy, "3")
    store.open_store(*copy).delete_model_version(NAME, "2")
    assert "version 1 is champion again" in promotion.rollback(*copy)


def model_folder(root: Path, params: Params, number: str) -> Path:
    place = store.open_store(root, params).get_model_version_download_uri(NAME, number)
    return Path(place.removeprefix("file://")) / registration.STUDENT


def test_damaged_files_in_the_registry_are_never_promoted(copy: tuple[Path, Params]) -> None:
    register(*copy, 2, kid=0.005)
    weights = model_folder(*copy, "2") / "unet/diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    with pytest.raises(
        InputError, match=r"version 2: files in the registry .*: version 1 stays champion$"
    ):
        promotion.promote(*copy, "2")
    weights.unlink()
    with pytest.raises(InputError, match=r"version 2.*: version 1 stays champion$"):
        promotion.promote(*copy, "2", force=True)
    assert state(*copy) == settled("1")


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        ("np.zeros((batch_size, 8, 8, 1))", "are of one value"),
        ("np.full((batch_size, 8, 8, 1), np.nan)", "NaN"),
        ("np.random.rand(batch_size, 8, 8)", "have the shape"),
    ],
)
def test_a_student_that_makes_no_images_is_never_promoted(
    copy: tuple[Path, Params], images: str, reason: str
) -> None:
    root, params = copy
    write_results(root, 0.005, seed=2)
    code = root / "data/student/pipeline.py"
    broken = f"return type('Output', (), {{'images': {images}}})()\n        x = torch"
    code.write_text(code.read_text().replace("x = torch", broken, 1))
    client, run = store.open_store(*copy), tracking.track_run(root, params)
    content = registration.folder_hash(root / "data/student")
    model = registration._log_model(root / "data/student", run.run_id, content)
    assert registration._create_version(client, NAME, run.run_id, model, content) == "2"
    with pytest.raises(InputError, match=f"{reason}.*version 1 stays champion$"):
        promotion.promote(*copy, "2", force=True)
    assert state(*copy) == settled("1")


def test_a_failure_after_the_move_puts_the_alias_back(
    copy: tuple[Path, Params], monkeypatch: pytest.MonkeyPatch
) -> None:
    register(*copy, 2, kid=0.005)

    def fail(point: str) -> None:
        if point == "promotion.recorded":
            assert registration.aliased_version(store.open_store(*copy), NAME, "champion") == "2"
            raise OSError("database is locked")

    monkeypatch.setattr(promotion, "reach", fail)
    with pytest.raises(OSError, match="locked"):
        promotion.promote(*copy, "2")
    assert state(*copy) == settled("1")


PROMOTE = """
import sys
from pathlib import Path
from tasks.registry import promotion
from tasks.config.schema import load_params
root = Path(sys.argv[1])
promotion.promote(root, load_params(root / "params.yaml"), "2")
"""


@pytest.mark.parametrize("point", ["promotion.moved", "promotion.recorded"])
def test_a_killed_promotion_is_mended_by_the_next(copy: tuple[Path, Params], point: str) -> None:
    root, _ = copy
    register(*copy, 2, kid=0.005)
    environment = os.environ | {KILL_AT: point, MARK: str(root / "mark")}
    killed = subprocess.run(
        [sys.executable, "-c", PROMOTE, str(root)], cwd=REPOSITORY, env=environment, timeout=120
    )
    assert killed.returncode == -9
    client = store.open_store(*copy)
    assert registration.aliased_version(client, NAME, "champion") == "2"
    pending = state(*copy)["pending"]
    assert pending is not None and (pending.source, pending.target) == ("1", "2")
    if point == "promotion.recorded":
        assert "version 1 is champion again" in promotion.rollback(*copy)
        assert state(*copy) == settled("1")
        return
    assert promotion.promote(*copy, "2").champion
    assert state(*copy) == settled("2", "1")


def test_a_promotion_elsewhere_is_not_disturbed(copy: tuple[Path, Params]) -> None:
    client = store.open_store(*copy)
    move = promotion.Move("1", "2", ("1",), "elsewhere|1|1.00", promotion.time.time())
    client.set_registered_model_tag(NAME, promotion.PENDING, json.dumps(vars(move)))
    with pytest.raises(InputError, match="version 2 is being promoted by elsewhere"):
        promotion.promote(*copy, "1")
    old = json.dumps(vars(move) | {"time": 1.0})
    client.set_registered_model_tag(NAME, promotion.PENDING, old)
    assert promotion.repair(client, NAME) == "the interrupted promotion of version 2 was dropped"
    assert state(*copy) == settled("1")
