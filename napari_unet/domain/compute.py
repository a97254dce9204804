"""Where and how a job computes, once it has been decided. The decision itself is made in ``compute/device.py``."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class ResolvedCompute:
    """Device, precision and threads with nothing left to choose; travels with the job.

    Parameters
    ----------
    device : str
        ``cpu``, ``cuda`` or ``mps``.
    precision : str
        ``float32``, ``bfloat16`` or ``float16``.
    threads : int
        CPU threads of one job.
    reason : str
        One sentence for the person: why this device and precision. Not part of what makes two of them equal.
    """

    device: str
    precision: str
    threads: int
    reason: str = field(default="", compare=False)


#: For the environment of every process that computes, before torch is loaded. OpenMP threads that spin while they wait
#: for one another stall all of them as soon as anything else needs a core: with the window or a second program busy on
#: two cores a training step took 4.0 s instead of 0.25 s (docs/architecture.md).
PATIENT_THREADS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
