"""In the loops of a compiled kernel nothing counts references to arrays.

numba inserts such counts, atomic ones, and usually removes them again. Where it does not, a step takes many times
longer and threads wait for each other, while all results stay right: nothing but a look at the code shows it.
"""

import os
import re
import subprocess
import sys
from importlib import import_module

import llvmlite.binding as llvm
import pytest
import torch
from numba.core.controlflow import CFGraph
from numba.core.dispatcher import Dispatcher

from pyrohmm import ops
from pyrohmm.ops.gaussian import api as gaussian
from pyrohmm.testing import random_chain

# Not those of few calls (k_best), of a step that takes long anyway (wide), or that await a random number a step.
KERNELS = {
    "matrices": ["_pack_logits", "_pack_scaled", "_transpose", "_weigh"],
    "forward_backward.cpu_scaled": ["_forward", "_backward", "_forward_steps", "_backward_steps"],
    "forward_backward.cpu_log": ["_condition", "_backward"],
    "viterbi.cpu_kernels": ["_scores", "_trace"],
    "gaussian.cpu_kernels": ["_log_density", "_moments"],
}


def depth_of_counting(module: str) -> int:
    """How many loops enclose the innermost instruction of LLVM code that counts a reference."""
    deepest = 0
    for function in llvm.parse_assembly(module).functions:
        if function.is_declaration or "NRT_" in function.name:
            continue
        graph, blocks = CFGraph(), [str(block) for block in function.blocks]
        labels = [re.match(r'\s*("[^"]+"|[\w.$-]+):', block) for block in blocks]
        numbers = {label[1]: n for n, label in enumerate(labels) if label}
        for n in range(len(blocks)):
            graph.add_node(n)
        for n, block in enumerate(blocks):
            for target in re.findall(r'label %("[^"]+"|[\w.$-]+)', block):
                graph.add_edge(n, numbers[target])
        graph.set_entry_point(0)
        graph.process()
        counting = [n for n, block in enumerate(blocks) if "NRT_incref" in block]
        loops = graph.loops().values()
        deepest = max([deepest, *(sum(n in loop.body for loop in loops) for n in counting)])
    return deepest


def compile_all() -> None:
    for num_states in (3, 40):  # one vector for all states, and more
        for transitions in ("shared", "each"):
            chain = random_chain(num_states, 3, (2,), transitions=transitions).to(torch.float32).requires_grad()
            grads = torch.autograd.grad(ops.log_partition(*chain.logits).sum(), chain.logits, create_graph=True)
            sum(grad.square().sum() for grad in grads).backward()
            ops.viterbi(*chain.logits)
        loc = torch.zeros(num_states, 2)
        gaussian.moments(loc, gaussian.log_density(loc, loc, loc + 1), loc[0])


def report() -> None:
    compile_all()
    for module, names in KERNELS.items():
        for name in names:
            kernel = getattr(import_module(f"pyrohmm.ops.{module}"), name)
            assert isinstance(kernel, Dispatcher) and kernel.signatures, f"{name} was not called"
            depths = [depth_of_counting(kernel.inspect_llvm(signature)) for signature in kernel.signatures]
            print(f"{module}.{name}", max(depths))


@pytest.mark.slow
def test_no_references_are_counted_in_the_loops_of_kernels(tmp_path):
    # What comes out of numba's cache cannot be looked at.
    done = subprocess.run(
        [sys.executable, "-c", "from tests.ops.test_references import report; report()"],
        env=os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    depths = dict(line.split() for line in done.stdout.splitlines())
    assert len(depths) == sum(map(len, KERNELS.values()))
    assert set(depths.values()) == {"0"}
