"""Devices by name: the memory that torch finds on them, a little less than their names say, and
their peak speed, as their makers state it.

Dense figures, without sparsity. A network reaches a part of the peak, ``UTILISATION``, which is an
assumption: 40 % is what well-fed diffusion networks of this size are reported at; small ones, and
small batches, stay below.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.common.errors import InputError

UTILISATION = 0.4
GIB = 2**30


@dataclass(frozen=True)
class Device:
    """``gib``: of memory; ``half``, ``single``: TFLOP/s in bfloat16 on tensor cores, in float32."""

    name: str
    gib: float
    half: float
    single: float

    def flops_per_second(self, precision: str) -> float:
        peak = self.single if precision == "float32" else self.half
        return UTILISATION * peak * 1e12


DEVICES = {
    device.name.lower(): device
    for device in (
        Device("H200", 139.5, 989, 67),
        Device("H100", 79, 989, 67),
        Device("A100-80GB", 79, 312, 19.5),
        Device("A100-40GB", 39.4, 312, 19.5),
        Device("L40S", 44.4, 362, 91.6),
        Device("A10", 22, 125, 31.2),
        Device("RTX4090", 23.5, 165, 82.6),
        Device("RTX3090", 23.5, 71, 35.6),
    )
}


def device_named(name: str) -> Device:
    """A device of the table; InputError, with all names, for another."""
    plain = name.lower().replace(" ", "").replace("nvidia", "")
    if plain not in DEVICES:
        known = ", ".join(device.name for device in DEVICES.values())
        raise InputError(f"device = {name}: expected one of {known}")
    return DEVICES[plain]


def device_like(name: str) -> Device | None:
    """The device of the table that a driver's name, such as "NVIDIA H100 80GB HBM3", stands for."""
    plain = name.lower().replace(" ", "").replace("geforce", "")
    found = [d for key, d in DEVICES.items() if key.split("-")[0] in plain]
    exact = [d for d in found if d.name.lower().partition("-")[2] in plain]
    return next(iter(exact or found), None)
