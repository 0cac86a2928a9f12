"""Environments that are not ours: how they are adapted, what is refused, and whole evaluations of them."""

import json
import subprocess
import sys
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from asd_policy.cli.bench import Arguments as BenchArguments
from asd_policy.cli.bench import main as bench
from asd_policy.cli.calibrate import Arguments as CalibrateArguments
from asd_policy.cli.calibrate import main as calibrate
from asd_policy.cli.evaluate import Arguments as EvaluateArguments
from asd_policy.cli.evaluate import main as evaluate
from asd_policy.cli.sweep import Arguments as SweepArguments
from asd_policy.cli.sweep import main as sweep
from asd_policy.core.drafts import DRAFTS
from asd_policy.errors import ConfigError
from asd_policy.evaluation.environments import make_env
from asd_policy.evaluation.results import read_records
from asd_policy.evaluation.rollout import rollout
from asd_policy.evaluation.vector import kill_envs, rollout_batch, vector_env
from tests.tiny import tiny_checkpoint

ROOT = Path(__file__).parents[2]
REACH, ENDLESS = "tests.evaluation.outside:Reach-v0", "tests.evaluation.outside:Endless-v0"
MODULES = ("tests.evaluation.outside",)


class Home:
    """Walks towards the origin, with noise, and further than the environment allows at once."""

    stats = None

    def reset(self, seed=None, seeds=None):
        self.rngs = [np.random.default_rng(one) for one in ([seed] if seeds is None else seeds)]
        self.batched = seeds is not None

    def act(self, obs):
        noise = np.stack([rng.normal(0, 0.1, 2) for rng in self.rngs])
        actions = (-9 * obs["state"] + noise).astype(np.float32)
        return actions if self.batched else actions[0]


def test_box_observations_get_a_key_and_actions_are_clipped():
    env = make_env(REACH)
    obs, _ = env.reset(seed=0)
    assert list(obs) == list(env.observation_space) == ["state"]
    assert env.observation_space.contains(obs)
    after, reward, terminated, truncated, info = env.step(np.array([50, -1], np.float32))
    assert after["state"] - obs["state"] == pytest.approx([0.2, -0.1])
    assert (type(reward), terminated, truncated, info["success"]) == (float, False, False, False)


def test_nested_observations_are_flattened():
    env = make_env(REACH, options={"observes": "nested"})
    obs, _ = env.reset(seed=0)
    assert list(obs) == ["agent/pos", "step"]
    assert env.observation_space.contains(obs)


def test_images_get_a_key_of_their_own():
    obs, _ = make_env(REACH, options={"observes": "pixels"}).reset()
    assert {key: value.shape for key, value in obs.items()} == {"pixels": (8, 8, 3)}


def test_our_environments_are_used_as_they_are():
    env = make_env("asd/Square-v0")
    assert "_Adapted" not in str(env)
    env.close()


@pytest.mark.parametrize(
    ("says", "success"), [("is_success", None), ("success", None), ("won", "won"), (None, "terminated")]
)
def test_success_is_found_where_it_is_said(says, success):
    episode = rollout(make_env(REACH, success=success, options={"says": says}), Home(), 0, 0)
    assert episode.success
    assert 1 <= episode.length < 20


@pytest.mark.parametrize(("says", "told"), [("won", "holds won;"), (None, "holds nothing;")])
def test_environment_that_does_not_report_success_is_refused(says, told):
    with pytest.raises(
        ConfigError, match=f"{told} expected success or is_success.*--success KEY.*--success terminated"
    ):
        rollout(make_env(REACH, options={"says": says}), Home(), 0, 0)


def test_time_limits():
    with pytest.raises(ConfigError, match=r"no time limit.*--max-steps"):
        make_env(ENDLESS)
    with pytest.raises(ConfigError, match="0 steps; expected 1 or more"):
        make_env(REACH, max_steps=0)

    class Stay(Home):
        def act(self, obs):
            return np.zeros(2, np.float32)

    for env_id, steps in ((ENDLESS, 7), (REACH, 5)):
        assert rollout(make_env(env_id, max_steps=steps), Stay(), 1, 0).length == steps
    assert rollout(make_env(REACH), Stay(), 1, 0).length == 20


