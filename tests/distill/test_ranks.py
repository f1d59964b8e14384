"""Two ranks on gloo do what one process does with the joined batch."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_kdnas import distill

SCRIPT = Path(__file__).with_name("two_ranks.py")
two_ranks = runpy.run_path(str(SCRIPT))


LAUNCHER = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def start(folder: Path, batch_size: int, launcher: list[str]) -> subprocess.Popen[str]:
    """Start the script, on each rank of a launch."""
    folder.mkdir()
    environment = os.environ | {
        "ACCELERATE_USE_CPU": "true",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(distill.__file__).parents[2]),
    }
    command = [sys.executable, *launcher, str(SCRIPT), str(folder), str(batch_size)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """What the first rank wrote, of one process and of two; and of these what the second one did."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [start(folder / "one", 32, []), start(folder / "two", 16, LAUNCHER)]
    try:
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.terminate()  # unlike a kill, it has a launcher end its ranks
            process.wait()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    found = [torch.load(folder / name / "results.pt") for name in ("one", "two")]
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
