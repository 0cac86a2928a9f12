"""The registry of tasks: picklable specs, an id for every kind of actions, tasks of other packages."""

import pickle
import subprocess
import sys
from dataclasses import replace

import gymnasium
import pytest

import envs
from envs.spec import ACTIONS, TaskSpec
from envs.tasks import TASKS


@pytest.mark.parametrize("name", TASKS)
def test_a_spec_can_be_pickled(name):
    assert pickle.loads(pickle.dumps(TASKS[name])) == TASKS[name]


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_an_id_for_every_kind_of_actions(name, actions):
    task = TASKS[name]
    assert task.name == name
    spec = gymnasium.spec(task.variant(actions))
    assert spec.kwargs == {"task": name, "actions": actions}
    assert spec.max_episode_steps == task.horizon


def test_the_ids_are_those_that_others_use():
    ids = {name: [task.variant(actions) for actions in ACTIONS] for name, task in TASKS.items()}
    assert ids["square"] == ["asd/Square-v0", "asd/SquareBasePose-v0", "asd/SquareWorldPose-v0"]
    assert ids["transport"] == ["asd/Transport-v0", "asd/TransportBasePose-v0", "asd/TransportWorldPose-v0"]
    assert ids["tool_hang"] == ["asd/ToolHang-v0", "asd/ToolHangBasePose-v0", "asd/ToolHangWorldPose-v0"]


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize("first", ["import envs", "from asd_policy import load_policy"])
def test_gymnasium_knows_the_tasks_after(first):
    make = "import gymnasium\nenv = gymnasium.make('asd/Square-v0')\nprint(env.reset(seed=1)[0]['object'].shape)"
    done = run(f"{first}\n{make}")
    assert (done.returncode, done.stdout) == (0, "(14,)\n"), done.stderr


def test_another_package_called_envs_is_left_alone(tmp_path):
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").write_text("raise RuntimeError('not for asd_policy')\n")
    done = run(f"import sys\nsys.path.insert(0, {str(tmp_path)!r})\nfrom asd_policy import load_policy")
    assert done.returncode == 0, done.stderr


def test_specs_are_read_without_the_simulator():
    code = (
        "import sys, envs.tasks\nfrom envs.tasks import TASKS\nassert TASKS['square'].expert\n"
        "print({name.split('.')[0] for name in sys.modules} & {'mujoco', 'robosuite', 'torch', 'asd_policy'})"
    )
    done = run(code)
    assert (done.returncode, done.stdout) == (0, "set()\n"), done.stderr


@pytest.fixture
def lift():
    """A task of another package, forgotten after the test."""
    task = TaskSpec("lift", "elsewhere/Lift-v0", "Lift", object_dim=10, horizon=150)
    envs.register(task)
    yield task
    del TASKS["lift"]
    for actions in ACTIONS:
        del gymnasium.registry[task.variant(actions)]


def test_a_task_of_another_package_is_found_by_its_id(lift):
    from envs.experts import make_expert

    envs.register(replace(lift))  # the same once more, as when a module is imported again
    env = gymnasium.make("elsewhere/Lift-v0")
    obs, _ = env.reset(seed=1)
    assert env.observation_space.contains(obs)
    assert env.unwrapped.task == lift
    with pytest.raises(gymnasium.error.Error, match=r"'lift' has no expert; these have: square"):
        make_expert(env, None)
    env.close()


def test_names_and_ids_that_are_taken_are_refused(lift):
    before = dict(TASKS)
    with pytest.raises(gymnasium.error.Error, match="the name 'lift' is taken"):
        envs.register(replace(lift, horizon=100))
    with pytest.raises(gymnasium.error.Error, match=r"asd/Square-v0, asd/SquareBasePose-v0.* is taken"):
        envs.register(replace(lift, name="other", env_id="asd/Square-v0"))
    assert before == TASKS


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"env_id": "elsewhere/Lift"}, "env_id is 'elsewhere/Lift'; expected a version at its end"),
        ({"env_id": "else where"}, "Malformed environment ID"),
        ({"object_dim": 0}, "object_dim is 0; expected at least 1"),
        ({"horizon": 0}, "horizon is 0; expected at least 1"),
        ({"robots": ()}, "robots is (); expected a tuple of names"),
        ({"robots": "Panda"}, "robots is 'Panda'; expected a tuple of names"),
        ({"expert": "square"}, "expert is 'square'; expected expert(sim, rng)"),
        ({"misses": 0.5}, "misses is 0.5; expected misses(sim, rate, rng)"),
    ],
)
def test_a_spec_that_makes_no_task_is_refused(wrong, message):
    with pytest.raises(gymnasium.error.Error) as caught:
        replace(TASKS["square"], **wrong)
    assert message in str(caught.value)
