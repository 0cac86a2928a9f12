"""Networks: noise predictors for action chunks. They import torch and einops alone."""

from asd_policy.nets.transformer import ConditionalTransformer
from asd_policy.nets.unet1d import ConditionalUnet1D

__all__ = ["ConditionalTransformer", "ConditionalUnet1D"]
