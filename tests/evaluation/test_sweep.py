"""Sweeps of a toy task: the same file from every backend, what is refused, and what breaks an episode alone."""

import json
import pickle
import random
import socket
from collections import Counter
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest

from asd_policy.errors import ConfigError, UnknownNameError, WorkerError
from asd_policy.evaluation.backends import Serial, ray_cluster
from asd_policy.evaluation.backends.processes import Processes
from asd_policy.evaluation.backends.ray_cluster import Ray
from asd_policy.evaluation.results import EpisodeKey, ResultsFile, read_records
from asd_policy.evaluation.seeds import parse_seed_set
from asd_policy.evaluation.sweep import sweep
from asd_policy.evaluation.vector import kill_envs, rollout_batch, vector_env
from asd_policy.evaluation.worker import EpisodeWorker, LoadedTask
from tests.evaluation.toy import Push, Toy, Walk, toy_plan


class Shuffled:
    """The serial backend, in another order."""

    def run(self, waves, make_worker):
        waves = list(waves)
        random.Random(0).shuffle(waves)
        yield from Serial().run(waves, make_worker)


@pytest.fixture(scope="module")
def cluster():
    """A local Ray cluster of two CPUs."""
    import ray

    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


BACKENDS = {
    "shuffled": Shuffled,
    "1 process": lambda: Processes(1),
    "2 processes": lambda: Processes(2),
    "3 processes": lambda: Processes(3),
    "ray": lambda: Ray(None),
}


@pytest.fixture(params=BACKENDS)
def backend(request):
    if request.param == "ray":
        request.getfixturevalue("cluster")
    return BACKENDS[request.param]()


def run(path, plan, backend, load):
    """Run a sweep; its records in the order in which they came."""
    with ResultsFile(path) as file:
        return list(sweep(plan, file, backend, load))


def without_timings(path):
    return [replace(record, latency=[]) for record in read_records([path])]


