"""Small policies with the interfaces and loops of lerobot's and real-stanford's, written anew for these tests."""

from collections import deque
from types import SimpleNamespace

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

HORIZON, ACTION_DIM, OBS_DIM, TO, TA, NUM_STEPS = 8, 2, 3, 2, 4, 20


class Net(nn.Module):
    """Noise predictor with the parameters that U-Nets take: (x (N, T, D), t (N,) or (), conditions) -> (N, T, D)."""

    def __init__(self, shape: tuple[int, int], cond_dim: int, dropout: float = 0.0):
        super().__init__()
        size = shape[0] * shape[1]
        self.layers = nn.Sequential(
            nn.Linear(size + 1 + cond_dim, 48), nn.Mish(), nn.Dropout(dropout), nn.Linear(48, size)
        )

    def forward(
        self, sample: Tensor, timestep: Tensor, local_cond: Tensor | None = None, global_cond: Tensor | None = None
    ) -> Tensor:
        return self._run(sample, timestep, local_cond, global_cond)

    def _run(self, sample: Tensor, timestep: Tensor, *conditions: Tensor | None) -> Tensor:
        t = torch.as_tensor(timestep).to(sample).reshape(-1, 1).expand(len(sample), 1) / NUM_STEPS
        known = [cond.flatten(1) for cond in conditions if cond is not None]
        return self.layers(torch.cat([sample.flatten(1), t, *known], dim=1)).view_as(sample)


class TransformerLike(Net):
    """The same with a transformer's parameters."""

    def forward(self, sample: Tensor, timestep: Tensor, cond: Tensor | None = None, **kwargs: object) -> Tensor:  # type: ignore[override]
        return self._run(sample, timestep, cond)


def scheduler(**settings: object) -> DDPMScheduler:
    return DDPMScheduler(**{"num_train_timesteps": NUM_STEPS, "beta_schedule": "squaredcos_cap_v2", **settings})


class LeRobotModel(nn.Module):
    """As lerobot's DiffusionModel."""

    def __init__(self, config: SimpleNamespace, noise_scheduler: object, dropout: float):
        super().__init__()
        self.config = config
        self.unet = Net((HORIZON, ACTION_DIM), TO * OBS_DIM, dropout)
        self.noise_scheduler = noise_scheduler
        self.num_inference_steps = NUM_STEPS

    def conditional_sample(self, batch_size, global_cond=None, generator=None, noise=None):
        weights = next(self.parameters())
        size = (batch_size, HORIZON, self.config.action_feature.shape[0])
        kind = {"dtype": weights.dtype, "device": weights.device}
        sample = torch.randn(size, generator=generator, **kind) if noise is None else noise
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            output = self.unet(sample, torch.full((batch_size,), int(t)), global_cond=global_cond)
            sample = self.noise_scheduler.step(output, t, sample, generator=generator).prev_sample
        return sample


class LeRobotPolicy(nn.Module):
    """As lerobot's DiffusionPolicy."""

    def __init__(self, noise_scheduler: object = None, dropout: float = 0.0):
        super().__init__()
        self.config = SimpleNamespace(
            n_obs_steps=TO,
            n_action_steps=TA,
            horizon=HORIZON,
            action_feature=SimpleNamespace(shape=(ACTION_DIM,)),
        )
        self.diffusion = LeRobotModel(self.config, noise_scheduler or scheduler(), dropout)
        self.reset()

    def reset(self):
        self._queues = {"observation.state": deque(maxlen=TO), "action": deque(maxlen=TA)}

    @torch.no_grad()
    def predict_action_chunk(self, batch, noise=None):
        seen = torch.stack(list(self._queues["observation.state"]), dim=1)
        cond = seen.flatten(1)
        chunk = self.diffusion.conditional_sample(len(cond), global_cond=cond, noise=noise)
        return chunk[:, TO - 1 : TO - 1 + TA]

    @torch.no_grad()
    def select_action(self, batch, noise=None):
        seen = self._queues["observation.state"]
        seen.extend([batch["observation.state"]] * (1 if len(seen) == TO else TO))
        if not self._queues["action"]:
            self._queues["action"].extend(self.predict_action_chunk(batch, noise=noise).transpose(0, 1))
        return self._queues["action"].popleft()


class RealStanfordPolicy(nn.Module):
    """As real-stanford's low-dimensional policies: conditioned "global", "local" or by "inpainting"."""

    def __init__(self, kind: str = "global", noise_scheduler: object = None, **kwargs: object):
        super().__init__()
        self.kind, self.kwargs = kind, kwargs
        dim = ACTION_DIM + OBS_DIM * (kind == "inpainting")
        cond_dim = {"global": TO, "transformer": TO, "local": HORIZON, "inpainting": 0}[kind] * OBS_DIM
        make = TransformerLike if kind == "transformer" else Net
        self.model = make((HORIZON, dim), cond_dim, dropout=0.1)
        self.noise_scheduler = noise_scheduler or scheduler()
        self.num_inference_steps, self.n_action_steps = NUM_STEPS, TA

    def reset(self):
        pass

    def conditional_sample(
        self, condition_data, condition_mask, local_cond=None, global_cond=None, generator=None, **kwargs
    ):
        def model(x, t):
            return self.model(x, t, local_cond=local_cond, global_cond=global_cond)

        return self._loop(condition_data, condition_mask, model, generator, kwargs)

    def _loop(self, data, mask, model, generator, kwargs):
        x = torch.randn(data.shape, dtype=data.dtype, device=data.device, generator=generator)
        self.noise_scheduler.set_timesteps(self.num_inference_steps)
        for t in self.noise_scheduler.timesteps:
            x[mask] = data[mask]
            x = self.noise_scheduler.step(model(x, t), t, x, generator=generator, **kwargs).prev_sample
        x[mask] = data[mask]
        return x

    def predict_action(self, obs_dict):
        obs = obs_dict["obs"]
        data = torch.zeros(len(obs), HORIZON, self.model.layers[-1].out_features // HORIZON)
        mask = torch.zeros_like(data, dtype=torch.bool)
        conditions = {}
        if self.kind == "global":
            conditions["global_cond"] = obs[:, :TO].flatten(1)
        elif self.kind == "transformer":
            conditions["cond"] = obs[:, :TO]
        elif self.kind == "local":
            conditions["local_cond"] = torch.zeros(len(obs), HORIZON, OBS_DIM)
            conditions["local_cond"][:, :TO] = obs[:, :TO]
        else:
            data[:, :TO, ACTION_DIM:], mask[:, :TO, ACTION_DIM:] = obs[:, :TO], True
        whole = self.conditional_sample(data, mask, **conditions, **self.kwargs)
        action = whole[..., :ACTION_DIM]
        return {"action": action[:, TO - 1 : TO - 1 + TA], "action_pred": action, "whole": whole}


class RealStanfordTransformerPolicy(RealStanfordPolicy):
    """The same with a transformer, whose loop has another condition."""

    def __init__(self, noise_scheduler: object = None):
        super().__init__("transformer", noise_scheduler)

    def conditional_sample(self, condition_data, condition_mask, cond=None, generator=None, **kwargs):
        return self._loop(condition_data, condition_mask, lambda x, t: self.model(x, t, cond), generator, kwargs)


def seeded(make, *args: object, **kwargs: object):
    """A policy with weights from one seed, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make(*args, **kwargs).eval()
