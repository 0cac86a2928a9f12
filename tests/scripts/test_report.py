"""scripts/report.py as a user runs it."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gymnasium
import pytest
import torch

from asd_policy import load_policy
from asd_policy.cli.report import Arguments, find_checkpoints, main
from asd_policy.cli.tasks import TaskLoader
from asd_policy.errors import AsdPolicyError, ConfigError
from asd_policy.evaluation.filming import choose
from asd_policy.evaluation.results import Record
from asd_policy.evaluation.rollout import rollout
from asd_policy.evaluation.seeds import noise_seed
from asd_policy.importers.checkpoint import fingerprint
from asd_policy.policies.guess import fit_guess
from asd_policy.policies.guess_file import save_guess
from envs.tasks import TASKS
from tests.evaluation.records import SETTINGS, episode, sweep
from tests.tiny import tiny_checkpoint

SCRIPT = Path(__file__).parents[2] / "scripts" / "report.py"


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [str(word) for word in (sys.executable, SCRIPT, *arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def write(path: Path, records: list[Record]) -> Path:
    path.write_text("".join(json.dumps(record.to_json()) + "\n" for record in records))
    return path


def test_report_of_two_files(tmp_path):
    square = write(tmp_path / "square.jsonl", sweep("asd/Square-v0", seeds=20))
    transport = write(tmp_path / "transport.jsonl", sweep("asd/Transport-v0", ("ddpm", "asd:path:16"), seeds=5))
    done = run(square, transport, "--out", tmp_path / "report")
    assert done.returncode == 0, done.stderr
    markdown = (tmp_path / "report" / "report.md").read_text()
    assert markdown in done.stdout
    assert markdown.count("## asd/") == 2
    assert (tmp_path / "report" / "index.html").read_text().count("<h2") == 2


def test_report_of_an_old_file_stays_the_same(tmp_path):
    """Regenerate report.md with this command where the table's format is to change."""
    golden = Path(__file__).parents[1] / "goldens" / "results"
    done = run(golden / "transport.jsonl", "--baseline", "ddpm:compile", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.md").read_text() == (golden / "report.md").read_text()


def test_episodes_recorded_without_a_first_guess_are_filmed_without_it(tmp_path):
    task = TASKS["square"]
    checkpoint = tiny_checkpoint(tmp_path / "tiny", task.obs_dims, task.action_dim)
    plain, policy = fingerprint(checkpoint), load_policy(checkpoint)
    cond = torch.randn(80, policy.config.global_cond_dim, generator=torch.Generator().manual_seed(0))
    save_guess(checkpoint / "guess.safetensors", fit_guess(cond, torch.zeros(80, 16, 7)), policy.network, 80)
    for digest, guess in ((plain, False), (fingerprint(checkpoint), True)):
        record = replace(episode(policy.config.env_id, "asd:path:16", 7, 0, True), checkpoint_sha256=digest)
        found = find_checkpoints([record], [checkpoint])[digest]
        assert found == (checkpoint, False, guess)
        checkpoints = {record.task: (found.path, digest)}
        loaded = TaskLoader(checkpoints, found.windows, SETTINGS, guess=found.guess)(record.task)
        assert (loaded.make_policy("asd:path:16").guess is not None) == guess


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"margin": 0}, "margin is 0"),
        ({"videos": ("square:ddpm:3",)}, "no episode 'square:ddpm:3'; expected TASK:SAMPLER:SEED[:REPEAT]"),
        ({"videos": ("square:asd:path:16:7",)}, "broke (OSError: x)"),
        ({"videos": ("1",)}, "name the checkpoint whose SHA-256 is"),
    ],
)
def test_bad_arguments(tmp_path, arguments, message):
    broken = episode("square", "asd:path:16", 7, 0, False, error="OSError: x")
    results = write(tmp_path / "results.jsonl", [episode("square", "ddpm", 7, 0, True), broken])
    with pytest.raises(ConfigError, match=re.escape(message)):
        main(Arguments((results,), tmp_path / "report", **arguments))
    assert not (tmp_path / "report").exists()


