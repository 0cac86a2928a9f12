"""A robosuite task as a gymnasium environment with vector observations and optional images."""

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from envs import graphics
from envs.graphics import mujoco, robosuite
from envs.spec import ACTIONS, ARM_ACTION_DIM, TaskSpec
from envs.tasks import TASKS

Obs = dict[str, Any]  # float32 arrays

CONTROL_HZ = 20
CAMERA = "agentview"
FRAME_SIZE = 256  # pixels


class SimulationError(gymnasium.error.Error):
    """The physics diverged: the episode cannot continue."""


class RobosuiteEnv(gymnasium.Env[Obs, NDArray[np.float32]]):
    """A robosuite task at 20 Hz with OSC_POSE actions: deltas, clipped to [-1, 1], or target poses.

    Observations are a dict of float32 vectors with robomimic's keys in robomimic's order, and for each camera an image
    `<camera>_image` (H, W, 3), uint8, upright as in robomimic's files. The reward is 1 at every step that ends in
    success, else 0; `info["success"]` is the same as a bool. All randomness comes from `env.np_random`: the same
    `reset(seed=...)` gives the same episode, bit for bit.

    Args:
        task: a key of `envs.tasks.TASKS`.
        render_mode: None or "rgb_array", a (256, 256, 3) uint8 camera image.
        terminate_on_success: end the episode at the first success.
        actions: a key of `envs.tasks.ACTIONS`.
        cameras: robosuite's camera names, such as agentview and robot0_eye_in_hand, with the height and width of their
            images. Every step renders each of them.

    Raises:
        gymnasium.error.Error: on an unknown name, or an invalid image size.
        RenderingError: if images are requested but cannot be rendered; see `envs.graphics`.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": CONTROL_HZ}  # noqa: RUF012  (gymnasium's declaration)

    def __init__(
        self,
        task: str = "square",
        render_mode: str | None = None,
        terminate_on_success: bool = True,
        actions: str = "delta",
        cameras: Mapping[str, tuple[int, int]] | None = None,
    ):
        for kind, name, available in (("task", task, TASKS), ("actions", actions, ACTIONS)):
            if name not in available:
                raise gymnasium.error.Error(f"Unknown {kind} {name!r}. Available: {', '.join(sorted(available))}.")
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise gymnasium.error.UnsupportedMode(
                f"Unknown render_mode {render_mode!r}. Available: None, {self.metadata['render_modes']}."
            )
        self.task = TASKS[task]
        self.render_mode = render_mode
        self.terminate_on_success = terminate_on_success
        self.actions = actions
        self._cameras = dict(cameras or {})
        self._renders = bool(render_mode or self._cameras)
        if self._renders:
            graphics.check()
        self.robosuite = _make_robosuite(self.task, actions)
        self._check_cameras()
        seen: dict[str, spaces.Space[Any]] = {
            key: spaces.Box(-np.inf, np.inf, (dim,), np.float32) for key, dim in self.task.obs_dims.items()
        }
        seen |= {f"{camera}_image": spaces.Box(0, 255, (*size, 3), np.uint8) for camera, size in self._cameras.items()}
        self.observation_space = spaces.Dict(seen, sort_keys=False)
        arm = np.ones(ARM_ACTION_DIM) if actions == "delta" else np.array([np.inf] * 6 + [1.0])
        largest = np.tile(arm, len(self.task.robots)).astype(np.float32)
        self.action_space = spaces.Box(-largest, largest, dtype=np.float32)
        self._renderers: dict[tuple[int, int], graphics.Renderer] = {}  # by height and width

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        super().reset(seed=None if seed is None else _checked_seed(seed))
        if self._renders:
            graphics.prepare()
        self._close_renderers()  # robosuite rebuilds the model
        # robosuite's samplers keep a reference to its generator, so it is given the state of ours, not replaced.
        rng = self.robosuite.rng.bit_generator
        rng.state = self.np_random.bit_generator.state
        self.robosuite.reset()
        self.np_random.bit_generator.state = rng.state
        self._refresh_observables()
        return self._observe(self.robosuite._get_observations()), {"success": False}

    def step(self, action: NDArray[np.floating[Any]]) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        raw, *_ = self.robosuite.step(self._checked(action))
        self._check_physics()
        success = bool(self.robosuite._check_success())
        terminated = success and self.terminate_on_success
        return self._observe(raw), float(success), terminated, False, {"success": success}

    def render(self) -> NDArray[np.uint8] | None:
        """The camera image, (256, 256, 3) uint8. Rendering never changes the physics."""
        if self.render_mode is None:
            gymnasium.logger.warn('render() needs gym.make(..., render_mode="rgb_array").')
            return None
        return self._picture(CAMERA, (FRAME_SIZE, FRAME_SIZE))

    def close(self) -> None:
        self._close_renderers()
        self.robosuite.close()

    def _check_cameras(self) -> None:
        model = self.robosuite.sim.model
        largest = model._model.vis.global_.offheight, model._model.vis.global_.offwidth
        for camera, size in self._cameras.items():
            if camera not in model.camera_names:
                raise gymnasium.error.Error(f"Unknown camera {camera!r}. Available: {', '.join(model.camera_names)}.")
            whole = isinstance(size, (tuple, list)) and len(size) == 2 and all(type(pixels) is int for pixels in size)
            if not whole or not all(1 <= pixels <= most for pixels, most in zip(size, largest, strict=True)):
                raise gymnasium.error.Error(
                    f"The size of camera {camera!r} is {size!r}; expected height and width, at most {largest}."
                )
            self._cameras[camera] = (size[0], size[1])

    def _picture(self, camera: str, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Render a camera's image, (H, W, 3) uint8."""
        sim = self.robosuite.sim
        if size not in self._renderers:
            self._renderers[size] = graphics.Renderer(sim.model._model, *size)
        visual_geoms = mujoco.MjvOption()
        visual_geoms.geomgroup[0] = 0  # robosuite keeps collision geometry in group 0
        picture: NDArray[np.uint8] = self._renderers[size].picture(sim.data._data, camera, visual_geoms)
        return picture

    def _close_renderers(self) -> None:
        for renderer in self._renderers.values():
            renderer.close()
        self._renderers.clear()

    def _refresh_observables(self) -> None:
        # Relative poses are computed from the previously sampled poses. At reset there are none, and robosuite returns
        # zeros. A second sample, without advancing the sampling clocks, computes them.
        for observable in self.robosuite._observables.values():
            observable.update(timestep=0.0, obs_cache=self.robosuite._obs_cache, force=True)

    def _observe(self, raw: Mapping[str, NDArray[np.float64]]) -> Obs:
        # robomimic calls robosuite's concatenated object observations `object`.
        named = {**raw, "object": raw["object-state"]}
        vectors = {key: np.asarray(named[key], np.float32) for key in self.task.obs_dims}
        return vectors | {f"{name}_image": self._picture(name, size) for name, size in self._cameras.items()}

    def _checked(self, action: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        checked = np.asarray(action, np.float64)
        expected = self.action_space.shape
        if checked.shape != expected:
            raise gymnasium.error.InvalidAction(
                f"Got an action of shape {checked.shape}, expected {expected} for {self.task.env_id}."
            )
        if not np.isfinite(checked).all():
            raise gymnasium.error.InvalidAction(f"Got an action with values that are not finite: {checked}.")
        return checked

    def _check_physics(self) -> None:
        # MuJoCo resets a diverged simulation by itself and continues. Only its warning counters show this.
        warnings = self.robosuite.sim.data._data.warning
        for kind in ("mjWARN_BADQPOS", "mjWARN_BADQVEL", "mjWARN_BADQACC"):
            if warnings[getattr(mujoco.mjtWarning, kind)].number:
                raise SimulationError(
                    f"The simulation of {self.task.env_id} diverged ({kind}) at step {self.robosuite.timestep}: "
                    "reset the environment."
                )


def _checked_seed(seed: Any) -> int:
    """A seed of any size as a Python int. gymnasium would accept True as 1, and no NumPy integers."""
    if isinstance(seed, (bool, np.bool_)) or not isinstance(seed, (int, np.integer)) or seed < 0:
        raise gymnasium.error.Error(f"The seed is {seed!r}; expected an integer, zero or more.")
    return int(seed)


def _make_robosuite(task: TaskSpec, actions: str) -> Any:
    controllers = robosuite.load_composite_controller_config(controller="BASIC", robot=task.robots[0])
    if actions != "delta":
        controllers["body_parts"]["right"] |= {"input_type": "absolute", "input_ref_frame": actions}
    return robosuite.make(
        task.robosuite_name,
        robots=list(task.robots),
        controller_configs=controllers,
        control_freq=CONTROL_HZ,
        has_renderer=False,
        has_offscreen_renderer=False,
        use_camera_obs=False,
        use_object_obs=True,
        reward_shaping=False,
        ignore_done=True,  # gymnasium has the time limit
        renderer="mujoco",  # the default one keeps old simulations alive
        **task.make_options,
    )