@pytest.mark.parametrize(
    ("env_id", "options", "told"),
    [
        (REACH, {"observes": "number"}, "observes Discrete"),
        ("CartPole-v1", {}, "takes actions of Discrete"),
        ("no_such_module:Reach-v0", {}, "There is no module 'no_such_module'"),
        ("no_such_namespace/Reach-v0", {}, "MODULE:no_such_namespace/Reach-v0"),
        ("no_such_name-v0", {}, "MODULE:no_such_name-v0"),
        ("pip.__main__:Reach-v0", {}, "'pip.__main__' is not a module name"),
        ("..relative:Reach-v0", {}, r"'..relative' is not a module name"),
    ],
)
def test_environments_that_cannot_be_used(env_id, options, told):
    with pytest.raises(ConfigError, match=told):
        make_env(env_id, options=options)


def test_unknown_names_list_what_exists():
    with pytest.raises(gymnasium.error.Error, match="Square"):
        make_env("asd/Squire-v0")


def test_environment_that_does_not_render():
    with pytest.raises(ConfigError, match="cannot render depth_array; it has rgb_array"):
        make_env(REACH, "depth_array")


def test_batches_agree_with_single_episodes():
    seeds, noise_seeds = [0, 1, 2], [5, 6, 7]
    envs = vector_env(_reach, 3)
    together = rollout_batch(envs, Home(), seeds, noise_seeds)
    kill_envs(envs)
    alone = [rollout(_reach(), Home(), seed, noise) for seed, noise in zip(seeds, noise_seeds, strict=True)]
    assert [episode.length for episode in together] == [episode.length for episode in alone]
    assert all(episode.success for episode in together)


def _reach():
    return make_env(REACH)


def checkpoint_for(folder, env_id, obs_keys):
    """A tiny policy with random weights for another environment."""
    checkpoint = tiny_checkpoint(folder, obs_keys, 2)
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"env_id": env_id, "action_bound": None}))
    return checkpoint


def test_evaluate_and_sweep_take_any_environment(tmp_path, capsys):
    checkpoint = checkpoint_for(tmp_path / "tiny", REACH, {"state": 2})
    out = tmp_path / "out"
    assert evaluate(EvaluateArguments(checkpoint, ("ddim:2", "asd:path:4"), "0,1", out=out, modules=MODULES)) == 0
    records = read_records([out / "episodes.jsonl"])
    assert [(record.task, record.sampler, record.env_seed) for record in records] == [
        (REACH, sampler, seed) for sampler in ("ddim:2", "asd:path:4") for seed in (0, 1)
    ]
    assert {record.error for record in records} == {None}
    assert sorted(file.name for file in out.glob("*.mp4")) == ["asd-path-4-seed0.mp4", "ddim-2-seed0.mp4"]
    for batch, workers in ((1, 1), (2, 1)):
        file = tmp_path / f"{batch}.jsonl"
        arguments = SweepArguments(
            (checkpoint,), ("ddim:2",), file, "0,1", workers=workers, batch=batch, modules=MODULES
        )
        assert sweep(arguments) == 0
        again = read_records([file])
        assert [record.success for record in again] == [record.success for record in records[:2]]
        assert [record.length for record in again] == [record.length for record in records[:2]]
    capsys.readouterr()


@pytest.mark.parametrize(
    "run",
    [
        lambda checkpoint, out: evaluate(EvaluateArguments(checkpoint, ("ddpm",), "0", out=out, modules=MODULES)),
        lambda checkpoint, out: sweep(SweepArguments((checkpoint,), ("ddpm",), out, "0")),
        lambda checkpoint, out: bench(BenchArguments(checkpoint, ("ddpm",), conditions=1, out=out)),
        lambda checkpoint, out: calibrate(CalibrateArguments(checkpoint)),
    ],
    ids=["evaluate", "sweep", "bench", "calibrate"],
)
def test_modules_that_a_checkpoint_names_are_imported_with_consent_alone(run, tmp_path):
    checkpoint = checkpoint_for(tmp_path / "tiny", "this:Reach-v0", {"state": 2})  # a module that prints when imported
    assert "this" not in sys.modules
    with pytest.raises(ConfigError, match=r"module this registers. If you trust that module.*--modules this"):
        run(checkpoint, tmp_path / "out")
    assert "this" not in sys.modules


