"""The stages of dvc.yaml in the order in which they run."""

from __future__ import annotations

STAGES = ("dataset", "teacher", "conditions", "trajectories", "student", "evaluation")
