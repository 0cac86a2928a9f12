"""lerobot's diffusion policy with the exact, fast sampler of asd-policy: `--policy.type=asd_diffusion`.

lerobot's commands import this package because of its name; the import registers the policy's configuration. The policy
itself is imported when it is first used.
"""

from importlib.util import find_spec

__version__ = "0.1.0"

if find_spec("lerobot") is not None:  # `convert` works without it
    from lerobot_policy_asd.configuration_asd_diffusion import AsdDiffusionConfig as AsdDiffusionConfig
