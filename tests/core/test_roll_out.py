"""The one-kernel roll-out gives what the loop over torch operations gives, in Triton's interpreter on a CPU."""

import importlib.util
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from asd_policy.core.capture.compiled import compiled_parts
from asd_policy.core.denoiser import denoise
from asd_policy.core.drafts.protocol import Guess
from asd_policy.core.roll_out import Ahead, roll_out

triton = pytest.importorskip("triton")
from asd_policy.core.capture import roll_out_triton as module  # noqa: E402
from asd_policy.core.capture.roll_out_triton import roll_out_triton  # noqa: E402

EVENTS = [(), (1,), (3,), (16, 10), (5, 1, 13), (65,), (64,)]


@pytest.fixture(autouse=True, scope="module")
def interpreted():
    """The kernel as NumPy runs it, whatever the environment said when Triton was imported."""
    from triton.runtime.interpreter import InterpretedFunction

    compiled = module.roll_out_kernel
    module.roll_out_kernel = InterpretedFunction(compiled.fn)
    yield
    module.roll_out_kernel = compiled


def torch_roll_out(x, offset, gain, a, b, s, xi, clip):
    a, b, s = (c.reshape(c.shape + (1,) * (xi.ndim - 2)) for c in (a, b, s))
    offset, gain = (t.expand(xi.shape) for t in (offset, gain))
    y, states, means = x, [], []
    for j in range(xi.shape[1]):
        guess = offset[:, j] + gain[:, j] * y
        if clip is not None:
            guess = guess.clamp(-clip, clip)
        mean = a[:, j] * y + b[:, j] * guess
        states.append(y)
        means.append(mean)
        y = mean + s[:, j] * xi[:, j]
    return torch.stack(states, dim=1), torch.stack(means, dim=1)


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("event", EVENTS)
def test_it_is_what_the_plain_rounds_do(event, clip):
    x, offset, gain, a, b, s, xi = inputs(3, 9, event)
    step = torch.zeros(3, 9, dtype=torch.int64)
    expected = roll_out(x, Ahead(step, step, a, b, s, xi, torch.rand(3, 9), Guess(offset, gain)), clip)
    for got, right in zip(roll_out_triton(x, offset, gain, a, b, s, xi, clip), expected, strict=True):
        torch.testing.assert_close(got, right, rtol=1e-5, atol=1e-5)


def inputs(batch, window, event, gain_per_number=False, seed=0):
    rng = torch.Generator().manual_seed(seed)
    shape = (batch, window, *event)
    gain_shape = shape if gain_per_number else (batch, window) + (1,) * len(event)
    draw = [torch.randn(size, generator=rng) for size in ((batch, *event), shape, gain_shape)]
    a, b, s = torch.rand(3, batch, window, generator=rng).unbind()
    return [*draw, a, b, s, torch.randn(shape, generator=rng)]


def assert_same(args, clip):
    for got, right in zip(roll_out_triton(*args, clip), torch_roll_out(*args, clip), strict=True):
        torch.testing.assert_close(got, right, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 3),
    window=st.sampled_from([1, 2, 3, 7, 16]),
    event=st.sampled_from(EVENTS),
    gain_per_number=st.booleans(),
    clip=st.sampled_from([None, 1.0, 0.3, 1e30, math.inf]),
    seed=st.integers(0, 99),
)
def test_it_is_the_loop_to_the_bit(batch, window, event, gain_per_number, clip, seed):
    assert_same(inputs(batch, window, event, gain_per_number, seed), clip)


@settings(max_examples=60, deadline=None)
@given(
    which=st.integers(0, 6),
    value=st.sampled_from([math.nan, math.inf, -math.inf, 3e38, -0.0, 1e-45]),
    clip=st.sampled_from([None, 1.0]),
    seed=st.integers(0, 99),
)
def test_odd_values_go_where_torch_sends_them(which, value, clip, seed):
    args = inputs(2, 5, (3,), True, seed)
    flat = args[which].view(-1)
    flat[seed % len(flat)] = value
    assert_same(args, clip)


