"""Policies on the Hugging Face hub, and in folders with its method names: `save_pretrained`, `push_to_hub`,
`from_pretrained`. Needs huggingface_hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, snapshot_download

from asd_policy.importers.checkpoint import CONFIG, WEIGHTS, Checkpoint
from asd_policy.importers.registry import read_checkpoint
from asd_policy.policies.diffusion import DiffusionPolicy

CARD = """---
{metadata}
---

# A diffusion policy for {env_id}

It observes {obs_keys} ({n_obs_steps} steps), predicts {horizon} actions of {action_dim} numbers and executes
{n_action_steps} of them. Trained with a DDPM of {num_steps} steps; `asd-policy` samples it exactly with a fraction
of the network calls.

```python
from asd_policy.importers.hub import PretrainedPolicy

policy = PretrainedPolicy.from_pretrained("{repo_id}").policy(sampler="asd")
policy.reset(seed=0)
action = policy.act(obs)
```
"""


class PretrainedPolicy(ModelHubMixin):
    """A checkpoint with the hub's three methods; `policy` makes it act.

    Args:
        checkpoint: what to save or push, from `read_checkpoint` or `Checkpoint.of(policy)`.
    """

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint

    def policy(self, sampler: str = "asd", device: torch.device | str = "cpu", **options: Any) -> DiffusionPolicy:
        """See `Checkpoint.policy`."""
        return self.checkpoint.policy(sampler, device, **options)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """What the policy is, from its configuration."""
        config = self.checkpoint.config
        data = ModelCardData(library_name="asd-policy", pipeline_tag="robotics", tags=["diffusion-policy", "robotics"])
        return ModelCard(
            CARD.format(
                metadata=data.to_yaml(),
                env_id=config.env_id,
                obs_keys=", ".join(f"`{key}` ({dim})" for key, dim in config.obs_keys.items()),
                n_obs_steps=config.n_obs_steps,
                horizon=config.horizon,
                action_dim=config.action_dim,
                n_action_steps=config.n_action_steps,
                num_steps=config.scheduler.num_train_timesteps,
                repo_id=kwargs.get("repo_id", "user/name"),
            )
        )

    def _save_pretrained(self, save_directory: Path) -> None:
        self.checkpoint.save(save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> PretrainedPolicy:
        """From a folder, or from the hub, of which no other files are taken."""
        folder = Path(model_id)
        if not folder.is_dir():
            names = ("revision", "cache_dir", "force_download", "local_files_only", "token")
            known = {name: options[name] for name in names if name in options}
            folder = Path(snapshot_download(model_id, allow_patterns=[CONFIG, WEIGHTS], **known))
        return cls(read_checkpoint(folder))