FAULTS = {3: "diverge"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed") / "sweep.jsonl"
    run(path, toy_plan(), Serial(), Toy(FAULTS, nan_above=1.8))
    return without_timings(path)


def test_complete_file_is_in_the_order_of_the_plan(undisturbed):
    assert [record.key for record in undisturbed] == toy_plan().keys
    assert len(undisturbed) == 20
    assert {record.noise_seed for record in undisturbed if record.env_seed == 1} == {
        record.noise_seed for record in undisturbed if (record.env_seed, record.sampler) == (1, "0.9")
    }


def test_broken_episodes_are_failures_on_record(undisturbed):
    diverged = [record for record in undisturbed if record.env_seed == 3]
    others = [record for record in undisturbed if record.env_seed != 3]
    assert {record.error for record in diverged} == {"FloatingPointError: diverged at step 3"}
    assert not any(record.success for record in diverged)
    errors = Counter((record.error or "none").split(":")[0] for record in others)
    assert errors.keys() == {"NumericalError", "none"}
    assert {record.success for record in others if record.error} == {False}
    assert {record.success for record in others if not record.error} == {True, False}


def test_every_backend_makes_the_same_file(backend, undisturbed, tmp_path):
    path = tmp_path / "sweep.jsonl"
    assert len(run(path, toy_plan(), backend, Toy(FAULTS, nan_above=1.8))) == 20
    assert without_timings(path) == undisturbed
    assert run(path, toy_plan(), backend, Toy(FAULTS)) == []  # nothing is left to do


@pytest.mark.parametrize("backend", ["shuffled", "2 processes", "ray"], indirect=True)
def test_errors_of_the_whole_sweep_are_raised(backend, tmp_path):
    with pytest.raises(ConfigError, match="the whole sweep is wrong"):
        run(tmp_path / "sweep.jsonl", toy_plan(), backend, Toy({2: "misconfigured"}))


@pytest.mark.parametrize("backend", ["shuffled", "2 processes", "ray"], indirect=True)
def test_bugs_are_raised(backend, tmp_path):
    with pytest.raises((RuntimeError, ValueError), match="could not convert string to float: 'fast'"):
        run(tmp_path / "sweep.jsonl", toy_plan(samplers=("fast",)), backend, Toy())


@pytest.mark.parametrize("backend", ["2 processes", pytest.param("ray", marks=pytest.mark.slow)], indirect=True)
def test_only_the_episode_of_a_lost_worker_is_repeated(backend, tmp_path):
    plan = toy_plan(samplers=("0.9",), repeats=1)
    run(tmp_path / "sweep.jsonl", plan, backend, Toy({2: "kill once"}, tmp_path, delay=0.01))
    run(tmp_path / "undisturbed.jsonl", plan, Serial(), Toy())
    assert without_timings(tmp_path / "sweep.jsonl") == without_timings(tmp_path / "undisturbed.jsonl")
    noise_seeds = {record.env_seed: record.noise_seed for record in read_records([tmp_path / "sweep.jsonl"])}
    starts = Counter((tmp_path / "started").read_text().splitlines())
    assert starts == {f"0.9 {noise}": 2 if seed == 2 else 1 for seed, noise in noise_seeds.items()}


@pytest.mark.parametrize("fault", ["kill", "no memory"])
def test_an_episode_that_always_takes_its_worker_down_is_given_up(fault, tmp_path):
    plan = toy_plan(samplers=("0.9",), repeats=1)
    run(tmp_path / "sweep.jsonl", plan, Processes(2), Toy({2: fault}))
    assert [key.env_seed for key in plan.missing(read_records([tmp_path / "sweep.jsonl"]))] == [2]
    run(tmp_path / "sweep.jsonl", plan, Serial(), Toy())  # the next run tries it again
    assert [record.env_seed for record in read_records([tmp_path / "sweep.jsonl"])] == [0, 1, 2, 3, 4]


def test_workers_that_are_lost_whatever_they_do(tmp_path):
    always = dict.fromkeys(range(5), "kill")
    with pytest.raises(WorkerError, match="6 workers were lost and nothing was finished, the last one killed"):
        run(tmp_path / "sweep.jsonl", toy_plan(samplers=("0.9",)), Processes(1), Toy(always))


def test_two_tasks(tmp_path):
    plan = replace(toy_plan("0-1", ("0.9",), repeats=1), checkpoints={"walk": "ab" * 32, "stroll": "cd" * 32})
    run(tmp_path / "sweep.jsonl", plan, Serial(), Toy(folder=tmp_path))
    records = read_records([tmp_path / "sweep.jsonl"])
    assert [(record.task, record.env_seed, record.checkpoint_sha256[:2]) for record in records] == [
        ("walk", 0, "ab"), ("walk", 1, "ab"), ("stroll", 0, "cd"), ("stroll", 1, "cd")
    ]  # fmt: skip
    assert len((tmp_path / "workers").read_text().split()) == 2  # each task was loaded once


def test_a_sweep_is_extended(tmp_path):
    path = tmp_path / "sweep.jsonl"
    assert len(run(path, toy_plan(samplers=("0.9",), repeats=1), Serial(), Toy())) == 5
    assert len(run(path, toy_plan(samplers=("0.5", "0.9"), repeats=1), Serial(), Toy())) == 5
    assert [record.sampler for record in read_records([path])] == ["0.5"] * 5 + ["0.9"] * 5
    assert run(path, toy_plan(samplers=("0.9",), repeats=1), Serial(), Toy()) == []
    assert len(read_records([path])) == 10


def test_another_checkpoint_or_setting_is_refused(tmp_path):
    path = tmp_path / "sweep.jsonl"
    run(path, toy_plan("0"), Serial(), Toy())
    with pytest.raises(ConfigError, match="another checkpoint for walk"):
        run(path, toy_plan(checkpoint="cd"), Serial(), Toy())
    with pytest.raises(ConfigError, match="'batch': 1"):
        run(path, toy_plan(batch=2), Serial(), Toy())
    assert len(read_records([path])) == 4


def test_stopping_finishes_what_has_begun(tmp_path):
    path, finished = tmp_path / "sweep.jsonl", []
    with ResultsFile(path) as file:
        for record in sweep(toy_plan(), file, Processes(2), Toy(delay=0.01), lambda: len(finished) >= 3):
            finished.append(record)
    assert 3 <= len(finished) <= 6
    assert {record.key for record in read_records([path])} == {record.key for record in finished}


@pytest.mark.parametrize(("make", "faults"), [(Serial, {}), (lambda: Processes(2), FAULTS)])
def test_waves_of_episodes_are_those_run_alone(make, faults, tmp_path):
    plan = toy_plan(batch=3)
    run(tmp_path / "sweep.jsonl", plan, make(), Toy(faults))
    run(tmp_path / "alone.jsonl", toy_plan(), Serial(), Toy(faults))
    alone = [replace(record, settings=dict(plan.settings)) for record in without_timings(tmp_path / "alone.jsonl")]
    assert without_timings(tmp_path / "sweep.jsonl") == alone  # the toy policy rounds alike in every batch


def test_a_wave_that_was_cut_off_is_recorded_in_full(tmp_path):
    path, plan = tmp_path / "sweep.jsonl", toy_plan("0-2", ("0.9",), batch=2)
    run(path, plan, Serial(), Toy())
    whole = path.read_bytes()
    path.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    assert len(run(path, plan, Serial(), Toy())) == 3
    assert path.read_bytes() == whole


def test_batch_needs_a_seed_for_every_environment():
    envs = vector_env(Walk, 2)
    with pytest.raises(ConfigError, match="Got 1 env seeds and 2 noise seeds for 2 environments"):
        rollout_batch(envs, Push(0.9, 7), [1], [2, 3])
    kill_envs(envs)


def test_seed_sets():
    assert parse_seed_set("smoke") == ([100000, 100001, 100002], 1)
    assert parse_seed_set("dev") == (list(range(200000, 200020)), 1)
    assert parse_seed_set("paper") == (list(range(100000, 100100)), 3)
    assert parse_seed_set("7-9") == ([7, 8, 9], 1)
    with pytest.raises(ConfigError, match="Or a seed set: smoke, dev, paper"):
        parse_seed_set("papers")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"seeds": "1,2,1"}, r"env_seeds holds \[1\] more than once"), ({"samplers": ("a", "a")}, "samplers holds"),
     ({"samplers": ()}, "nothing to run"), ({"repeats": 0}, "nothing to run"), ({"batch": 0}, "nothing to run")],
)  # fmt: skip
def test_plans_that_make_no_sense(change, message):
    with pytest.raises(ConfigError, match=message):
        toy_plan(**change)


