"""Policies on the Hugging Face hub: `save_pretrained`, `push_to_hub` and `from_pretrained`. Needs huggingface_hub."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin

from asd_policy.errors import AsdPolicyError, CheckpointError
from asd_policy.hub import HubId, open_snapshot
from asd_policy.importers.checkpoint import CONFIG, Checkpoint
from asd_policy.importers.downloads import download_checkpoint
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
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **_: Any,
    ) -> PretrainedPolicy:
        """Read the checkpoint from a folder or a repository of the hub."""
        place = Path(model_id)
        if not place.is_dir():
            snapshot = open_snapshot(HubId(model_id, revision), "model", cache_dir, token, local_files_only)
            place = download_checkpoint(snapshot, force_download)
        return cls(read_checkpoint(place))

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
