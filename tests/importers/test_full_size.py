"""robomimic's own 66-million-parameter network: built, saved and run by robomimic, and how long we take to load it."""

import time

import numpy as np
import pytest
import torch

from asd_policy.importers import load_policy
from tests.importers import originals
from tests.importers.test_parity import actions_with


@pytest.mark.slow
def test_robomimic_at_full_size(tmp_path):
    original = originals.robomimic_original(tmp_path / "model.pth")
    started = time.perf_counter()
    policy = load_policy(original.path, sampler="ddpm")
    seconds = time.perf_counter() - started
    parameters = sum(value.numel() for value in policy.network.parameters())
    with torch.inference_mode():
        network_error = float((policy.network(*original.inputs) - original.output).abs().max())
    chunk_error = float(np.abs(actions_with(policy, original) - original.actions).max())
    size = original.path.stat().st_size / 2**20
    print(f"\n{parameters / 1e6:.1f}M parameters, {size:.0f} MiB: loaded in {seconds:.2f} s; ", end="")
    print(f"network {network_error:.1e}, chunk {chunk_error:.1e}")
    assert parameters == 65_883_658
    assert network_error < 1e-5
    assert chunk_error < 1e-5
    assert seconds < 60
