"""Simulation without OpenGL; rendering beside other environments, in forked processes and in threads."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from envs.tasks import TASKS
from tests.tiny import tiny_checkpoint

ROOT = Path(__file__).parents[2]
SQUARE_FAST = [pytest.param(task, marks=() if task == "square" else pytest.mark.slow) for task in sorted(TASKS)]

HIDDEN = """
import ctypes, ctypes.util, os, sys
names = ("EGL", "OSMesa", "GL", "GLX", "OpenGL", "GLESv2", "GLESv1_CM")
find, CDLL = ctypes.util.find_library, ctypes.CDLL
class Hidden(CDLL):
    def __init__(self, name, *args, **kwargs):
        if name and any(os.path.basename(str(name)).startswith(f"lib{one}.so") for one in names):
            raise OSError(f"{name}: cannot open shared object file: No such file or directory")
        super().__init__(name, *args, **kwargs)
ctypes.CDLL = ctypes.cdll._dlltype = Hidden
if os.environ.get("FIND") != "yes":  # otherwise what is found cannot be loaded
    ctypes.util.find_library = lambda name: None if name in names else find(name)
"""
"""A machine without graphics: libraries are neither found nor loaded."""

SIMULATE = """
import gymnasium
env = gymnasium.make("envs:" + sys.argv[1])
assert env.observation_space.contains(env.reset(seed=100000)[0])
env.step(env.action_space.sample())
env.close()
assert not [name for name in sys.modules if name.split(".")[0] == "OpenGL"]
for images in ({"render_mode": "rgb_array"}, {"cameras": {"agentview": (84, 84)}}):
    try:
        gymnasium.make("envs:" + sys.argv[1], **images).reset()
    except gymnasium.error.Error as error:
        print(type(error).__name__, error)
env = gymnasium.make("envs:" + sys.argv[1])  # and goes on
env.reset(seed=1)
"""


def run(code, *arguments, **environ):
    clean = {
        key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "DISPLAY", "PYOPENGL_PLATFORM")
    }
    command = [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, env=clean | environ, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280
    )


@pytest.mark.parametrize("task", SQUARE_FAST)
def test_simulation_needs_no_graphics(task):
    done = run(HIDDEN + SIMULATE, TASKS[task].env_id)
    assert done.returncode == 0, done.stderr
    refusals = done.stdout.splitlines()
    assert len(refusals) == 2
    assert all("RenderingError" in line and "libegl1" in line and "libosmesa6" in line for line in refusals)


BARE = """
set -e
libraries=$(dirname "$(ldconfig -p | sed -n 's/.*libGL.so.1 .*=> //p' | head -1)")
mount -t tmpfs none "$1" && mkdir "$1/upper" "$1/work"
mount -t overlay overlay -o "lowerdir=$libraries,upperdir=$1/upper,workdir=$1/work" "$libraries"
cd "$libraries"
rm -rf libGL* libEGL* libOpenGL* libOSMesa* libX* libxcb* libwayland* libglib* libgthread* dri
cd "$2"
exec "$3" -W ignore -c "$4" asd/Square-v0
"""
"""A machine that has none of the libraries of a desktop, OpenCV's included: in a name space with files removed."""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a file system")
def test_simulation_on_a_bare_machine(tmp_path):
    code = "import sys\n" + SIMULATE.replace("assert not [", "assert 'cv2' not in sys.modules and not [")
    command = ["unshare", "-m", "bash", "-c", BARE, "bash", tmp_path, ROOT, sys.executable, code]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, timeout=280)
    if "mount" in done.stderr or "unshare" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("libegl1") == 2


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"FIND": "yes"}, "libegl1"),  # found, and cannot be loaded
        ({"MUJOCO_GL": "egl"}, "libegl1"),
        ({"MUJOCO_GL": "osmesa"}, "libosmesa6"),
        ({"DISPLAY": ":77"}, "libegl1"),  # a display that does not answer
        ({"MUJOCO_GL": "elg"}, "MUJOCO_GL is 'elg'; expected egl, osmesa"),
        ({"MUJOCO_GL": "disable"}, "MUJOCO_GL=disable turns rendering off. Unset it"),
        ({"FIND": "yes", "PYOPENGL_PLATFORM": "glx"}, "PYOPENGL_PLATFORM"),
    ],
)
def test_what_is_wrong_with_rendering_is_said(environ, message):
    done = run(HIDDEN + SIMULATE, TASKS["square"].env_id, **environ)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(message) >= 2, done.stdout


