"""The registered model, as MLflow's models-from-code wants it: a script that needs nothing of this
project.

Everything comes from the artifact `student`, a diffusers pipeline folder with its own pipeline.py.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE, INVALID_STATE

MOST_SAMPLES = 1024


class StudentModel(mlflow.pyfunc.PythonModel):
    """Images or series on request: each input row asks for `num_images`, or `num_series`, with the
    seed `seed` + row.
    """

    def load_context(self, context: Any) -> None:
        """Load the pipeline; weights are safetensors only."""
        import torch
        from diffusers import DiffusionPipeline
        from diffusers.utils import logging

        logging.disable_progress_bar()
        folder = context.artifacts["student"]
        self.folder = Path(folder)
        _check(self.folder, (context.model_config or {}).get("sha256"))
        self.pipeline = DiffusionPipeline.from_pretrained(
            folder,
            custom_pipeline=folder,
            trust_remote_code=True,
            use_safetensors=True,
            local_files_only=True,
        )
        if torch.cuda.is_available():
            self.pipeline.to("cuda")

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> np.ndarray:
        """Sample images or series.

        `params`: num_images or num_series (1..1024 over all rows), seed (>= 0), steps (one of the
        student's step numbers; 0 = the largest), class_label (-1 = none, or all in turn where the
        student needs one). A student of prompts takes that of the row, in the column `prompt`;
        one that takes guidance as an input also guidance_scale (-1 = its own default).
        Returns images (rows * num_images, H, W, C) float32 in [0, 1], or
        series (rows * num_series, C, L) float32 in the data's units. Mistakes are
        INVALID_PARAMETER_VALUE.
        """
        number = f"num_{self._makes()}"
        asked = {number: 4, "seed": 0, "steps": 0, "class_label": -1} | (params or {})
        count, seed, steps, label = (
            int(asked[name]) for name in (number, "seed", "steps", "class_label")
        )
        allowed = [int(number) for number in getattr(self.pipeline, "nfe", [])]
        steps = steps or max(allowed, default=10)
        rows = max(len(model_input), 1)
        _require(
            count >= 1 and rows * count <= MOST_SAMPLES,
            f"{number} = {count}: expected 1 to {MOST_SAMPLES} in all",
        )
        _require(seed >= 0, f"seed = {seed}: expected 0 or more")
        _require(
            not allowed or steps in allowed, f"steps = {steps}: this student was made for {allowed}"
        )
        weight = float((params or {}).get("guidance_scale", -1.0))
        scale = {} if weight == -1.0 else {"guidance_scale": weight}
        given = self._prompts(model_input)
        batches = [
            self._sample(count, steps, seed + row, **given[row % len(given)], **scale)
            if given
            else self._sample(count, steps, seed + row, class_labels=self._labels(label, count))
            for row in range(rows)
        ]
        return np.concatenate(batches).astype(np.float32)

    def _makes(self) -> str:
        """ "images" or "series"; students of earlier versions make images."""
        return str(getattr(self.pipeline, "makes", "images"))

    def _labels(self, label: int, count: int) -> list[int] | None:
        classes = getattr(self.pipeline.config, "num_classes", None)
        if label >= 0:
            return [label] * count
        return [index % classes for index in range(count)] if classes else None

    def _prompts(self, model_input: pd.DataFrame) -> list[dict[str, Any]]:
        """What each row asks for; [] for a student that takes no prompts."""
        if getattr(self.pipeline, "prompts", None) is None:
            return []
        _require(
            "prompt" in model_input and len(model_input) > 0,
            "expected a column prompt with a text in each row",
        )
        return [self._prompt(str(text)) for text in model_input["prompt"]]

    def _prompt(self, text: str) -> dict[str, Any]:
        """A prompt for the pipeline; a folder without encoders has its examples encoded."""
        examples = list(self.pipeline.prompts["examples"])
        if self.pipeline.text_encoder is not None or text not in examples:
            return {"prompt": text}
        from safetensors.torch import load_file

        stored, row = load_file(self.folder / "prompt_embeds.safetensors"), examples.index(text)
        return {"prompt_embeds": {key: value[row : row + 1] for key, value in stored.items()}}

    def _sample(self, count: int, steps: int, seed: int, **asked: Any) -> np.ndarray:
        import torch

        try:
            output = self.pipeline(
                batch_size=count,
                num_inference_steps=steps,
                **asked,
                generator=torch.Generator("cpu").manual_seed(seed),
                output_type="np",
            )
        except ValueError as error:  # the pipeline's own words for a request it cannot serve
            raise MlflowException(str(error), error_code=INVALID_PARAMETER_VALUE) from error
        made: np.ndarray = getattr(output, self._makes())
        return made


def _check(folder: Path, registered: str | None) -> None:
    """Refuse files that are not those that were registered; `registered` is the SHA-256 over their
    names and sums.
    """
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            lines.append(
                f"{path.relative_to(folder).as_posix()} "
                f"{hashlib.file_digest(file, 'sha256').hexdigest()}\n"
            )
    if registered not in (None, hashlib.sha256("".join(lines).encode()).hexdigest()):
        raise MlflowException(
            f"{folder}: the files are not those that were registered: they are damaged; use "
            "another version, or "
            "register this student again (`python -m flows.register`)",
            error_code=INVALID_STATE,
        )


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


# MLflow runs this script to get the model; the call is its interface.
mlflow.models.set_model(StudentModel())
