"""Tensors packed into one transfer come out as they went in."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from asd_policy.core.transfer import _packed, to_device, to_host

DTYPES = [torch.float32, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool, torch.bfloat16]
shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)


def filled(shape, dtype, seed) -> torch.Tensor:
    values = torch.randint(0, 2 if dtype == torch.bool else 100, shape, generator=torch.Generator().manual_seed(seed))
    return values.to(dtype)


@given(st.lists(st.tuples(shapes, st.sampled_from(DTYPES)), min_size=1, max_size=8), st.booleans())
def test_packing_is_undone_by_unpacking(kinds, transposed):
    tensors = [filled(shape, dtype, seed) for seed, (shape, dtype) in enumerate(kinds)]
    if transposed:
        tensors = [tensor.mT if tensor.ndim > 1 else tensor for tensor in tensors]
    packed, unpack = _packed(tensors)
    assert packed.dtype == torch.uint8
    assert packed.ndim == 1
    for before, after in zip(tensors, unpack(packed.clone()), strict=True):
        assert after.dtype == before.dtype
        assert torch.equal(after, before)


def test_nothing_moves_on_a_cpu():
    tensors = [torch.zeros(2), torch.ones(3, dtype=torch.int64)]
    assert all(a is b for a, b in zip(to_host(tensors), tensors, strict=True))
    assert all(a is b for a, b in zip(to_device(tensors, torch.device("cpu")), tensors, strict=True))