def test_evaluation_without_graphics_makes_no_films(tmp_path):
    task = TASKS["square"]
    checkpoint = tiny_checkpoint(tmp_path / "tiny", task.obs_dims, task.action_dim)
    short = "import gymnasium, envs; gymnasium.registry['asd/Square-v0'].max_episode_steps = 20\n"
    script = "import runpy; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    arguments = (
        "--checkpoint",
        checkpoint,
        "--samplers",
        "ddim:1",
        "ddim:2",
        "--seeds",
        "1",
        "--out",
        tmp_path / "out",
    )
    done = run(HIDDEN + short + script, ROOT / "scripts" / "evaluate.py", *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("No films: ") == 1
    assert "libegl1" in done.stdout
    assert (tmp_path / "out" / "results.json").exists()


def test_environment_variables_are_left_alone():
    """Or processes started from this one would take our choice, or robosuite's, for the user's."""
    names = ("MUJOCO_GL", "PYOPENGL_PLATFORM")
    code = f"import os, envs.robosuite_env; print(*map(os.environ.get, {names}))"
    assert run(code).stdout == "None None\n"
    assert run(code, MUJOCO_GL="osmesa").stdout == "osmesa None\n"


def test_mujocos_own_renderer_still_works():
    code = (
        "import envs.robosuite_env, mujoco\n"
        "model = mujoco.MjModel.from_xml_string('<mujoco><worldbody><geom size=\"1\"/></worldbody></mujoco>')\n"
        "data = mujoco.MjData(model)\n"
        "renderer = mujoco.Renderer(model, 20, 30)\n"
        "renderer.update_scene(data); print(renderer.render().shape); renderer.close()\n"
    )
    done = run(code)
    assert (done.stdout, done.stderr) == ("(20, 30, 3)\n", "")


FORK = """
import gymnasium, os, signal, sys, threading
env_id, cameras = "envs:asd/Square-v0", {"agentview": (84, 84)}
env = gymnasium.make(env_id, cameras=cameras)
env.reset(seed=1)
fresh = gymnasium.make(env_id, render_mode="rgb_array")
uses = {
    "step": lambda: env.step(env.action_space.sample()),
    "reset": lambda: env.reset(seed=2),
    "make": lambda: gymnasium.make(env_id, cameras=cameras).reset(seed=1),
    "render": lambda: (fresh.reset(seed=1), print("simulated"), fresh.render()),
    "close": env.close,
    "simulate": lambda: gymnasium.make(env_id).reset(seed=1),
    "leave": lambda: None,
}
for name, use in uses.items():
    sys.stdout.flush()
    if os.fork() == 0:
        signal.alarm(30)  # which ends it, should it hang
        try:
            use()
        except gymnasium.error.Error as error:
            print(name, 'context="spawn"' in str(error))
        sys.exit(0)  # exit handlers and destructors run
    print(name, os.wait()[1])
env.step(env.action_space.sample())
env.close()
"""


def test_forked_child_of_a_process_that_has_rendered():
    done = run(FORK)
    assert (done.returncode, done.stderr) == (0, "")
    refused = [line for name in ("step", "reset", "make", "render") for line in (f"{name} True", f"{name} 0")]
    refused.insert(-2, "simulated")
    assert done.stdout.splitlines() == [*refused, "close 0", "simulate 0", "leave 0"]


VECTOR = """
import gymnasium, numpy as np, sys, time
if __name__ == "__main__":
    make = dict(cameras={"agentview": (84, 84)})
    alone = gymnasium.make("envs:asd/Square-v0", **make)
    expected = alone.reset(seed=1)[0]["agentview_image"]
    vector = gymnasium.make_vec(
        "envs:asd/Square-v0", num_envs=2, vectorization_mode="async", vector_kwargs={"context": sys.argv[1]}, **make
    )
    try:
        image = vector.reset(seed=[1, 2])[0]["agentview_image"][0]
        print((image == expected).all())
    except gymnasium.error.Error as error:
        print(type(error).__name__, error)
    vector.close()
"""


@pytest.mark.parametrize(
    ("context", "expected"), [("fork", 'context="spawn"'), pytest.param("spawn", "True", marks=pytest.mark.slow)]
)
def test_vector_of_environments_after_rendering(context, expected, tmp_path):
    script = tmp_path / "vector.py"  # spawned processes import it
    script.write_text(VECTOR)
    command, environ = [sys.executable, "-W", "ignore", script, context], os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True, check=False, timeout=100)
    assert expected in done.stdout, done.stderr


