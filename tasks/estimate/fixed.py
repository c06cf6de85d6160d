"""What every run costs beside its networks, as measured on two cores of a CPU with AVX-512
(docs/LOG.md): seconds of work that does not grow, and memory of the packages.
"""

from __future__ import annotations

MIB = 2**20
# CPU seconds of a stage whose networks, paths and images are few: loss terms, files, the report,
# and the proof that the student's folder opens in another process.
SECONDS = {
    "dataset": 2.6,
    "teacher": 0.2,
    "conditions": 0.1,
    "trajectories": 1.0,
    "student": 1.5,
    "evaluation": 11.0,
}
ENCODERS = 5.0  # of opening encoders and tokenizers, in the stage `conditions`
# Resident memory of a stage's process (and of those below it) with its packages, before any data.
PACKAGES = {
    "dataset": 310 * MIB,
    "teacher": 450 * MIB,
    "conditions": 60 * MIB,
    "trajectories": 470 * MIB,
    "student": 730 * MIB,
    "evaluation": 1050 * MIB,
}
LIGHT = 65 * MIB  # of a stage that reads its params and little else
# Of a CUDA context and its libraries on a GPU, beside all tensors.
CUDA_CONTEXT = 600 * MIB
