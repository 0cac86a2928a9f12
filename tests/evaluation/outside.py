"""Environments that are not ours. `gymnasium.make("tests.evaluation.outside:Reach-v0")` imports this module."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Dict, Discrete


class Reach(gymnasium.Env):
    """A point must be brought within 0.3 of the origin. It observes a Box, and reports `is_success`.

    Args:
        says: the key of `info` that says success; None terminates without a word.
        observes: "state" (a Box), "nested" (dicts of dicts), "pixels" (a Box of images) or "number".
    """

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012  (gymnasium's way)
    action_space = Box(-2.0, 2.0, (2,), np.float64)
    spaces = {  # noqa: RUF012
        "state": Box(-9, 9, (2,), np.float64),
        "nested": Dict({"agent": Dict({"pos": Box(-9, 9, (2,), np.float64)}), "step": Discrete(100)}),
        "pixels": Box(0, 255, (8, 8, 3), np.uint8),
        "number": Discrete(3),
    }

    def __init__(self, says="is_success", observes="state", render_mode=None):
        self.says, self.observes, self.render_mode = says, observes, render_mode
        self.observation_space = self.spaces[observes]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position, self.t = self.np_random.uniform(-1, 1, 2), 0
        return self._observed(), {}

    def step(self, action):
        assert self.action_space.contains(action), "gymnasium's contract: an action is an element of the space"
        self.position, self.t = np.clip(self.position + 0.1 * action, -9, 9), self.t + 1
        success = bool(np.linalg.norm(self.position) < 0.3)
        return self._observed(), -1.0, success, False, {} if self.says is None else {self.says: success}

    def render(self):
        return np.full((32, 32, 3), 20 * self.t % 256, dtype=np.uint8)

    def _observed(self):
        position = self.position.copy()
        return {
            "state": position,
            "nested": {"agent": {"pos": position}, "step": self.t},
            "pixels": np.zeros((8, 8, 3), np.uint8),
            "number": 1,
        }[self.observes]


gymnasium.register("Reach-v0", entry_point=Reach, max_episode_steps=20)
gymnasium.register("Endless-v0", entry_point=Reach)
