"""The policy in lerobot: the same weights, the same law, fewer network calls, and its history. Needs lerobot."""

import json
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution

import pytest

pytest.importorskip("lerobot", reason="lerobot is not installed; it has an environment of its own, see the README")

import small
import torch
from laws import ACCEPT, REJECT, largest_z, smallest_p
from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot_policy_asd import AsdDiffusionConfig
from lerobot_policy_asd.convert import convert
from small import CAMERAS, STATES
from torch import Tensor

from asd_policy import accelerate
from asd_policy.errors import ConfigError, ObservationError, UnknownNameError


def chunk(made, batch: dict[str, Tensor], seed: int = 0, **arguments) -> Tensor:
    torch.manual_seed(seed)
    return made.predict_action_chunk(batch, **arguments)


@pytest.fixture
def counted():
    """A function: policy -> a list that grows with each call of its network."""

    def count(made) -> list[int]:
        calls: list[int] = []
        made.diffusion.unet.register_forward_hook(lambda module, inputs, output: calls.append(len(inputs[0])))
        return calls

    return count


def stock_chunk(stock, *steps: dict[str, Tensor], seed: int = 0) -> Tensor:
    """The chunk that lerobot's own select_action plans after these observations, (B, n_action_steps, A)."""
    stock.reset()
    for step in steps[:-1]:
        stock.select_action(dict(step))
        stock._queues["action"].clear()
    torch.manual_seed(seed)
    first = stock.select_action(dict(steps[-1]))
    return torch.stack([first, *stock._queues["action"]], dim=1)


