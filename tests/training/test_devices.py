"""Tests of what a run asks of its machine."""

import subprocess
import sys

import pytest

CODE = """
import resource, sys
import torch
from deflow_vision.training.devices import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
fill = lambda: torch.empty(2**24).fill_(1.0)  # 64 MiB
fill(), fill()
before = faults()
for _ in range(20):
    fill()
print(faults() - before)
"""


def page_faults(how: str) -> int:
    command = [sys.executable, "-c", CODE, how]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's allocator")
def test_memory_that_tensors_free_is_used_again_without_page_faults():
    assert 10 * page_faults("keep") < page_faults("leave")