def test_file_that_cannot_be_read(tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"task": 1}\n')
    done = run(tmp_path / "bad.jsonl", "--out", tmp_path / "report")
    assert done.returncode == 1
    assert "bad.jsonl, line 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_choice_of_episodes():
    records = sweep("a", ("ddpm", "asd:path:16"), seeds=40, repeats=2)
    chosen = choose(records[::-1], ("2",))
    assert len(chosen) == 2 * 2 * 2  # samplers, outcomes, films
    firsts = [r for r in records if r.sampler == "ddpm" and not r.success][:2]
    assert [r for r in chosen if r.sampler == "ddpm" and not r.success] == firsts
    [one, other] = choose(records, ("a:asd:path:16:100003:1", "a:ddpm:100005"))
    assert (one.sampler, one.env_seed, one.repeat) == ("asd:path:16", 100003, 1)
    assert (other.sampler, other.env_seed, other.repeat) == ("ddpm", 100005, 0)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_films(tmp_path, monkeypatch):
    """Real episodes of a policy with random weights: filmed they are the same, with other noise they are not."""
    task = TASKS["square"]
    checkpoint = tiny_checkpoint(tmp_path / "tiny", task.obs_dims, task.action_dim)
    policy = load_policy(checkpoint, sampler="ddim", num_steps=1)
    with gymnasium.make(f"envs:{task.env_id}") as env:
        episodes = [rollout(env, policy, seed, noise_seed(seed, 0)) for seed in (100000, 100001)]
    common = {"task": task.env_id, "sampler": "ddim:1", "repeat": 0, "error": None, "software": {}}
    common |= {"checkpoint_sha256": fingerprint(checkpoint), "settings": SETTINGS}
    same, other = (Record(**episode.to_json(), **common) for episode in episodes)
    changed = Record(**other.to_json() | {"noise_seed": 5})
    results = write(tmp_path / "results.jsonl", [same, changed])
    monkeypatch.setattr("asd_policy.evaluation.videos.STRIDE", 100)  # rendering takes its time
    arguments = Arguments((results,), tmp_path / "report", videos=("2",), checkpoints=(checkpoint,))
    assert main(arguments) == 0
    films = sorted((tmp_path / "report" / "videos").glob("*.mp4"))
    assert [film.name for film in films] == [f"asd-Square-v0-ddim-1-{seed}-0.mp4" for seed in (100000, 100001)]
    page = (tmp_path / "report" / "index.html").read_text()
    assert all(f'href="videos/{film.name}"' in page for film in films)
    assert page.count("differ from the recorded ones") == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"{}",
        b'{"provenance": {}, "summary": []}\n',  # results.json of evaluate
        b'{"sampler": "ddpm", "env_seed": 1}\n',  # episodes.jsonl of evaluate before it wrote records
        b"\x89PNG\r\n\x1a\n\0\0",
        b"a,b\n1,2\n",
        b"[" * 50_000 + b"\n",
        b"\xff\xfe\n",
    ],
)
def test_files_of_other_formats(tmp_path, content):
    (tmp_path / "other").write_bytes(content)
    with pytest.raises(AsdPolicyError, match=r"no finished episode|line 1 is not (an episode|a JSON object)"):
        main(Arguments((tmp_path / "other",), tmp_path / "report"))
    with pytest.raises(AsdPolicyError, match="Cannot read "):
        main(Arguments((tmp_path,), tmp_path / "report"))


def test_report_of_one_episode(tmp_path):
    results = write(tmp_path / "results.jsonl", [episode("square", "ddpm", 7, 0, True)])
    assert main(Arguments((results,), tmp_path / "report")) == 0
    assert "1/1" in (tmp_path / "report" / "report.md").read_text()


def test_report_of_episodes_that_all_broke(tmp_path):
    fields = {"length": 0, "latency": [], "rounds": [], "evaluations": [], "acceptance": [], "error": "OSError: x"}
    results = [episode("square", sampler, 7, 0, False, **fields) for sampler in ("ddpm", "asd:path:16")]
    path = write(tmp_path / "results.jsonl", results)
    assert main(Arguments((path,), tmp_path / "report")) == 0


def test_report_where_it_cannot_be_written(tmp_path):
    results = write(tmp_path / "results.jsonl", [episode("square", "ddpm", 7, 0, True)])
    with pytest.raises(AsdPolicyError, match="Cannot write the report"):
        main(Arguments((results,), results))


def test_number_of_films_is_in_ascii_digits():
    with pytest.raises(ConfigError, match="hold no episode '٣'"):
        choose(sweep(seeds=2), ("٣",))
