"""Values and gradients of each objective against a direct computation, one unit at a time, in float64."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers

from hf_kdnas.architecture import Architecture
from hf_kdnas.distill.capture import Capture, forward_signals
from hf_kdnas.distill.objectives import (
    Attention,
    DirectRelations,
    Embeddings,
    HiddenStates,
    Logits,
    MaskedLM,
    Objective,
    Relations,
    Sentence,
    Task,
)
from hf_kdnas.distill.objectives.outputs import output_rows
from hf_kdnas.distill.objectives.scores import SHORT, row_loss
from hf_kdnas.errors import InvalidInput

TEACHER = Architecture(num_hidden_layers=4, hidden_size=12, num_attention_heads=6, intermediate_size=16)
STUDENT = Architecture(num_hidden_layers=2, hidden_size=8, num_attention_heads=2, intermediate_size=16)
LENGTHS = (5, 2, 3)
LABELS = 3


def batch_of(lengths=LENGTHS):
    mask = torch.zeros(len(lengths), max(lengths), dtype=torch.long)
    for row, length in enumerate(lengths):
        mask[row, :length] = 1
    return {"attention_mask": mask, "labels": torch.arange(len(lengths)) % LABELS}


def signals_of(architecture, seed, requires_grad=False):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_(requires_grad)

    shape = (len(LENGTHS), max(LENGTHS))
    signals = {"logits": draw(len(LENGTHS), LABELS)}
    for layer in range(architecture.num_hidden_layers + 1):
        signals[f"hidden.{layer}"] = draw(*shape, architecture.hidden_size)
        for part in ("query", "key", "value"):
            signals[f"{part}.{layer}"] = draw(*shape, architecture.attention_size)
    return signals


def assert_equal_to(objective: Objective, direct, batch=None):
    """Compare the value, and the gradients of all the student's signals and the objective's parameters."""
    batch = batch or batch_of()
    objective = objective.double()
    teacher = signals_of(TEACHER, seed=1)
    found, gradients = [], []
    for compute in (lambda s: objective(s, teacher, batch), lambda s: direct(s, teacher)):
        student = signals_of(STUDENT, seed=2, requires_grad=True)
        leaves = [student[name] for name in sorted(objective.student_signals)] + list(objective.parameters())
        found.append(compute(student))
        gradients.append(torch.autograd.grad(found[-1], leaves))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(*gradients, strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def kl(p, q):
    return (p * (p / q).log()).sum()


@pytest.mark.parametrize(
    ("loss", "divergence"),
    [
        ("kl", kl),
        ("reverse_kl", lambda p, q: kl(q, p)),
        ("js", lambda p, q: (kl(p, (p + q) / 2) + kl(q, (p + q) / 2)) / 2),
    ],
)
def test_logits(loss, divergence):
    def direct(student, teacher):
        total = 0
        for learned, wanted in zip(student["logits"], teacher["logits"], strict=True):
            total = total + 9 * divergence(torch.softmax(wanted / 3, 0), torch.softmax(learned / 3, 0))
        return total

    assert_equal_to(Logits(STUDENT, TEACHER, temperature=3.0, loss=loss), direct)
    assert Logits(STUDENT, TEACHER).count(batch_of()) == 3


def test_logits_themselves():
    def direct(student, teacher):
        return sum(((student["logits"][row] - teacher["logits"][row]) ** 2).mean() for row in range(3))

    assert_equal_to(Logits(STUDENT, TEACHER, loss="mse"), direct)


def test_another_loss_of_logits_is_refused():
    with pytest.raises(InvalidInput, match="kl, reverse_kl, js, mse"):
        Logits(STUDENT, TEACHER, loss="forward")


def test_logits_of_a_regression_are_compared_by_their_squared_difference():
    student, teacher = {"logits": torch.tensor([[1.0], [2.0]])}, {"logits": torch.tensor([[4.0], [2.5]])}
    assert Logits(STUDENT, TEACHER)(student, teacher, batch_of((1, 1))).item() == pytest.approx(9.25)


def test_task_cross_entropy_leaves_out_what_has_no_label():
    labels = torch.tensor([2, -100, 1])

    def direct(student, teacher):
        return -sum(student["logits"][row].log_softmax(0)[label] for row, label in ((0, 2), (2, 1)))

    objective, batch = Task(STUDENT, TEACHER), batch_of() | {"labels": labels}
    assert_equal_to(objective, direct, batch)
    assert objective.count(batch) == 2


def test_task_regression():
    batch = batch_of((1, 1)) | {"labels": torch.tensor([0.5, 1.5])}
    objective = Task(STUDENT, TEACHER)
    assert objective({"logits": torch.tensor([[1.0], [3.5]])}, {}, batch).item() == pytest.approx(4.25)
    assert objective.count(batch) == 2


def test_task_without_labels_is_refused():
    with pytest.raises(InvalidInput, match="needs labels"):
        Task(STUDENT, TEACHER).count({"attention_mask": torch.ones(1, 2)})


@pytest.mark.parametrize(
    ("layers", "sources"),
    [
        ("uniform", {1: [2], 2: [4]}),
        ("last", {1: [3], 2: [4]}),
        ("uniform+last", {1: [2, 3], 2: [4]}),
        ("uniform-consecutive", {1: [0, 1, 2], 2: [2, 3, 4]}),
        ([[0, 0], [3, 2]], {0: [0], 2: [3]}),
    ],
)
def test_hidden_learned(layers, sources):
    objective = HiddenStates(STUDENT, TEACHER, layers=layers)

    def direct(student, teacher):
        total = 0
        for row, length in enumerate(LENGTHS):
            for position in range(length):
                for layer, teachers in sources.items():
                    wanted = torch.cat([teacher[f"hidden.{source}"][row, position] for source in teachers])
                    linear = objective.maps[str(layer)]
                    mapped = linear.weight @ student[f"hidden.{layer}"][row, position] + linear.bias
                    total = total + ((mapped - wanted) ** 2).mean() / len(sources)
        return total

    assert_equal_to(objective, direct)
    assert objective.count(batch_of()) == sum(LENGTHS)
    assert objective.teacher_signals == {f"hidden.{s}" for teachers in sources.values() for s in teachers}


@pytest.mark.parametrize(
    ("layers", "sources"), [("uniform", {1: [2], 2: [4]}), ("uniform+last", {1: [2, 3], 2: [4]})]
)
@pytest.mark.parametrize("cut", [False, True])
def test_hidden_projected(layers, sources, cut):
    drawn = torch.randn(12, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    projection = torch.eye(12, dtype=torch.float64)[:, :8] if cut else drawn

    def direct(student, teacher):
        kept = [(row, position) for row, length in enumerate(LENGTHS) for position in range(length)]
        total = 0
        for layer, teachers in sources.items():
            for source in teachers:
                states = {place: teacher[f"hidden.{source}"][place] @ projection for place in kept}
                variance = torch.stack(list(states.values())).var()
                errors = [((student[f"hidden.{layer}"][place] - states[place]) ** 2).mean() for place in kept]
                total = total + sum(errors) / variance / len(teachers) / len(sources)
        return total

    objective = HiddenStates(STUDENT, TEACHER, layers=layers, projection=projection)
    assert objective.cut is cut
    assert_equal_to(objective, direct)
    assert list(objective.parameters()) == []


def test_the_variance_of_a_projection_is_fixed_once():
    objective = HiddenStates(STUDENT, TEACHER, projection=torch.eye(12)[:, :8])
    student, teacher, batch = signals_of(STUDENT, 2), signals_of(TEACHER, 1), batch_of()
    before = objective(student, teacher, batch)
    doubled = {name: 2 * signal for name, signal in teacher.items()}
    zeros = {name: torch.zeros_like(signal) for name, signal in student.items()}
    assert objective(zeros, doubled, batch) / objective(zeros, teacher, batch) == pytest.approx(4)
    objective.calibrate(student, doubled, batch)
    assert objective(student, teacher, batch) == pytest.approx(before.item() / 4)


@pytest.mark.parametrize("shape", [(8, 12), (12, 12)])
def test_a_projection_of_another_shape_is_refused(shape):
    with pytest.raises(InvalidInput, match=r"must be \(12, 8\)"):
        HiddenStates(STUDENT, TEACHER, projection=torch.zeros(shape))


@pytest.mark.parametrize(
    ("options", "layer", "heads"), [({}, 4, 4), ({"teacher_layer": 2, "relation_heads": 2}, 2, 2)]
)
def test_relations(options, layer, heads):
    objective = Relations(STUDENT, TEACHER, **options)

    def relation(states, length):
        split = states[:length].reshape(length, heads, -1)
        return [
            torch.softmax(split[:, head] @ split[:, head].T / split.shape[-1] ** 0.5, dim=-1)
            for head in range(heads)
        ]

    def direct(student, teacher):
        total = 0
        for row, length in enumerate(LENGTHS):
            for part in ("query", "key", "value"):
                wanted = relation(teacher[f"{part}.{layer}"][row], length)
                learned = relation(student[f"{part}.2"][row], length)
                for p, q in zip(wanted, learned, strict=True):
                    total = total + (p * (p / q).log()).sum() / heads
        return total

    assert_equal_to(objective, direct)
    assert objective.count(batch_of()) == sum(LENGTHS)


def test_relations_without_softmax():
    objective = Relations(STUDENT, TEACHER, softmax=False, relation_heads=2)

    def relation(states, length):
        split = states[:length].reshape(length, 2, -1)
        return [split[:, head] @ split[:, head].T / split.shape[-1] ** 0.5 for head in range(2)]

    def direct(student, teacher):
        total = 0
        for row, length in enumerate(LENGTHS):
            for part in ("query", "key", "value"):
                wanted = relation(teacher[f"{part}.4"][row], length)
                learned = relation(student[f"{part}.2"][row], length)
                for p, q in zip(wanted, learned, strict=True):
                    total = total + ((p - q) ** 2).mean(-1).sum() / 2
        return total

    assert_equal_to(objective, direct)


def test_direct_relations():
    objective = DirectRelations(STUDENT, TEACHER, teacher_layer=3)

    def direct(student, teacher):
        total = 0
        for row, length in enumerate(LENGTHS):
            for position in range(length):
                for part in ("query", "key", "value"):
                    linear = objective.maps[part]
                    mapped = linear.weight @ student[f"{part}.2"][row, position] + linear.bias
                    total = total + ((mapped - teacher[f"{part}.3"][row, position]) ** 2).mean()
        return total

    assert_equal_to(objective, direct)
    assert objective.count(batch_of()) == sum(LENGTHS)
    with pytest.raises(InvalidInput, match="layers 1 to 4"):
        DirectRelations(STUDENT, TEACHER, teacher_layer=5)


def test_embeddings():
    objective = Embeddings(STUDENT, TEACHER)

    def direct(student, teacher):
        total = 0
        for row, length in enumerate(LENGTHS):
            for position in range(length):
                linear = objective.maps["0"]
                mapped = linear.weight @ student["hidden.0"][row, position] + linear.bias
                total = total + ((mapped - teacher["hidden.0"][row, position]) ** 2).mean()
        return total

    assert_equal_to(objective, direct)


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("heads", [2, 6])
def test_attention(softmax, heads):
    teacher_shape = dataclasses.replace(TEACHER, num_attention_heads=heads)
    objective = Attention(STUDENT, teacher_shape, layers="uniform+last", softmax=softmax)

    def maps(signals, row, length, layer, count):
        query, key = (
            signals[f"{part}.{layer}"][row, :length].reshape(length, count, -1) for part in ("query", "key")
        )
        scores = [query[:, head] @ key[:, head].T / query.shape[-1] ** 0.5 for head in range(count)]
        return [torch.softmax(each, -1) for each in scores] if softmax else scores

    def direct(student, teacher):
        total = 0
        for row, length in enumerate(LENGTHS):
            for source, layer in ((2, 1), (3, 1), (4, 2)):
                wanted = maps(teacher, row, length, source, heads)
                learned = maps(student, row, length, layer, 2)
                if heads != 2:  # nothing says which heads belong together
                    wanted, learned = [sum(wanted) / heads], [sum(learned) / 2]
                for p, q in zip(wanted, learned, strict=True):
                    value = kl(p, q) if softmax else ((p - q) ** 2).mean(-1).sum()
                    total = total + value / len(wanted) / 3
        return total

    assert_equal_to(objective, direct)
    assert objective.count(batch_of()) == sum(LENGTHS)


def test_attention_of_the_embeddings_is_refused():
    with pytest.raises(InvalidInput, match="layers count from 1"):
        Attention(STUDENT, TEACHER, layers=[[0, 1]])


@pytest.mark.parametrize("layers", ["uniform+last", "searched"])
def test_learned_maps_begin_as_the_projection_that_is_given(layers):
    projection = torch.linalg.qr(torch.randn(12, 8, dtype=torch.float64))[0]
    objective = HiddenStates(STUDENT, TEACHER, layers=layers, projection=projection, learned=True).double()
    student = signals_of(STUDENT, 2)
    teacher = {f"hidden.{layer}": student["hidden.1"] @ projection.T for layer in range(1, 5)}
    for layer, learned in objective.maps.items():
        for wanted in objective.mapped(learned, student["hidden.1"]).chunk(len(learned.weight) // 12, -1):
            torch.testing.assert_close(wanted, teacher[f"hidden.{layer}"])
    assert all(parameter.requires_grad for parameter in objective.parameters())
    assert objective.projection is None


@pytest.mark.parametrize("projected", [False, True])
def test_hidden_searched_finds_the_layers_that_are_alike(projected):
    projection = torch.eye(12, dtype=torch.float64)[:, :8] if projected else None
    objective = HiddenStates(STUDENT, TEACHER, layers="searched", projection=projection).double()
    batch, teacher, student = batch_of(), signals_of(TEACHER, 1), signals_of(STUDENT, 2)
    for layer, source in ((1, 4), (2, 1)):
        # Turned and shifted, which centred kernel alignment does not see.
        turn, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64))
        teacher[f"hidden.{source}"][..., 8:] = 0
        student[f"hidden.{layer}"] = teacher[f"hidden.{source}"][..., :8] @ turn + 3
    objective.calibrate(student, teacher, batch)
    assert objective.sources == {1: [4], 2: [1]}
    given = HiddenStates(STUDENT, TEACHER, layers=[[4, 1], [1, 2]], projection=projection).double()
    given.load_state_dict(objective.state_dict(), strict=False)
    given.calibrate(student, teacher, batch)
    torch.testing.assert_close(objective(student, teacher, batch), given(student, teacher, batch))
    # Found once: it reads no other layers from now on, and another sample changes nothing.
    assert objective.teacher_signals == {"hidden.1", "hidden.4"}
    objective.calibrate(student | {"hidden.1": student["hidden.2"]}, teacher, batch)
    assert objective.sources == {1: [4], 2: [1]}
    fresh = HiddenStates(STUDENT, TEACHER, layers="searched", projection=projection).double()
    assert fresh.teacher_signals == {f"hidden.{layer}" for layer in range(1, 5)}
    fresh.load_state_dict(objective.state_dict())
    assert fresh.sources == {1: [4], 2: [1]}


def test_hidden_searched_needs_a_deep_enough_teacher():
    with pytest.raises(InvalidInput, match="no deeper than the teacher"):
        HiddenStates(TEACHER, STUDENT, layers="searched")


def test_relations_choose_the_upper_middle_of_a_deep_teacher():
    deep = Architecture(num_hidden_layers=12, hidden_size=768, num_attention_heads=12, intermediate_size=3072)
    student = Architecture(
        num_hidden_layers=4, hidden_size=576, num_attention_heads=12, intermediate_size=768
    )
    objective = Relations(student, deep)
    assert objective.teacher_signals == {"query.11", "key.11", "value.11"}
    assert objective.student_signals == {"query.4", "key.4", "value.4"}
    assert objective.relation_heads == 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relation_heads": 3}, "divisor of 4"),
        ({"teacher_layer": 5}, "layers 1 to 4"),
        ({"teacher_layer": 0}, "1 to 4"),
    ],
)
def test_relations_refused(options, message):
    with pytest.raises(InvalidInput, match=message):
        Relations(STUDENT, TEACHER, **options)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperature_refused(temperature):
    with pytest.raises(InvalidInput, match="above 0"):
        Logits(STUDENT, TEACHER, temperature=temperature)


TAGS = torch.tensor([[-100, 2, 0, 1, -100], [-100, 1, -100, -100, -100], [0, -100, 2, -100, -100]])
SPANS = {"start_positions": torch.tensor([1, 0, 2]), "end_positions": torch.tensor([4, 0, 2])}


def on_tokens(signals, labels):
    """The same signals with outputs of each token."""
    generator = torch.Generator().manual_seed(len(signals))
    shape = (len(LENGTHS), max(LENGTHS), labels)
    drawn = torch.randn(*shape, generator=generator, dtype=torch.float64)
    drawn += signals["hidden.1"][..., :labels]
    return {**signals, "logits": drawn}


OBJECTIVES = {
    "logits": lambda: Logits(STUDENT, TEACHER),
    "task": lambda: Task(STUDENT, TEACHER),
    "hidden": lambda: HiddenStates(STUDENT, TEACHER, layers="uniform+last"),
    "projected": lambda: HiddenStates(STUDENT, TEACHER, projection=torch.eye(12)[:, :8].double()),
    "searched": lambda: HiddenStates(STUDENT, TEACHER, layers="searched"),
    "embeddings": lambda: Embeddings(STUDENT, TEACHER),
    "relations": lambda: Relations(STUDENT, TEACHER),
    "mse relations": lambda: Relations(STUDENT, TEACHER, loss="mse"),
    "raw relations": lambda: Relations(STUDENT, TEACHER, softmax=False),
    "direct relations": lambda: DirectRelations(STUDENT, TEACHER),
    "sentence": lambda: Sentence(STUDENT, TEACHER),
    "attention": lambda: Attention(STUDENT, TEACHER),
    "attention distributions": lambda: Attention(STUDENT, TEACHER, softmax=True),
    "mlm": lambda: MaskedLM(STUDENT, TEACHER),
    "mlm of all": lambda: MaskedLM(STUDENT, TEACHER, positions="all"),
    "logits of tags": lambda: Logits(STUDENT, TEACHER),
    "task of tags": lambda: Task(STUDENT, TEACHER),
    "logits of spans": lambda: Logits(STUDENT, TEACHER),
    "logits of spans themselves": lambda: Logits(STUDENT, TEACHER, loss="mse"),
    "task of spans": lambda: Task(STUDENT, TEACHER),
}


def case_of(name):
    """A batch, and the signals of student and teacher on it."""
    batch, signals = batch_of(), (signals_of(STUDENT, 2), signals_of(TEACHER, 1))
    if name.startswith("mlm") or "tags" in name:
        return batch | {"labels": TAGS}, *(on_tokens(each, LABELS) for each in signals)
    if "spans" in name:
        return batch | SPANS, *(on_tokens(each, 2) for each in signals)
    return batch, *signals


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("junk", [1e6, float("nan"), float("inf")])
def test_padding_never_matters(name, junk):
    objective, results = OBJECTIVES[name]().double(), []
    for fill in (0.0, junk):
        batch, student, teacher = case_of(name)
        padding = ~batch["attention_mask"].bool()
        for signal in (*student.values(), *teacher.values()):
            if signal.dim() == 3:
                signal[padding] = fill
        leaves = [student[key].requires_grad_() for key in sorted(objective.student_signals)]
        loss = objective(student, teacher, batch)
        results.append([loss, *torch.autograd.grad(loss, leaves)])
    for clean, dirty in zip(*results, strict=True):
        assert torch.isfinite(dirty).all()
        torch.testing.assert_close(clean, dirty, rtol=0, atol=0)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_sums_and_counts_add_up_over_parts_of_a_batch(name):
    objective, (whole, student, teacher) = OBJECTIVES[name]().double(), case_of(name)
    objective.calibrate(student, teacher, whole)
    shape = whole["attention_mask"].shape
    total = count = 0
    for row, length in enumerate(LENGTHS):
        parts = [
            {
                key: (value[row : row + 1, :length] if value.shape[:2] == shape else value[row : row + 1])
                for key, value in each.items()
            }
            for each in (student, teacher, whole)
        ]
        total, count = total + objective(*parts), count + int(objective.count(parts[-1]))
    torch.testing.assert_close(total, objective(student, teacher, whole), rtol=1e-10, atol=1e-12)
    assert count == int(objective.count(whole))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_fp32_inside_also_under_autocast(name):
    objective, (batch, student, teacher) = OBJECTIVES[name]().float(), case_of(name)
    teacher = {key: signal.half() for key, signal in teacher.items()}
    student = {key: signal.bfloat16() for key, signal in student.items()}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = objective(student, teacher, batch)
    assert loss.dtype == torch.float32
    widened = [{key: signal.float() for key, signal in signals.items()} for signals in (student, teacher)]
    learned = any(True for _ in objective.parameters())
    torch.testing.assert_close(loss, objective(*widened, batch), rtol=0.02 if learned else 0, atol=0)


@pytest.mark.parametrize("kind", [HiddenStates, DirectRelations, Embeddings])
@pytest.mark.parametrize("autocast", [True, False])
def test_learned_maps_compute_as_the_model_does(kind, autocast):
    objective, batch = kind(STUDENT, TEACHER), batch_of()
    signals = [
        {key: signal.float() for key, signal in signals_of(*each).items()}
        for each in ((STUDENT, 2), (TEACHER, 1))
    ]
    found = []
    for learned in objective.maps.values():
        learned.register_forward_hook(lambda module, inputs, output: found.append(output.dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        loss = objective(*signals, batch)
    loss.backward()
    assert set(found) == {torch.bfloat16 if autocast else torch.float32}
    assert loss.dtype == torch.float32
    assert all(parameter.grad.dtype == torch.float32 for parameter in objective.parameters())


@pytest.mark.parametrize("length", [SHORT - 1, SHORT])
def test_short_rows_have_the_same_loss(length):
    generator = torch.Generator().manual_seed(0)
    learned, wanted = (
        torch.randn(2, 3, length, length, generator=generator, dtype=torch.float64) for _ in range(2)
    )
    learned.requires_grad_()
    mask = torch.ones(2, length, dtype=torch.bool)
    mask[1, 5:] = False
    direct = torch.zeros(2, length, dtype=torch.float64)
    for row, keys in enumerate((length, 5)):
        log_p, log_q = (scores[row, :, :, :keys].log_softmax(-1) for scores in (wanted, learned))
        direct[row] = (log_p.exp() * (log_p - log_q)).sum(-1).mean(0)
    found = row_loss(learned, wanted, mask, softmax=True)
    torch.testing.assert_close(found, direct)
    gradients = [torch.autograd.grad(each.sum(), learned)[0] for each in (found, direct)]
    torch.testing.assert_close(*gradients)


MULTI_HOT = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def test_logits_of_several_labels_are_one_distribution_each():
    def direct(student, teacher):
        total = 0
        for row in range(len(LENGTHS)):
            for label in range(LABELS):
                p, q = (torch.sigmoid(each["logits"][row, label] / 3) for each in (teacher, student))
                total = total + 9 * (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log())
        return total

    objective, batch = Logits(STUDENT, TEACHER, temperature=3.0), batch_of() | {"labels": MULTI_HOT}
    assert_equal_to(objective, direct, batch)
    assert objective.count(batch) == 9


def test_logits_of_several_labels_themselves():
    def direct(student, teacher):
        return (student["logits"] - teacher["logits"]).square().sum()

    assert_equal_to(Logits(STUDENT, TEACHER, loss="mse"), direct, batch_of() | {"labels": MULTI_HOT})


def test_task_of_several_labels():
    def direct(student, teacher):
        chance = torch.sigmoid(student["logits"])
        return -(MULTI_HOT * chance.log() + (1 - MULTI_HOT) * (1 - chance).log()).sum()

    objective, batch = Task(STUDENT, TEACHER), batch_of() | {"labels": MULTI_HOT}
    assert_equal_to(objective, direct, batch)
    assert objective.count(batch) == 9


def assert_equal_on_tokens(objective, direct, batch, labels):
    """As `assert_equal_to`, for the logits of each token; those in the padding have no gradient."""
    teacher = on_tokens(signals_of(TEACHER, seed=1), labels)
    found = []
    for compute in (lambda s: objective(s, teacher, batch), lambda s: direct(s, teacher)):
        student = on_tokens(signals_of(STUDENT, seed=2), labels)
        student["logits"].requires_grad_(True)
        value = compute(student)
        found.append((value, *torch.autograd.grad(value, [student["logits"]])))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)
    gradient = found[0][1]
    assert gradient.abs().max() > 0
    assert gradient[batch["attention_mask"] == 0].abs().max() == 0


def test_logits_of_tokens_are_one_distribution_each():
    def direct(student, teacher):
        total = 0
        for row, length in enumerate(LENGTHS):
            for token in range(length):
                p, q = (torch.softmax(each["logits"][row, token] / 3, 0) for each in (teacher, student))
                total = total + 9 * (p * (p / q).log()).sum()
        return total

    objective, batch = Logits(STUDENT, TEACHER, temperature=3.0), batch_of() | {"labels": TAGS}
    assert_equal_on_tokens(objective, direct, batch, LABELS)
    assert objective.count(batch) == sum(LENGTHS)


def test_task_of_tags():
    def direct(student, teacher):
        chances = student["logits"].log_softmax(-1)
        return -sum(chances[row, token, TAGS[row, token]] for row, token in (TAGS >= 0).nonzero().tolist())

    objective, batch = Task(STUDENT, TEACHER), batch_of() | {"labels": TAGS}
    assert_equal_on_tokens(objective, direct, batch, LABELS)
    assert objective.count(batch) == 6


def spans(signals, row, length, temperature=1.0):
    """Where the answer of a row starts, and where it ends: each over its real positions."""
    return (signals["logits"][row, :length] / temperature).softmax(0).unbind(-1)


def test_logits_of_spans_are_a_distribution_of_starts_and_one_of_ends():
    def direct(student, teacher):
        total = 0
        for row, length in enumerate(LENGTHS):
            pairs = zip(spans(teacher, row, length, 3), spans(student, row, length, 3), strict=True)
            total = total + 9 * sum((p * (p / q).log()).sum() for p, q in pairs)
        return total

    objective, batch = Logits(STUDENT, TEACHER, temperature=3.0), batch_of() | SPANS
    assert_equal_on_tokens(objective, direct, batch, 2)
    assert objective.count(batch) == 6


def test_logits_of_spans_themselves():
    def direct(student, teacher):
        rows = enumerate(LENGTHS)
        wrong = ((student["logits"] - teacher["logits"])[row, :length] for row, length in rows)
        return sum(each.square().mean(0).sum() for each in wrong)

    objective, batch = Logits(STUDENT, TEACHER, loss="mse"), batch_of() | SPANS
    assert_equal_on_tokens(objective, direct, batch, 2)


def test_task_of_spans():
    def direct(student, teacher):
        total = 0
        for row, length in enumerate(LENGTHS):
            starts, ends = spans(student, row, length)
            total = (
                total - starts[SPANS["start_positions"][row]].log() - ends[SPANS["end_positions"][row]].log()
            )
        return total

    objective, batch = Task(STUDENT, TEACHER), batch_of() | SPANS
    assert_equal_on_tokens(objective, direct, batch, 2)
    assert objective.count(batch) == 6


@pytest.mark.parametrize(
    ("head", "labels"),
    [
        ("QuestionAnswering", SPANS),
        ("TokenClassification", {"labels": TAGS}),
        ("SequenceClassification", {"labels": MULTI_HOT}),
    ],
)
def test_the_tasks_loss_is_that_of_the_models_own_head(tiny_bert_config, head, labels):
    """On rows without padding, over which Transformers' question answering takes its softmax as well."""
    tiny_bert_config.num_labels = 2 if head == "QuestionAnswering" else LABELS
    torch.manual_seed(0)
    model = getattr(transformers, f"AutoModelFor{head}").from_config(tiny_bert_config).eval()
    batch = {"input_ids": torch.randint(5, 120, (3, 5)), "attention_mask": torch.ones(3, 5).long(), **labels}
    wanted = model(**batch).loss
    shape = Architecture.from_config(tiny_bert_config)
    objective = Task(shape, shape)
    loss = objective(forward_signals(model, Capture(model, []), batch), {}, batch) / objective.count(batch)
    torch.testing.assert_close(loss, wanted)


def test_outputs_of_tokens_without_labels_are_refused():
    with pytest.raises(InvalidInput, match="need token labels, or start and end positions"):
        output_rows(torch.zeros(1, 2, 3), {"attention_mask": torch.ones(1, 2)})
