"""Timing in turns, memory of processes of their own, and counted operations."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from deflow_vision.networks.products import Linear
from deflow_vision.timing import machine as machine_module
from deflow_vision.timing.flops import count_flops
from deflow_vision.timing.turns import alone, in_turns, peak_memory, resident_memory


def test_calls_take_turns_and_warm_ups_are_not_timed():
    order = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    samples = in_turns(calls, rounds=2, count=3, warm_up=2)
    assert "".join(order) == "aaaaabbbbb" + "aaaabbbb"
    assert {name: len(sample.values) for name, sample in samples.items()} == {"a": 2, "b": 2}
    assert samples["a"].unit == "ms"


def hold(megabytes):
    before = resident_memory()
    held = np.ones(megabytes << 17)
    del held
    return os.getpid(), before, peak_memory(), resident_memory()


def test_a_process_of_its_own_has_a_peak_of_its_own():
    pid, before, peak, after = alone(hold, 200)
    assert pid != os.getpid()
    assert peak - before == pytest.approx(0.21, abs=0.02)
    assert after < peak - 0.15


@pytest.mark.parametrize("linear", [torch.nn.Linear, Linear])
def test_operations_of_a_layer_and_of_its_gradients_are_counted(linear):
    layer, x = linear(7, 5), torch.randn(6, 7, requires_grad=True)
    forward = 2 * 6 * 7 * 5
    with torch.no_grad():
        assert count_flops(lambda: layer(x)) == forward
    assert count_flops(lambda: layer(x).sum().backward()) == 3 * forward


def test_a_look_at_this_machine_finds_rates(monkeypatch):
    monkeypatch.setattr(machine_module, "ROWS", 8)
    monkeypatch.setattr(machine_module, "WIDTH", 16)
    found = machine_module.look()
    assert all(rate > 0 for rate in found.products.values())
    assert found.bandwidth > 0
    assert ("torch in bfloat16" in found.products) is found.bfloat16
    assert torch.__version__ in found.words
