"""Every network of the registry is trained by the command line, resumed bit for bit, and acts."""

from pathlib import Path

import numpy as np
import pytest
import torch

from asd_policy import load_policy
from asd_policy.cli import main
from asd_policy.data.store import Demonstration, EpisodeStore
from asd_policy.nets import NETWORKS, TransformerConfig
from asd_policy.policies.config import PolicyConfig
from asd_policy.training.demonstrations import Demonstrations
from asd_policy.training.loop import Trainer, policy_trainer
from asd_policy.training.settings import TrainSettings

DIMS = {"robot0_eef_pos": 3, "object": 4}
SIZES = {
    "unet1d": "--network.down-dims 8 16 --network.n-groups 4 --network.diffusion-step-embed-dim 8",
    "transformer": "--network.n-layer 2 --network.n-head 2 --network.n-emb 16 --network.no-causal-attn",
}
"""Options of small networks; another's are its defaults."""
SETTINGS = "--steps 6 --batch-size 4 --warmup-steps 2 --snapshot-every 3 --log-every 1 --device cpu"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "demos.zarr"
    episodes = EpisodeStore.create(path, {key: (dim,) for key, dim in DIMS.items()}, 2, {"env_id": "asd/Square-v0"})
    generator = np.random.default_rng(0)
    for seed in range(3):
        obs = {key: generator.normal(size=(30, dim)).astype(np.float32) for key, dim in DIMS.items()}
        action = generator.uniform(-1, 1, size=(30, 2)).astype(np.float32)
        episodes.append(Demonstration(seed, obs, action, action, 30))
    return path


def new(store: Path, out: Path, name: str, octaves: int = 1) -> list[str]:
    options = f"{SETTINGS} --octaves {octaves} --network.name {name} {SIZES.get(name, '')}"
    return ["train", "new", "--data", str(store), "--out", str(out), *options.split()]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_command_line_trains_resumes_and_makes_a_policy(
    name: str, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main(new(store, whole, name)) == 0
    config = PolicyConfig.load(whole / "config.json")
    assert (config.network.name, config.octaves) == (name, 1)
    if name == "transformer":
        assert config.network == TransformerConfig(n_layer=2, n_head=2, n_emb=16, causal_attn=False)

    update = Trainer.update

    def interrupted(self: Trainer) -> torch.Tensor:
        if self.step == 4:
            raise KeyboardInterrupt
        return update(self)

    monkeypatch.setattr(Trainer, "update", interrupted)
    assert main(new(store, stopped, name)) == 130
    assert not (stopped / "ema_000006.safetensors").exists()
    monkeypatch.undo()
    assert main(["train", "resume", "--out", str(stopped), "--device", "cpu"]) == 0
    assert (stopped / "ema_000006.safetensors").read_bytes() == (whole / "ema_000006.safetensors").read_bytes()

    (whole / "model.safetensors").write_bytes((whole / "ema_000006.safetensors").read_bytes())
    policy = load_policy(whole, sampler="asd")
    policy.reset(seed=0)
    action = policy.act({key: np.full(dim, 0.3) for key, dim in DIMS.items()})
    assert action.shape == (2,)
    assert np.isfinite(action).all()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("bfloat16", [False, True])
def test_a_trainer_goes_on_bit_for_bit(name: str, bfloat16: bool, store: Path, tmp_path: Path) -> None:
    demonstrations = Demonstrations.read(store)
    network = PolicyConfig.from_dict(config_dict(name)).network
    config = demonstrations.policy_config(network, {})
    normalizer = demonstrations.fit_normalizer({})
    windows = demonstrations.windows(config, normalizer)
    settings = TrainSettings(steps=6, batch_size=4, warmup_steps=2, bfloat16=bfloat16)
    first, second = (policy_trainer(config, settings, windows, normalizer) for _ in range(2))
    before = {key: value.clone() for key, value in first.net.state_dict().items()}
    losses = [float(first.update()) for _ in range(3)]
    first.save(tmp_path / "last.pt")
    second.load(tmp_path / "last.pt")
    assert [float(first.update()) for _ in range(3)] == [float(second.update()) for _ in range(3)]
    assert np.isfinite(losses).all()
    for ours, theirs in ((first.net, second.net), (first.ema, second.ema)):
        others = theirs.state_dict()
        assert all(torch.equal(value, others[key]) for key, value in ours.state_dict().items())
    changed = [key for key, value in first.net.named_parameters() if not torch.equal(value, before[key])]
    assert changed == list(dict(first.net.named_parameters()))


def config_dict(name: str) -> dict:
    small = {
        "unet1d": {"down_dims": (8, 16), "n_groups": 4, "diffusion_step_embed_dim": 8},
        "transformer": {"n_layer": 2, "n_head": 2, "n_emb": 16},
    }
    return PolicyConfig("asd/Square-v0", DIMS, 2, network=NETWORKS[name](**small.get(name, {}))).to_dict()


def test_octaves_are_not_added_to_a_network_that_cannot_be_widened(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(new(store, run, "transformer", octaves=0)) == 0
    (run / "model.safetensors").write_bytes((run / "ema_000006.safetensors").read_bytes())
    again = [*new(store, tmp_path / "again", "transformer"), "--init", str(run)]
    assert main(again) == 1
    told = capsys.readouterr().err
    assert "has a ConditionalTransformer with 0 octaves" in told
    assert "Leave --octaves out" in told


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--network.name transfomer", "Unknown network 'transfomer'. Did you mean 'transformer'?"),
        ("--network.name=unet", "Unknown network 'unet'. Did you mean 'unet1d'?"),
    ],
)
def test_networks_that_do_not_exist(options: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "new", "--data", "x", "--out", "y", "--steps", "1", *options.split()]) == 1
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--network.name transformer --network.n-emb 18 --network.n-head 4", "network.n_emb is 18"),
        ("--network.name transformer --network.down-dims 8", "Unknown option '--network.down-dims'"),
        ("--network.n-layer 8", "Unknown option '--network.n-layer'"),
    ],
)
def test_sizes_that_do_not_fit_the_network(options: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "new", "--data", "x", "--out", "y", "--steps", "1", *options.split()])
    assert ended.value.code == 2
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "there", "not_there"),
    [
        ("", "--network.down-dims", "--network.n-layer"),
        ("--network.name transformer", "--network.n-layer", "down-dims"),
    ],
)
def test_help_shows_the_sizes_of_the_network_that_is_chosen(
    options: str, there: str, not_there: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "new", *options.split(), "--help"])
    told = capsys.readouterr().out
    assert there in told
    assert not_there not in told
    assert "unet1d, transformer" in " ".join(told.split())