def test_a_sweep_takes_the_drafts_of_a_module(tmp_path, monkeypatch):
    code = "from asd_policy.core.drafts import DRAFTS, ReuseDraft\nDRAFTS['of_a_module'] = ReuseDraft\n"
    (tmp_path / "a_module_of_drafts.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")  # for the worker
    monkeypatch.syspath_prepend(tmp_path)
    checkpoint = checkpoint_for(tmp_path / "tiny", REACH, {"state": 2})
    file, samplers = tmp_path / "swept.jsonl", ("asd:of_a_module:4", "asd:reuse:4")
    modules = (*MODULES, "a_module_of_drafts")
    try:
        assert sweep(SweepArguments((checkpoint,), samplers, file, "0", workers=1, modules=modules)) == 0
    finally:
        DRAFTS.pop("of_a_module", None)
    mine, reuse = read_records([file])
    assert mine.action_sha256 == reuse.action_sha256


def test_options_are_recorded_only_if_given(tmp_path, capsys):
    checkpoint = checkpoint_for(tmp_path / "tiny", ENDLESS, {"state": 2})
    with pytest.raises(ConfigError, match="no time limit"):
        evaluate(EvaluateArguments(checkpoint, ("ddim:2",), "0", out=tmp_path / "out", modules=MODULES))
    assert not (tmp_path / "out").exists()
    given = EvaluateArguments(
        checkpoint, ("ddim:2",), "0", out=tmp_path / "out", max_steps=5, success="terminated", modules=MODULES
    )
    assert evaluate(given) == 0
    [record] = read_records([tmp_path / "out" / "episodes.jsonl"])
    expected = {"device": "cpu", "threads": 1, "batch": 1, "success": "terminated", "max_steps": 5}
    assert (record.settings, record.length) == (expected, 5)
    capsys.readouterr()


RECORD = """
import sys
import numpy as np
from asd_policy.data.store import Demonstration, EpisodeStore
from asd_policy.evaluation.environments import make_env

env_id, path = sys.argv[1:]
env = make_env(env_id)
shapes = {key: space.shape for key, space in env.observation_space.items()}
store = EpisodeStore.create(path, shapes, env.action_space.shape[0], {"env_id": env_id, "action_kind": "other"})
for seed in range(4):
    obs, _ = env.reset(seed=seed)
    env.action_space.seed(seed)
    steps = []
    for _ in range(20):
        steps.append((obs, env.action_space.sample().astype(np.float32)))
        obs, _, terminated, truncated, info = env.step(steps[-1][1])
        if info["success"] or terminated or truncated:
            break
    observed = {key: np.stack([seen[key] for seen, _ in steps]) for key in shapes}
    actions = np.stack([action for _, action in steps])
    store.append(Demonstration(seed, observed, actions, actions, len(steps)))
store.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("env_id", [REACH, "gym_pusht:gym_pusht/PushT-v0"])
def test_record_train_evaluate_sweep(env_id, tmp_path):
    """From nothing to results, with the commands alone."""
    if env_id.startswith("gym_pusht"):
        pytest.importorskip("gym_pusht")

    def run(*command):
        done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    run("-c", RECORD, env_id, tmp_path / "data.zarr")
    sizes = ("--steps", 4, "--network.down-dims", 8, 16, "--batch-size", 8, "--network.diffusion-step-embed-dim", 8)
    run("scripts/train.py", "new", "--data", tmp_path / "data.zarr", "--out", tmp_path / "run", *sizes)
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "config.json").write_bytes((tmp_path / "run" / "config.json").read_bytes())
    [weights] = (tmp_path / "run").glob("ema_*.safetensors")
    save_file(load_file(weights), checkpoint / "model.safetensors")
    common = ("--samplers", "ddim:2", "--seeds", "0", "--max-steps", 10, "--modules", env_id.partition(":")[0])
    run("scripts/evaluate.py", "--checkpoint", checkpoint, "--out", tmp_path / "out", *common)
    run("scripts/sweep.py", "--checkpoints", checkpoint, "--out", tmp_path / "sweep.jsonl", "--workers", 1, *common)
    [evaluated] = read_records([tmp_path / "out" / "episodes.jsonl"])
    [swept] = read_records([tmp_path / "sweep.jsonl"])
    assert (evaluated.error, evaluated.action_sha256) == (None, swept.action_sha256)
    assert list((tmp_path / "out").glob("*.mp4"))
