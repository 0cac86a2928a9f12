"""Other libraries' diffusion policies while they run: `accelerate` replaces their sampling loop, and nothing else."""

from asd_policy.live.acceleration import LOOPS, Acceleration, accelerate

__all__ = ["LOOPS", "Acceleration", "accelerate"]