def episode(env, seed, steps=1):
    """All images of an episode's beginning."""
    action = np.full(7, 0.5, np.float32)
    for obs in (env.reset(seed=seed)[0], *(env.step(action)[0] for _ in range(steps))):
        yield from (obs[key] for key in obs if key.endswith("_image"))
    yield env.render()


SETUPS = [
    {"agentview": (84, 84)},
    {"agentview": (84, 84), "robot0_eye_in_hand": (60, 80)},
    {"robot0_eye_in_hand": (84, 84)},
]


def make(cameras):
    return gymnasium.make("envs:asd/Square-v0", cameras=cameras, render_mode="rgb_array")


def test_environments_in_one_process_each_see_their_own_world():
    """Bit for bit what they see alone, interleaved, while others are closed, dropped or begin again."""
    alone = []
    for seed, cameras in enumerate(SETUPS):
        env = make(cameras)
        alone.append(list(episode(env, seed)))
        env.close()
    envs = [make(cameras) for cameras in SETUPS]
    dropped, closed = make(SETUPS[0]), make(SETUPS[1])
    dropped.reset(seed=7), closed.reset(seed=8)
    running = [episode(env, seed) for seed, env in enumerate(envs)]
    seen = [[] for _ in envs]
    turn = 0
    while any(len(images) < len(expected) for images, expected in zip(seen, alone, strict=True)):
        for images, images_of in zip(seen, running, strict=True):
            images += [image.copy() for image in [next(images_of, None)] if image is not None]
        turn += 1
        if turn == 2:
            closed.close()
        if turn == 3:
            del dropped  # without a close, while another one's context is current
            gc.collect()
    for images, expected in zip(seen, alone, strict=True):
        assert len(images) == len(expected)
        assert all(np.array_equal(one, other) for one, other in zip(images, expected, strict=True))
    for env in envs:
        env.close()


def test_rendering_in_another_thread_is_refused():
    from concurrent.futures import ThreadPoolExecutor

    env = make(SETUPS[0])
    env.reset(seed=0)
    with ThreadPoolExecutor(1) as pool, pytest.raises(gymnasium.error.Error, match="from one thread"):
        pool.submit(env.step, np.zeros(7, np.float32)).result()
    env.step(np.zeros(7, np.float32))  # and its own thread goes on
    with ThreadPoolExecutor(1) as pool:
        pool.submit(env.close).result()  # leaves other contexts alone


@pytest.mark.parametrize("size", [(0, 84), (84, -1), (84,), 84, (84.0, 84.0), (84, 100_000), "ab", None])
def test_camera_sizes_that_are_none(size):
    with pytest.raises(gymnasium.error.Error, match="size of camera 'agentview' is"):
        gymnasium.make("envs:asd/Square-v0", cameras={"agentview": size})