class TestRegistration:
    def test_by_name(self):
        assert PreTrainedConfig.get_choice_class("asd_diffusion") is AsdDiffusionConfig
        assert small.config("asd_diffusion").type == "asd_diffusion"
        assert small.config("diffusion").type == "diffusion"
        assert get_policy_class("asd_diffusion").__name__ == "AsdDiffusionPolicy"

    def test_discovered_by_lerobot_s_commands(self):
        try:
            distribution("lerobot_policy_asd")
        except PackageNotFoundError:
            pytest.skip("lerobot_policy_asd is not installed")
        code = (
            "from lerobot.utils.import_utils import register_third_party_plugins as register; register()\n"
            "from lerobot.configs.policies import PreTrainedConfig\n"
            "print('asd_diffusion' in PreTrainedConfig.get_known_choices())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip().endswith("True")

    def test_processors_are_lerobot_s(self):
        made = [
            make_pre_post_processors(small.config(kind), dataset_stats=None) for kind in ("diffusion", "asd_diffusion")
        ]
        assert [[type(step) for step in pipeline.steps] for pipeline in made[0]] == [
            [type(step) for step in pipeline.steps] for pipeline in made[1]
        ]


class TestConfiguration:
    @pytest.mark.parametrize(
        ("changes", "error", "told"),
        [
            ({"draft": "pth"}, UnknownNameError, "Did you mean 'path'"),
            ({"capture": "graph"}, UnknownNameError, "capture 'graph'"),
            ({"window": 0}, ConfigError, "window is 0"),
            ({"warm_start": None}, ConfigError, "warm_start is None"),
            ({"noise_scheduler_type": "DDIM"}, ConfigError, "noise_scheduler_type is 'DDIM'; expected 'DDPM'"),
            ({"prediction_type": "velocity"}, ValueError, "prediction_type"),  # lerobot's own
            ({"noise_scheduler_type": "PNDM"}, ValueError, "noise_scheduler"),
        ],
    )
    def test_refusals(self, changes, error, told):
        with pytest.raises(error, match=told):
            small.config("asd_diffusion", **changes)

    def test_command_line(self, tmp_path):
        folder = small.save(small.policy("asd_diffusion", draft="reuse", window=None), tmp_path / "folder")
        read = PreTrainedConfig.from_pretrained(folder)
        assert isinstance(read, AsdDiffusionConfig)
        assert (read.draft, read.window, read.capture, read.warm_start) == ("reuse", None, "eager", True)
        overrides = ["--window=8", "--draft=frozen", "--warm_start=false"]
        read = PreTrainedConfig.from_pretrained(folder, cli_overrides=overrides)
        assert (read.draft, read.window, read.warm_start) == ("frozen", 8, False)
        with pytest.raises(Exception, match="argument") as caught:
            PreTrainedConfig.from_pretrained(folder, cli_overrides=["--draft=pth"])
        assert "Did you mean 'path'" in str(caught.value.__cause__)


class TestSameWeights:
    @pytest.mark.parametrize("features", [STATES, CAMERAS], ids=["states", "cameras"])
    def test_a_converted_folder_without_speculation_draws_lerobot_s_chunk(self, tmp_path, features):
        stock = small.policy("diffusion", features)
        convert(small.save(stock, tmp_path / "stock"), tmp_path / "ours")
        ours = accelerate(get_policy_class("asd_diffusion").from_pretrained(tmp_path / "ours"), "ddpm")
        assert ours.state_dict().keys() == stock.state_dict().keys()
        steps = [small.observation(step, 2, features) for step in range(2)]
        expected = stock_chunk(stock, *steps)
        for step in steps[:-1]:
            ours.predict_action_chunk(dict(step))
        got = chunk(ours, dict(steps[-1]))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
        assert ours.asd.stats.rounds.tolist() == [20, 20]

    @pytest.mark.parametrize(
        "changes", [{"prediction_type": "sample"}, {"num_inference_steps": 10}, {"n_obs_steps": 1}]
    )
    def test_other_chains(self, changes):
        stock = small.policy("diffusion", **changes)
        ours = accelerate(small.policy("asd_diffusion", **changes), "ddpm")
        step = small.observation()
        torch.testing.assert_close(chunk(ours, step), stock_chunk(stock, step), rtol=0, atol=1e-5)

    def test_noise_is_where_the_chain_starts(self):
        ours = small.policy("asd_diffusion")
        step, noise = small.observation(), torch.randn(1, 8, 2, generator=torch.Generator().manual_seed(5))
        one, other, without = (chunk(ours, step, noise=start) for start in (noise, noise, None))
        assert torch.equal(one, other)
        assert not torch.equal(one, without)

    def test_what_training_saves_is_what_was_trained(self, tmp_path):
        ours = small.policy("asd_diffusion")
        before = chunk(ours, small.observation())  # the loop is replaced from here on
        folder = small.save(ours, tmp_path / "folder")
        kind = json.loads((folder / "config.json").read_text())["type"]
        again = get_policy_class(kind).from_pretrained(folder)
        assert torch.equal(chunk(again, small.observation()), before)


class TestSampling:
    def test_fewer_calls_of_the_network(self, counted):
        ours = small.policy("asd_diffusion")
        calls = counted(ours)
        chunk(ours, small.observation(batch=3))
        assert len(calls) == int(ours.asd.stats.rounds.max()) < 20

    def test_seeds(self):
        def episode(seed: int) -> Tensor:
            ours = small.policy("asd_diffusion")
            torch.manual_seed(seed)
            return torch.stack([ours.select_action(small.observation(step)) for step in range(10)])

        assert torch.equal(episode(1), episode(1))
        assert not torch.equal(episode(1), episode(2))

    def test_select_action_starts_warm(self):
        chunks = []
        for warm_start in (True, False):
            made = small.policy("asd_diffusion", warm_start=warm_start)
            torch.manual_seed(0)
            actions = [made.select_action(small.observation(step)) for step in range(8)]
            chunks.append(torch.stack(actions).view(2, 4, 2))
        assert torch.equal(chunks[0][0], chunks[1][0])
        assert not torch.equal(chunks[0][1], chunks[1][1])  # other guesses, so other chunks of the same law

    @pytest.mark.parametrize("draft", ["path", "reuse", "frozen"])
    def test_law(self, draft):
        """2,000 chunks of a trained policy, beside lerobot's own loop with the same weights."""
        ours = trained(draft=draft, window=6)
        stock = small.policy("diffusion")
        stock.load_state_dict(ours.state_dict())
        step = small.history(*[small.observation(7)] * 2)
        step = {name: value.expand(2000, *value.shape[1:]) for name, value in step.items()}
        x = chunk(ours, step, seed=1)
        torch.manual_seed(2)
        with torch.no_grad():
            y = stock.diffusion.generate_actions(step)
        assert float(ours.asd.stats.rounds.float().mean()) < 16
        assert smallest_p(x, y) > ACCEPT
        assert largest_z(x, y) < 5

    def test_the_law_test_sees_another_chain(self):
        stock, other = small.policy("diffusion"), small.policy("diffusion", num_inference_steps=2)
        for made in (stock, other):
            made.load_state_dict(trained(draft="path").state_dict())
        step = small.history(*[small.observation(7)] * 2)
        step = {name: value.expand(2000, *value.shape[1:]) for name, value in step.items()}
        torch.manual_seed(3)
        with torch.no_grad():
            x, y = (made.diffusion.generate_actions(step) for made in (stock, other))
        assert smallest_p(x, y) < REJECT


_TRAINED: dict[str, Tensor] = {}


def trained(**changes):
    """A policy trained by lerobot's loss on chunks with two modes. The weights are made once."""
    made = small.policy("asd_diffusion", **changes)
    if not _TRAINED:
        generator = torch.Generator().manual_seed(0)
        optimizer = torch.optim.Adam(made.get_optim_params(), lr=2e-3)
        made.train()
        torch.manual_seed(0)
        for _ in range(200):
            side = torch.randint(0, 2, (64, 1, 1), generator=generator) * 1.2 - 0.6
            action = side + 0.1 * torch.randn(64, 8, 2, generator=generator)
            batch = {name: torch.rand(64, 2, *shape.shape, generator=generator) for name, shape in STATES.items()}
            loss, _ = made.forward({**batch, "action": action, "action_is_pad": torch.zeros(64, 8, dtype=torch.bool)})
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        _TRAINED.update(made.state_dict())
    made.load_state_dict(_TRAINED)
    return made.eval()


class TestTrainingBetweenEvaluations:
    def test_training_goes_on_and_new_weights_are_sampled(self):
        ours = small.policy("asd_diffusion")
        names = list(ours.state_dict())
        before = chunk(ours, small.observation())
        assert list(ours.state_dict()) == names
        ours.train()
        ours.reset()
        with pytest.raises(ConfigError, match="training mode"):
            ours.select_action(small.observation())
        with torch.no_grad():
            for parameter in ours.parameters():
                parameter.mul_(1.1)
        ours.eval()
        ours.reset()
        after = chunk(ours, small.observation())
        assert not torch.equal(before, after)
        fresh = small.policy("asd_diffusion")
        fresh.load_state_dict(ours.state_dict())
        assert torch.equal(chunk(fresh, small.observation()), after)


class TestHistory:
    @pytest.mark.parametrize("features", [STATES, CAMERAS], ids=["states", "cameras"])
    def test_single_observations_give_select_action_s_chunk(self, features):
        one, other = (small.policy("asd_diffusion", features, warm_start=False) for _ in range(2))
        for step in range(9):  # select_action plans at steps 0, 4 and 8
            observed = small.observation(step, features=features)
            torch.manual_seed(step)
            first = one.select_action(dict(observed))
            planned = chunk(other, dict(observed), seed=step)
            if step % 4 == 0:
                whole = torch.stack([first, *one._queues["action"]], dim=1)
                torch.testing.assert_close(planned, whole, rtol=0, atol=0)
        assert step == 8

    def test_reset_forgets(self):
        ours = small.policy("asd_diffusion")
        first = chunk(ours, small.observation(1))
        second = chunk(ours, small.observation(1))
        assert torch.equal(first, second)  # the same history: observation 1 twice
        chunk(ours, small.observation(2))
        assert not torch.equal(chunk(ours, small.observation(1)), first)
        ours.reset()
        assert torch.equal(chunk(ours, small.observation(1)), first)

    @pytest.mark.parametrize("features", [STATES, CAMERAS], ids=["states", "cameras"])
    def test_whole_histories_stand_for_themselves(self, features):
        ours = small.policy("asd_diffusion", features)
        steps = [small.observation(step, features=features) for step in range(2)]
        whole = chunk(ours, small.history(*steps))
        chunk(ours, steps[0])
        torch.testing.assert_close(chunk(ours, steps[1]), whole, rtol=0, atol=0)
        chunk(ours, small.history(*steps[::-1]))  # leaves the history alone
        chunk(ours, steps[0])
        torch.testing.assert_close(chunk(ours, steps[1]), whole, rtol=0, atol=0)

    def test_actions_in_the_batch_are_no_observation(self):
        ours = small.policy("asd_diffusion")
        expected = chunk(ours, small.observation())
        ours.reset()
        batch = {**small.observation(), "action": torch.zeros(1, 2)}
        assert torch.equal(chunk(ours, batch), expected)
        assert "action" in batch

    @pytest.mark.parametrize("act", ["select_action", "predict_action_chunk"])
    @pytest.mark.parametrize("features", [STATES, CAMERAS], ids=["states", "cameras"])
    def test_a_missing_observation(self, act, features):
        ours = small.policy("asd_diffusion", features)
        for name in features:
            batch = small.observation(features=features)
            del batch[name]
            with pytest.raises(ObservationError, match=f"lack {name}; expected observation.state"):
                getattr(ours, act)(batch)

    def test_wrong_shapes(self):
        ours = small.policy("asd_diffusion")
        with pytest.raises(ObservationError, match=r"shape \(1, 3, 2\); expected \(B, D\) or a history \(B, 2, D\)"):
            ours.predict_action_chunk(small.history(*[small.observation()] * 3))
        with pytest.raises(ObservationError, match=r"shape \(1, 2, 2\); expected one step"):
            ours.select_action(small.history(*[small.observation()] * 2))
        ours.predict_action_chunk(small.observation(batch=2))
        with pytest.raises(ObservationError, match=r"shape \(1, 2\); expected \(2, 2\), as in the history"):
            ours.predict_action_chunk(small.observation(batch=1))


class TestServer:
    def test_lerobot_s_asynchronous_server(self, tmp_path, monkeypatch):
        pytest.importorskip("grpc", reason="lerobot's asynchronous server needs grpcio")
        monkeypatch.chdir(tmp_path)  # the server writes a folder of logs when it is imported
        import pickle
        from types import SimpleNamespace

        from lerobot.async_inference import policy_server
        from lerobot.async_inference.configs import PolicyServerConfig
        from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation
        from lerobot_policy_asd.serving import serve

        monkeypatch.setattr(policy_server, "serve", lambda: None)
        monkeypatch.setattr(policy_server, "SUPPORTED_POLICIES", list(policy_server.SUPPORTED_POLICIES))
        monkeypatch.setattr(sys, "argv", ["pytest"])
        serve(["--port=9999"])
        assert sys.argv[1:] == ["--port=9999"]
        folder = small.save(small.policy("asd_diffusion", CAMERAS), tmp_path / "folder")
        image = {"dtype": "image", "shape": (32, 32, 3), "names": ["height", "width", "channels"]}
        features = {
            "observation.state": {"dtype": "float32", "shape": (2,), "names": ["x", "y"]},
            "observation.images.top": image,
            "observation.images.wrist": image,
        }
        server = policy_server.PolicyServer(PolicyServerConfig())
        specs = RemotePolicyConfig("asd_diffusion", str(folder), features, actions_per_chunk=3)
        request = SimpleNamespace(data=pickle.dumps(specs))
        server.shutdown_event.clear()
        server.SendPolicyInstructions(request, SimpleNamespace(peer=lambda: "test"))
        pixels = torch.zeros(32, 32, 3, dtype=torch.uint8).numpy()
        for step in range(3):
            raw = {"x": 0.1 * step, "y": 0.0, "top": pixels, "wrist": pixels}
            actions = server._predict_action_chunk(TimedObservation(0.0, step, raw))
            assert [action.timestep for action in actions] == [step, step + 1, step + 2]
        seen = [float(state[0, 0]) for state in server.policy._queues["observation.state"]]
        assert seen == pytest.approx([0.05, 0.1])  # the last two, normalised from [-2, 2]
        assert server.policy.asd.stats.rounds.shape == (1,)
