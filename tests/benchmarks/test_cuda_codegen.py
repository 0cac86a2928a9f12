"""What Inductor would launch on a GPU, for functions whose number of kernels is known."""

import pytest
import torch

from asd_policy.benchmarks.cuda_codegen import count_cuda_kernels

pytest.importorskip("triton")


def test_elementwise_operations_are_one_kernel():
    x = torch.zeros(4, 8)
    count = count_cuda_kernels(lambda x, y: (x + y).relu() * 2, x, x)
    assert (count.triton, count.extern, count.other) == (1, 0, 0)
    assert "tl.load" in count.source


def test_a_sum_and_what_follows_it_is_one_kernel():
    assert count_cuda_kernels(lambda x: x - x.sum(dim=1, keepdim=True), torch.zeros(4, 8)).total == 1


def test_a_sum_over_another_axis_is_another_kernel():
    count = count_cuda_kernels(lambda x: x.softmax(dim=1).softmax(dim=0), torch.zeros(40, 30))
    assert (count.triton, count.extern, count.other) == (2, 0, 0)


def test_a_matrix_product_is_not_generated():
    count = count_cuda_kernels(lambda x, y: (x @ y).relu(), torch.zeros(64, 32), torch.zeros(32, 16))
    assert (count.triton, count.extern, count.other) == (1, 1, 0)
    assert count.calls[0] == "extern_kernels.mm"


def test_changes_in_place_are_part_of_the_kernel():
    def step(state):
        new = state["x"] * 2 + 1
        state["x"].copy_(new)
        state["count"].add_(1)

    count = count_cuda_kernels(step, {"x": torch.zeros(4, 8), "count": torch.zeros(4, dtype=torch.int64), "name": "s"})
    assert (count.extern, count.other) == (0, 0)
    assert count.triton == 2  # they share nothing


def test_constants_are_folded():
    def masked(x, first):
        steps = torch.arange(8, device=x.device)
        kept = torch.where(steps < first.unsqueeze(1) + 0 * steps, x, x.new_zeros(()))
        return kept * torch.where(x > 0, torch.ones_like(x), 1.0)

    assert count_cuda_kernels(masked, torch.zeros(4, 8), torch.zeros(4, dtype=torch.int64)).total == 1


def test_operators_of_ours_are_extern():
    from asd_policy.core.capture.roll_out_triton import roll_out_triton

    x, window, coefficient = torch.zeros(2, 8), torch.zeros(2, 5, 8), torch.zeros(2, 5)
    three = [coefficient] * 3
    count = count_cuda_kernels(lambda *args: roll_out_triton(*args), x, *[window] * 2, *three, window, 1.0)
    assert count.calls == ("torch.ops.asd_policy.roll_out.default",)


def test_nothing_to_do():
    assert count_cuda_kernels(lambda x: x, torch.zeros(3)).total == 0


def test_the_process_still_has_no_gpu_afterwards():
    had = torch.cuda.is_available()
    count_cuda_kernels(lambda x: x + 1, torch.zeros(3))
    assert torch.cuda.is_available() == had
    compiled = torch.compile(lambda x: x.exp() + x.softmax(dim=0))
    x = torch.randn(5)
    torch.testing.assert_close(compiled(x), x.exp() + x.softmax(dim=0))
