"""Put a ``SigDEGScheduler`` into a model folder, so that the folder brings its sampler along."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from models.common.errors import InputError
from models.schedulers.sigdeg_scheduler import SigDEGScheduler

UNSCALED = ("DDPMPipeline", "DiTPipeline")
"""They do not scale the first state, and DDPM's none of the others."""
FILES = ("sigdeg_scheduler.py", "sigdeg_plan.py", "sigdeg_levels.py")


def export_scheduler(scheduler: SigDEGScheduler, folder: Path) -> None:
    """Write ``folder``/scheduler: the configuration and the code, which needs numpy, torch and
    diffusers alone. A ``model_index.json`` in ``folder`` is made to name it, so that

        DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)

    opens the pipeline with this scheduler, and ``load_lora_weights`` finds it beside a LoRA.
    """
    target = Path(folder) / "scheduler"
    target.mkdir(parents=True, exist_ok=True)
    scheduler.save_pretrained(target)
    for name in FILES:
        shutil.copyfile(Path(__file__).with_name(name), target / name)
    index = Path(folder) / "model_index.json"
    if index.is_file():
        record: dict[str, Any] = json.loads(index.read_text(encoding="utf-8"))
        record["scheduler"] = ["sigdeg_scheduler", "SigDEGScheduler"]
        text = json.dumps(record, indent=2, sort_keys=True) + "\n"
        index.write_text(text, encoding="utf-8")


def stock_pipeline(student: Any, base: Any) -> Any:
    """The ``base`` model's own pipeline with the network of a Sig-DEG ``student`` that was trained
    with ``method.inputs: none``, and the scheduler that samples it. InputError for other students.

    To save it: ``save_pretrained(folder)``, then ``export_scheduler(pipe.scheduler, folder)``.
    """
    settings = student.config.get("scheduler_config")
    if settings is None:
        raise InputError(
            "student: its network takes more than the state, which stock pipelines do not hand "
            "over, or its teacher had no diffusers scheduler; expected one trained with "
            "method.inputs: none from a diffusers pipeline"
        )
    check_scaling(type(base).__name__, student)
    part = "unet" if "unet" in base.components else "transformer"
    scheduler = SigDEGScheduler.from_config(settings)
    return type(base)(**{**base.components, part: student.unet, "scheduler": scheduler})


def check_scaling(pipeline: str, student: Any) -> None:
    """InputError where the stock pipeline of this name starts at standard normals, and the
    student's network, an EDM one, at states scaled by its schedule.
    """
    if pipeline in UNSCALED and student.config.prediction_type in ("edm", "edm_v"):
        raise InputError(
            f"a {pipeline} does not scale states as an EDM network needs them; call the "
            "scheduler and the network yourself, or use the student's own pipeline"
        )
