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
