"""How demonstrations say what their actions are; see `asd_policy.policies.recording`, which reads checkpoints' too."""

from asd_policy.policies.recording import COMPOSITE, CONTROL_HZ, ROBOSUITE, Recording

__all__ = ["COMPOSITE", "CONTROL_HZ", "ROBOSUITE", "Recording"]
