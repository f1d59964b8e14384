"""Members of a SuperLM: what they put out, what they learn, and what is extracted."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from hf_kdnas.architecture import Architecture
from hf_kdnas.errors import InvalidInput
from hf_kdnas.families import get_family
from hf_kdnas.superlm.model import SuperLM

# Fewer heads of the same size, smaller heads, heads that are regrouped, more heads than the SuperLM's, and an
# attention of another width than the hidden size.
MEMBERS = [
    Architecture(3, 32, 4, 64),
    Architecture(2, 24, 3, 48),
    Architecture(2, 16, 4, 32),
    Architecture(1, 24, 2, 40),
    Architecture(2, 24, 6, 48),
    Architecture(2, 20, 3, 40, head_size=8),
]
HEADS = {"none": AutoModel, "sequence": AutoModelForSequenceClassification, "words": AutoModelForMaskedLM}


@pytest.fixture(params=HEADS)
def superlm(request: pytest.FixtureRequest, tiny_config) -> SuperLM:
    torch.manual_seed(0)
    for name in (
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "dropout",
        "attention_dropout",
        "seq_classif_dropout",
    ):
        if hasattr(tiny_config, name):
            setattr(tiny_config, name, 0.0)
    model = HEADS[request.param].from_config(tiny_config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return SuperLM(model)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(5, 120, (3, 12))
    mask = (torch.arange(12) < torch.tensor([[12], [9], [5]])).long()
    return {"input_ids": ids, "attention_mask": mask}


def allowed(superlm: SuperLM, member: Architecture) -> bool:
    """Whether the tiny teacher's type has members of this width."""
    config = superlm.model.config
    if member.head_size is not None and config.model_type != "exact-bert":
        return False
    return getattr(config, "embedding_size", None) != member.hidden_size or member == MEMBERS[0]


@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_an_extracted_student_equals_its_subnet(superlm, batch, member, tmp_path) -> None:
    if not allowed(superlm, member):
        pytest.skip("a stock model has no such width")
    with superlm.subnet(member).evaluating():
        wanted = superlm.subnet(member)(**batch)[0]
    student = superlm.extract(member)
    student.save_pretrained(tmp_path)
    loaded = type(student).from_pretrained(tmp_path).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**batch)[0], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_shared_gradients_are_those_of_the_members_on_their_own(superlm, batch, member) -> None:
    if not allowed(superlm, member):
        pytest.skip("a stock model has no such width")
    student = superlm.extract(member)
    student(**batch)[0].square().sum().backward()
    subnet = superlm.subnet(member)
    for _ in range(2):
        with subnet.training():
            subnet(**batch)[0].square().sum().backward()
    shared = dict(superlm.model.named_parameters())
    expected = {name: torch.zeros_like(each) for name, each in shared.items()}
    for name, parameter in student.named_parameters():
        if parameter.grad is not None:  # what autograd makes of the cut itself
            part = subnet._parts[name]
            whole = shared[part.source].detach().clone().requires_grad_()
            part.of(whole).backward(2 * parameter.grad)
            expected[part.source] += whole.grad
    for name, parameter in shared.items():
        found = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(found, expected[name], rtol=1e-4, atol=1e-4)


def test_a_subnet_keeps_no_weights_of_its_own(superlm, batch) -> None:
    subnet = superlm.subnet(MEMBERS[0])
    assert {each.device.type for each in subnet.skeleton.parameters()} == {"meta"}
    with subnet.evaluating():
        before = subnet(**batch)[0]
    with torch.no_grad():
        for parameter in superlm.model.parameters():
            parameter.mul_(1.1)
    with subnet.evaluating():
        assert not torch.allclose(subnet(**batch)[0], before)
    assert superlm.subnet(MEMBERS[0]) is subnet


def test_a_member_that_does_not_fit_is_refused(superlm) -> None:
    with pytest.raises(InvalidInput, match=r"4L-32H-64F-4A-gelu.*at most 3L-32H-64F-4A-"):
        superlm.subnet(Architecture(4, 32, 4, 64))


@pytest.mark.parametrize(("layers", "source"), [("alternate", 1), ("last", 3)])
def test_layers_are_chosen_as_the_superlm_says(superlm, layers, source) -> None:
    family, member = get_family(superlm.model.config), Architecture(1, 24, 2, 40)
    student = SuperLM(superlm.model, layers).extract(member)
    mine, theirs = (
        family.module(model, family.in_layer(layer, family.output_dense)).bias
        for model, layer in ((student, 1), (superlm.model, source))
    )
    assert torch.equal(mine, theirs[:24])


STRANGER = """
import sys
sys.modules["hf_kdnas"] = None

import torch
from transformers import AutoModel

for folder in sys.argv[1:]:
    wanted = torch.load(folder + "/wanted.pt")
    model = AutoModel.from_pretrained(folder, trust_remote_code=folder.endswith("exact-bert"))
    with torch.inference_mode():
        found = model(**wanted["inputs"])[0]
    assert (found - wanted["states"]).abs().max() < 1e-6, folder
"""


def test_students_are_the_same_where_the_package_is_not_installed(tiny_configs, batch, tmp_path) -> None:
    folders = []
    for number, config in enumerate(tiny_configs):
        superlm = SuperLM(AutoModel.from_config(config))
        folder = tmp_path / f"{number}-{config.model_type}"
        with superlm.subnet(MEMBERS[1]).evaluating():
            states = superlm.subnet(MEMBERS[1])(**batch)[0]
        superlm.extract(MEMBERS[1]).save_pretrained(folder)
        torch.save({"inputs": batch, "states": states}, folder / "wanted.pt")
        folders.append(str(folder))
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, *folders],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
