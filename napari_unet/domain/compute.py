"""Where and how a job computes, once it has been decided. The decision itself is made in ``compute/device.py``."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


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
    runtime : str
        What runs 2D networks that only predict: ``torch``, ``onnx`` or ``openvino``.
    runtime_3d : str
        The same for 3D networks; empty: as in 2D.
    runtime_wanted : bool
        The runtime was asked for by name: a network that it cannot run is an error then, and not run by torch.
    reason : str
        One sentence for the person: why this device and precision. Not part of what makes two of them equal.
    """

    device: str
    precision: str
    threads: int
    runtime: str = "torch"
    runtime_3d: str = ""
    runtime_wanted: bool = False
    reason: str = field(default="", compare=False)

    def in_torch(self) -> ResolvedCompute:
        """Return the same with torch, for work that is over before a network could be converted."""
        return replace(self, runtime="torch", runtime_3d="", runtime_wanted=False)

    def runtime_for(self, dimensions: int) -> str:
        """Return what runs networks of so many dimensions."""
        return self.runtime_3d or self.runtime if dimensions == 3 else self.runtime


#: For the environment of every process that computes, before torch is loaded. OpenMP threads that spin while they wait
#: for one another stall all of them as soon as anything else needs a core: with the window or a second program busy on
#: two cores a training step took 4.0 s instead of 0.25 s (docs/architecture.md).
PATIENT_THREADS = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "1000"}
