"""Policies on the Hugging Face hub: `save_pretrained`, `push_to_hub` and `from_pretrained`. Needs huggingface_hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, snapshot_download

from asd_policy.errors import AsdPolicyError, CheckpointError
from asd_policy.importers.checkpoint import CONFIG, Checkpoint
from asd_policy.importers.registry import read_checkpoint
from asd_policy.policies.diffusion import DiffusionPolicy

PATTERNS = ("*.json", "*.safetensors")
"""The files to download: configurations, processors and weights, in subfolders too."""

OTHERS = ("checkpoints/*", "training_state/*", "optimizer*")
"""Files of training that are not downloaded."""

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
    """A checkpoint with the hub's three methods.

    Args:
        checkpoint: the checkpoint to save or push, from `read_checkpoint` or `Checkpoint.of(policy)`.
    """

    def __init__(self, checkpoint: Checkpoint):
        self.checkpoint = checkpoint

    def policy(self, sampler: str = "asd", device: torch.device | str = "cpu", **options: Any) -> DiffusionPolicy:
        """See `Checkpoint.policy`."""
        return self.checkpoint.policy(sampler, device, **options)

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """A model card written from the policy's configuration."""
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
        """Read the checkpoint from a folder or a repository of the hub."""
        folder = Path(model_id)
        if not folder.is_dir():
            names = ("revision", "cache_dir", "force_download", "local_files_only", "token")
            known = {name: options[name] for name in names if name in options}
            folder = Path(
                snapshot_download(model_id, allow_patterns=list(PATTERNS), ignore_patterns=list(OTHERS), **known)
            )
        return cls(read_checkpoint(folder))

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> PretrainedPolicy:
        """See `ModelHubMixin.from_pretrained`.

        Raises:
            CheckpointError: if the checkpoint is damaged, or its `config.json` is no JSON object.
        """
        try:
            return super().from_pretrained(*args, **kwargs)
        except AsdPolicyError:
            raise
        except (ValueError, RecursionError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{args[0] if args else kwargs}: its {CONFIG} cannot be read: {error}") from error
