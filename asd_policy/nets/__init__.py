"""Networks: noise predictors for action chunks, one file or folder each. They import torch and einops alone.

To add one, write its file with a configuration (see `protocol.Architecture`) and name it in `NETWORKS`.
"""

from asd_policy.nets.protocol import Architecture, CanWiden, HasCompiledLayout, HasInferenceForm, check_architecture
from asd_policy.nets.transformer import ConditionalTransformer, TransformerConfig
from asd_policy.nets.unet1d import ConditionalUnet1D, NetworkConfig

NETWORKS: dict[str, type[Architecture]] = {"unet1d": NetworkConfig, "transformer": TransformerConfig}
"""Name in `config.json` -> type of the network's configuration."""

__all__ = [
    "NETWORKS",
    "Architecture",
    "CanWiden",
    "ConditionalTransformer",
    "ConditionalUnet1D",
    "HasCompiledLayout",
    "HasInferenceForm",
    "NetworkConfig",
    "TransformerConfig",
    "check_architecture",
]
