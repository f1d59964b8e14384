"""Two ranks on gloo do what one process does with the joined batch."""

from __future__ import annotations

import os
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_kdnas import distill

SCRIPT = Path(__file__).with_name("two_ranks.py")
two_ranks = runpy.run_path(str(SCRIPT))


def start(folder: Path, batch_size: int, ranks: int):
    """Start the script on each rank."""
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(ranks):
        environment = os.environ | {
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(Path(distill.__file__).parents[2]),
        }
        if ranks > 1:
            environment |= {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(ranks),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
        command = [sys.executable, str(SCRIPT), str(folder), str(batch_size)]
        processes.append(
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        )
    return processes


def finish(folder: Path, processes: list[subprocess.Popen[str]]):
    """Wait for all ranks and return what the first one wrote."""
    outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes), "\n".join(outputs)
    return torch.load(folder / "results.pt")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    one, two = start(folder / "one", 32, ranks=1), start(folder / "two", 16, ranks=2)
    found = finish(folder / "one", one), finish(folder / "two", two)
    found[1]["second rank"] = torch.load(folder / "two" / "second.pt")
    return found


def test_gradients_of_student_and_learned_maps_are_those_of_the_joined_batch(results):
    one, two = results
    assert (one["ranks"], two["ranks"]) == (1, 2)
    assert any(name.startswith("objectives.hidden.maps") for name in one["gradients"])
    for name, gradient in one["gradients"].items():
        torch.testing.assert_close(two["gradients"][name], gradient, rtol=1e-6, atol=1e-9, msg=name)


def test_logged_terms_are_those_of_the_joined_batch(results):
    one, two = results
    terms = [name for name in one["logs"] if name.startswith("loss")]
    assert len(terms) == 5
    for name in terms:
        assert two["logs"][name] == pytest.approx(one["logs"][name], abs=1e-4)


def test_a_resumed_run_ends_with_the_same_weights(results):
    for run_results in results:
        for name, weight in run_results["weights"].items():
            torch.testing.assert_close(run_results["resumed"][name], weight, rtol=0, atol=0, msg=name)


@pytest.mark.parametrize("objectives", two_ranks["OTHERS"])
def test_other_objectives_learn_as_on_the_joined_batch(results, objectives):
    """DDP expects a gradient of all that the outputs follow from, the head as well."""
    one, two = results
    for name, weight in one["others"][objectives].items():
        for found in (two["others"], two["second rank"]):
            torch.testing.assert_close(found[objectives][name], weight, rtol=1e-6, atol=1e-8, msg=name)