@pytest.mark.parametrize("event", [(4, 6), ()])
def test_strides_do_not_matter(event):
    args = inputs(3, 5, event, gain_per_number=True)
    assert_same([_spread(value) for value in args], 1.0)


def _spread(value):
    """The same values, with the axes the other way round in memory and gaps between them."""
    turned = value.permute(*reversed(range(value.ndim)))
    wide = torch.full((*turned.shape, 2), math.nan)
    wide[..., 0] = turned
    spread = wide[..., 0].permute(*reversed(range(value.ndim)))
    assert torch.equal(spread, value)
    assert value.numel() < 2 or not spread.is_contiguous()
    return spread


def test_one_guess_for_the_window_is_read_in_place():
    x, offset, gain, *others = inputs(2, 6, (16, 10))
    assert_same([x, offset[:, :1].expand_as(offset), torch.zeros(()).expand(2, 6, 1, 1), *others], 1.0)
    assert_same([x, offset[:, :1], gain[:, :, :, 0:1], *others], None)


def test_nothing_to_roll_out():
    assert_same(inputs(0, 4, (3,)), 1.0)
    states, means = roll_out_triton(*inputs(2, 4, (0,)), None)
    assert states.shape == means.shape == (2, 4, 0)


def test_a_trace_without_values_passes_it():
    args = inputs(2, 6, (16, 10))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = roll_out_triton(*map(mode.from_tensor, args), 1.0)
    assert [value.shape for value in fake] == [args[-1].shape] * 2
    torch.library.opcheck(roll_out_triton, (*args, 1.0), test_utils=("test_schema", "test_faketensor"))


def test_without_triton_the_plain_loop_is_taken(monkeypatch):
    cuda = torch.device("cuda")
    assert compiled_parts(torch.device("cpu")).roll_out is roll_out
    assert compiled_parts(cuda).roll_out is not roll_out
    assert compiled_parts(cuda).denoise is not denoise
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert compiled_parts(cuda).roll_out is roll_out
    assert compiled_parts(cuda).denoise is denoise


def test_it_compiles_for_a_gpu():
    """Ahead of time, for an H100: valid, without fused multiply-adds, and with loads under way ahead of their use."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = triton.jit(module.roll_out_kernel.fn)
    constants = {"BLOCK": module.BLOCK, "PREFETCH": module.PREFETCH}
    signature = dict.fromkeys(kernel.arg_names, "i32") | dict.fromkeys(constants, "constexpr") | {"clip": "fp32"}
    signature |= {name: "*fp32" for name in kernel.arg_names if name.endswith("_ptr")}
    try:
        triton.knobs.nvidia.ptxas.path  # noqa: B018  # raises where Triton's build has no assembler
    except RuntimeError:
        pytest.skip("Triton was built without ptxas")
    built = triton.compile(
        ASTSource(kernel, signature, constants),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": module.BLOCK // 32, "enable_fp_fusion": False},
    )
    assert built.asm["cubin"]
    assert "fma" not in built.asm["ptx"]
    assert "cp.async" in built.asm["ptx"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize(("window", "event"), [(1, (16, 10)), (24, (16, 10)), (100, (3, 32, 32))])
def test_on_a_gpu_and_in_a_graph(monkeypatch, window, event):
    monkeypatch.setattr(module, "roll_out_kernel", triton.jit(module.roll_out_kernel.fn))
    args = [value.cuda() for value in inputs(4, window, event)]
    assert_same(args, 1.0)  # compiles, which a capture cannot
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = roll_out_triton(*args, 1.0)
    args[0].add_(1)
    graph.replay()
    for got, right in zip(captured, torch_roll_out(*args, 1.0), strict=True):
        torch.testing.assert_close(got, right, rtol=0, atol=0)
