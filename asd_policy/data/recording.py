"""The metadata of demonstrations' actions: re-exports `asd_policy.policies.recording`."""

from asd_policy.policies.recording import COMPOSITE, CONTROL_HZ, ROBOSUITE, Recording

__all__ = ["COMPOSITE", "CONTROL_HZ", "ROBOSUITE", "Recording"]
