"""The temporal U-Net: its configuration, its module, and its form on a compiled CPU."""

from asd_policy.nets.unet1d.network import ConditionalUnet1D, Film, NetworkConfig

__all__ = ["ConditionalUnet1D", "Film", "NetworkConfig"]
