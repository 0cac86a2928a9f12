"""How demonstrations describe their actions: `asd_policy.policies.recording`, which checkpoints share."""

from asd_policy.policies.recording import COMPOSITE, CONTROL_HZ, ROBOSUITE, Recording

__all__ = ["COMPOSITE", "CONTROL_HZ", "ROBOSUITE", "Recording"]
