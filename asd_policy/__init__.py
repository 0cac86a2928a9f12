"""asd-policy: exact diffusion policies at the price of DDIM-10.

The names below are imported on first use, so `import asd_policy` itself is fast.
"""

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from asd_policy.core import AsdSampler as AsdSampler
    from asd_policy.core import Schedule as Schedule
    from asd_policy.core import sample_ddim as sample_ddim
    from asd_policy.core import sample_ddpm as sample_ddpm
    from asd_policy.errors import AsdPolicyError as AsdPolicyError
    from asd_policy.importers import load_policy as load_policy
    from asd_policy.live import accelerate as accelerate
    from asd_policy.policies.diffusion import DiffusionPolicy as DiffusionPolicy

__version__ = "0.1.0"

_HOME = {
    "AsdSampler": "asd_policy.core",
    "Schedule": "asd_policy.core",
    "sample_ddim": "asd_policy.core",
    "sample_ddpm": "asd_policy.core",
    "AsdPolicyError": "asd_policy.errors",
    "DiffusionPolicy": "asd_policy.policies.diffusion",
    "accelerate": "asd_policy.live",
    "load_policy": "asd_policy.importers",
}
__all__ = ["__version__", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'asd_policy' has no attribute {name!r}; it has {', '.join(__all__)}")
    if name == "load_policy" and find_spec("gymnasium") and find_spec("scipy") and _envs_are_ours():
        # gymnasium 1.0 has no entry points for environments: gym.make("asd/Square-v0") finds ours from here on.
        import_module("envs")
    return getattr(import_module(_HOME[name]), name)


def _envs_are_ours() -> bool:
    """Whether `import envs` finds the package beside this one, not another one of this common name."""
    spec = find_spec("envs")
    ours = Path(__file__).resolve().parents[1] / "envs" / "__init__.py"
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == ours


def __dir__() -> list[str]:
    return __all__