@pytest.mark.parametrize("kind", [Processes, Ray])
def test_no_workers(kind):
    with pytest.raises(ConfigError, match="Got 0 workers"):
        kind(0)


def test_ray_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match="pip install 'asd-policy\\[ray\\]'"):
        Ray(1)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_cluster_that_does_not_answer(scheme, monkeypatch):
    monkeypatch.setattr("ray.is_initialized", lambda: False)  # whatever other tests have started
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))  # and nobody listens there
        address = f"{scheme}127.0.0.1:{reserved.getsockname()[1]}"
        with pytest.raises(ConfigError, match=r"There is no Ray cluster at .*refused"):
            Ray(1, address=address)


def test_more_threads_than_a_node_has(cluster):
    with pytest.raises(ConfigError, match="A worker has 3 threads; the cluster's largest node has 2 CPUs"):
        Ray(1, threads=3)


def test_errors_travel_between_processes():
    error = UnknownNameError("draft", "frosen", ["frozen"])
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), str(copy)) == (UnknownNameError, str(error))


def test_records_are_json(undisturbed):
    assert all(json.loads(json.dumps(record.to_json())) == record.to_json() for record in undisturbed)


class Cluster:
    """Stands in for Ray: every task fails with this cause."""

    class exceptions:  # noqa: N801
        RayError = type("RayError", (Exception,), {})
        RayTaskError = type("RayTaskError", (RayError,), {})

    class cloudpickle:  # noqa: N801
        dumps = staticmethod(lambda value: b"")

    def __init__(self, cause):
        self.cause = cause

    def remote(self, function):
        return SimpleNamespace(options=lambda **options: SimpleNamespace(remote=lambda *arguments: object()))

    def wait(self, running, num_returns):
        return running[:1], running[1:]

    def get(self, reference):
        error = self.exceptions.RayTaskError("traceback of the worker")
        error.cause = self.cause
        raise error

    def cancel(self, reference, force):
        pass


@pytest.mark.parametrize(
    ("cause", "expected"),
    [
        (None, RuntimeError),
        ("text", RuntimeError),
        (SystemExit(1), RuntimeError),
        (ConfigError("wrong"), ConfigError),
        (KeyError("x"), KeyError),
    ],
)
def test_ray_tells_why_a_worker_failed_whatever_became_of_the_cause(cause, expected):
    backend = Ray.__new__(Ray)
    backend._ray, backend._started, backend.workers, backend._options = Cluster(cause), False, 1, {}
    with pytest.raises(expected) as caught:
        list(backend.run(toy_plan().waves(frozenset()), None))
    assert "wrong" in str(caught.value) or expected is KeyError or "traceback of the worker" in str(caught.value)


def test_cluster_process_keeps_one_worker(monkeypatch):
    monkeypatch.setattr(ray_cluster, "_latest", None)
    first, second = (pickle.dumps(partial(Named, name)) for name in ("first", "second"))
    worker = ray_cluster._worker(first)
    assert ray_cluster._worker(first) is worker
    assert ray_cluster._worker(second).name == "second"
    assert worker.closed
    assert ray_cluster._worker(first) is not worker


class Named:
    def __init__(self, name):
        self.name, self.closed = name, False

    def __call__(self, wave):
        return []

    def close(self):
        self.closed = True


def test_worker_holds_one_task_and_its_policies():
    loaded, made = [], []

    def load(task):
        def make_policy(label):
            made.append((task, label))
            return Push(0.9, 7)

        loaded.append(task)
        return LoadedTask(Walk, make_policy)

    worker = EpisodeWorker(load, {"a": "", "b": ""}, {"device": "cpu", "threads": 1, "batch": 1})
    for task in ("a", "a", "b", "a"):
        for sampler in ("x", "y"):
            [record] = worker((EpisodeKey(task, sampler, 1, 0),))
            assert (record.task, record.sampler, record.error) == (task, sampler, None)
            assert len(worker._policies) <= 2
    assert loaded == ["a", "b", "a"]
    assert made == [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y"), ("a", "x"), ("a", "y")]
