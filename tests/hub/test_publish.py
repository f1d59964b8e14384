"""Publishing, against a real server on the loopback."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import HfApi, ModelCard, constants

from hf_kdnas import cli
from hf_kdnas.errors import InvalidInput
from hf_kdnas.hub.publish import publish_run
from hf_kdnas.latency.export.optimum import OptimumExporter

sys.path.insert(0, str(Path(__file__).parent))
from loopback_hub import FAULTS, Hub, put

REPO = "someone/tiny"

# Answers with a model of the Hub.
STRANGER = """
import json
from importlib.util import find_spec

import torch
from huggingface_hub import hf_hub_download
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

repo, texts = sys.argv[1], sys.argv[2:]
tokenizer = AutoTokenizer.from_pretrained(repo)
model = AutoModelForSequenceClassification.from_pretrained(repo).eval()
with torch.inference_mode():
    logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
found = {"logits": logits.tolist()}
found["labels"] = [each["label"] for each in pipeline("text-classification", model=repo)(texts)]
if find_spec("optimum") is not None:
    from optimum.onnxruntime import ORTModelForSequenceClassification

    model = ORTModelForSequenceClassification.from_pretrained(repo, subfolder="onnx")
    found["onnx"] = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.tolist()
# What the card says, too.
for code in open(hf_hub_download(repo, "README.md")).read().split("```python")[1:]:
    exec(code.split("```")[0])
print(json.dumps(found))
"""


def files_of(hub: Hub, revision: str = "main") -> dict[str, bytes]:
    return hub.repos[REPO].files(revision)


def validate(card: ModelCard) -> None:
    """In huggingface_hub 0 `validate` asks huggingface.co, wherever the Hub is."""
    if huggingface_hub.__version__.startswith("0."):
        HfApi()._validate_yaml(card.content)
    else:
        card.validate()


def test_a_published_student_answers_strangers_as_it_does_here(
    hub: Hub, environment: dict[str, str], run_dir: Path, stranger: Callable[..., str]
) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    command = [sys.executable, "-m", "hf_kdnas", "publish", str(run_dir), "tiny"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == f"{hub.endpoint}/{REPO}/commit/{hub.repos[REPO].references['main']}"
    assert environment["HF_TOKEN"] not in done.stdout + done.stderr

    texts = ["a great film", "the plot is dull and the acting poor"]
    shown = stranger(STRANGER, REPO, *texts, cwd=run_dir.parent, environment=environment)
    found = json.loads(shown.splitlines()[-1])
    tokenizer = AutoTokenizer.from_pretrained(run_dir / "student")
    model = AutoModelForSequenceClassification.from_pretrained(run_dir / "student").eval()
    with torch.inference_mode():
        logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
    assert torch.equal(logits, torch.tensor(found["logits"]))
    assert ("onnx" in found) == OptimumExporter.available()  # there is no Optimum for Transformers 5
    torch.testing.assert_close(torch.tensor(found.get("onnx", found["logits"])), logits, atol=1e-4, rtol=0)
    assert "'label': " in shown  # printed by the card's code
    assert found["labels"] == [model.config.id2label[int(each.argmax())] for each in logits]


def test_one_commit_has_everything(online: Hub, run_dir: Path) -> None:
    before = {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()}
    done = publish_run(run_dir, REPO)
    repo = online.repos[REPO]
    assert not repo.private
    assert len(repo.trees) == 2  # that of the new repository, and this
    files = files_of(online)
    assert set(files) == {*done.sizes, ".gitattributes"}
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "onnx/model.onnx",
        "onnx/model_int8.onnx",
    ):
        assert name in files
    record = json.loads(files["kdnas.json"])
    assert {"recipe", "student", "teacher", "seed", "environment", "latency_reports"} <= record.keys()
    assert record["files"] == sorted(done.sizes)
    for name, content in files.items():
        assert str(run_dir.parents[1]).encode() not in content, f"{name} names a path of this disk"
        assert b"hf_writer0000" not in content
    assert {path: path.read_bytes() for path in run_dir.rglob("*") if path.is_file()} == before


def test_its_card_is_valid_and_names_the_repository(online: Hub, run_dir: Path) -> None:
    publish_run(run_dir, REPO)
    card = ModelCard.load(REPO)
    validate(card)
    assert f'model="{REPO}"' in card.text
    assert "More information needed" not in card.text
    assert card.data.pipeline_tag == "text-classification"
    assert card.data.base_model is None  # a folder


def test_a_second_publication_keeps_what_a_person_wrote(online: Hub, run_dir: Path) -> None:
    publish_run(run_dir, REPO)
    edited = files_of(online)["README.md"].decode()
    edited = edited.replace("\n## Limits", "\n## My notes\n\nIt likes long films.\n\n## Limits")
    edited = edited.replace("---\n", "---\nlicense: mit\nthumbnail: me.png\n", 1)
    put(online, REPO, {"README.md": edited.encode(), "mine.txt": b"mine"})
    done = publish_run(run_dir, REPO)
    assert any("My notes" in note for note in done.notes)
    card = ModelCard.load(REPO)
    assert (card.data.license, card.data.thumbnail) == ("mit", "me.png")
    headings = re.findall(r"^## (.*)$", card.text, re.MULTILINE)
    assert headings[headings.index("How it was made") :][:3] == ["How it was made", "My notes", "Limits"]
    assert card.text.count("It likes long films.") == 1
    assert files_of(online)["mine.txt"] == b"mine"
    trees = len(online.repos[REPO].trees)
    publish_run(run_dir, REPO)  # nothing has changed
    assert len(online.repos[REPO].trees) == trees


def test_files_that_an_earlier_publication_made_go(online: Hub, run_dir: Path) -> None:
    publish_run(run_dir, REPO)
    results = json.loads((run_dir / "results.json").read_text())
    results["student"]["int8"] = None
    (run_dir / "results.json").write_text(json.dumps(results))
    (run_dir / "student" / "onnx" / "model_int8.onnx").unlink()
    publish_run(run_dir, REPO)
    assert "onnx/model.onnx" in files_of(online)
    assert "onnx/model_int8.onnx" not in files_of(online)


def test_a_card_whose_metadata_cant_be_read_is_kept_aside(online: Hub, run_dir: Path) -> None:
    publish_run(run_dir, REPO)
    broken = files_of(online)["README.md"].decode().replace("---\n", "---\nlicense: [mit\n", 1)
    put(online, REPO, {"README.md": f"{broken}\n## My notes\n\nKept.\n".encode()})
    done = publish_run(run_dir, REPO)
    assert (run_dir / "README.aside.md").read_text().startswith("---\nlicense: [mit")
    assert any("README.aside.md" in note for note in done.notes)
    validate(ModelCard.load(REPO))
    assert "Kept." in files_of(online)["README.md"].decode()


def test_what_a_person_wrote_in_the_folder_is_published_too(online: Hub, run_dir: Path) -> None:
    path = run_dir / "student" / "README.md"
    path.write_text(path.read_text().replace("---\n", "---\nlicense: [mit\n", 1) + "\n## Mine\n\nHere.\n")
    done = publish_run(run_dir, REPO)
    assert any("can't be read" in note for note in done.notes)
    assert "## Mine\n\nHere." in files_of(online)["README.md"].decode()


def test_private_branch_and_pull_request(online: Hub, run_dir: Path) -> None:
    assert cli.main(["publish", str(run_dir), REPO, "--private", "--revision", "tried"]) == 0
    repo = online.repos[REPO]
    assert repo.private
    assert list(files_of(online)) == [".gitattributes"]
    assert "model.safetensors" in files_of(online, "tried")
    done = publish_run(run_dir, REPO, pr=True)
    assert done.url.endswith("/discussions/1")
    assert list(files_of(online)) == [".gitattributes"]
    assert [name for name in repo.references if name.startswith("refs/pr/")]


def test_a_dry_run_asks_nobody(
    hub: Hub, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    assert cli.main(["publish", str(run_dir), REPO, "--dry-run"]) == 0
    shown = capsys.readouterr().out
    size = (run_dir / "student" / "model.safetensors").stat().st_size
    assert f"{size:>12,}  model.safetensors" in shown
    assert hub.requests == []


@pytest.mark.parametrize(
    ("token", "repo", "options", "message"),
    [
        (None, REPO, {}, "token: got 'none'.*hf auth login"),
        ("hf_unknown000", REPO, {}, 'token: got "one that the Hub doesn\'t know"'),
        ("hf_reader0000", REPO, {}, "role read'.*role write"),
        ("hf_fineread00", REPO, {}, "without repo.write for someone"),
        ("hf_pretender0", REPO, {}, "may not do this.*you don't have the rights"),
        ("hf_writer0000", "else/tiny", {}, "belongs to somebody else.*someone or group.*--pr"),
        ("hf_writer0000", "a/b/c", {}, "REPO_ID"),
        ("hf_writer0000", "someone/ti ny", {}, "REPO_ID"),
        ("hf_writer0000", "else/tiny", {"pr": True}, "no such repository"),
        ("hf_writer0000", "someone/public", {"private": True}, "--private.*public"),
    ],
)
def test_bad_input_is_refused_before_anything_is_sent(
    online: Hub,
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    token: str | None,
    repo: str,
    options: dict[str, bool],
    message: str,
) -> None:
    put(online, "someone/public", {"a.txt": b"a"})
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(run_dir / "no-token"))
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(InvalidInput, match=message) as caught:
        publish_run(run_dir, repo, **options)
    assert "hf_" not in str(caught.value)
    assert set(online.repos) == {"someone/public"}
    assert not [each for each in online.requests if re.search("preupload|/lfs|commit", each)]


def test_a_token_that_may_write_to_some_repositories_does(
    online: Hub, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_finewrite0")
    publish_run(run_dir, REPO)
    assert "model.safetensors" in files_of(online)


@pytest.mark.parametrize("there", [False, True])
def test_a_licence_that_the_hub_doesnt_know(online: Hub, run_dir: Path, there: bool) -> None:
    if there:
        put(online, REPO, {"a.txt": b"a"})
    path = run_dir / "student" / "README.md"
    path.write_text(path.read_text().replace("---\n", "---\nlicense: mine\n", 1))
    with pytest.raises(InvalidInput, match=r'"license" must be one of.*apache-2\.0'):
        publish_run(run_dir, REPO)
    assert (REPO in online.repos) == there
    assert online.large == {}


@pytest.mark.parametrize(
    "missing", ["results.json", "student/config.json", "student/onnx/model_int8.onnx", "student"]
)
def test_a_run_that_isnt_finished_says_what_is_missing(run_dir: Path, missing: str) -> None:
    path = run_dir / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InvalidInput, match=re.escape(f"has no {missing}")):
        publish_run(run_dir, REPO, dry_run=True)


@pytest.mark.parametrize("content", ["{", '{"tasks": []}'])
def test_results_of_something_else(run_dir: Path, content: str) -> None:
    (run_dir / "results.json").write_text(content)
    with pytest.raises(InvalidInput, match=r"results\.json"):
        publish_run(run_dir, REPO, dry_run=True)


def test_damaged_weights_are_refused(run_dir: Path) -> None:
    weights = run_dir / "student" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(InvalidInput, match="whole safetensors"):
        publish_run(run_dir, REPO, dry_run=True)


def test_offline_it_says_so(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InvalidInput, match="HF_HUB_OFFLINE"):
        publish_run(run_dir, REPO)


def test_without_a_network_it_says_so(
    online: Hub, run_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InvalidInput, match=r"network: got 'http://127.0.0.1:9'.*can't be reached"):
        publish_run(run_dir, REPO)
    assert capsys.readouterr().err.count("once more in") == 4


def test_a_card_that_is_edited_meanwhile_is_merged_again(
    online: Hub, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_run(run_dir, REPO)
    (run_dir / "student" / "config.json").write_text((run_dir / "student" / "config.json").read_text() + "\n")
    from hf_kdnas.hub import publish

    read = publish.merge_cards

    def merge_slowly(card: str, older: str):
        if "Meanwhile" not in older:
            put(online, REPO, {"README.md": f"{older}\n## Meanwhile\n\nEdited.\n".encode()})
        return read(card, older)

    monkeypatch.setattr(publish, "merge_cards", merge_slowly)
    publish_run(run_dir, REPO)
    assert "## Meanwhile" in files_of(online)["README.md"].decode()


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("again", [False, True])
def test_every_fault_at_every_request(online: Hub, run_dir: Path, fault: str, again: bool) -> None:
    """It succeeds after another try or says why not, `main` has all or nothing, the next one succeeds."""
    publish_run(run_dir, REPO)
    whole = files_of(online)
    before = {**whole, "README.md": b"---\nlicense: mit\n---\n# Mine\n\n## Mine\n\nHere.\n", "old": b"1"}
    before["kdnas.json"] = b'{"files": ["old"]}'
    before["model.safetensors"] = b"older"
    weights = whole["model.safetensors"].split(b"sha256:")[1][:64].decode()
    stored = {oid: content for oid, content in online.large.items() if again and oid != weights}
    number, failures = 0, []
    while True:
        online.repos.clear()
        online.large = dict(stored)
        if again:
            put(online, REPO, before)
        start = dict(files_of(online)) if again else None
        online.begin((number, fault))
        try:
            publish_run(run_dir, REPO)
        except InvalidInput as error:
            failures.append(f"{online.requests[number]}: {error}")
            seen = files_of(online) if REPO in online.repos else start
            assert seen == start or list(seen) == [".gitattributes"], failures[-1]
        struck = len(online.requests) > number
        online.begin()
        publish_run(run_dir, REPO)
        done = files_of(online)
        assert "old" not in done
        assert ("## Mine\n\nHere." in done["README.md"].decode()) == again
        assert {**done, "README.md": b""} == {**whole, "README.md": b""}
        if not struck:
            break
        number += 1
    assert number >= 10
    assert failures == []  # each is passing, and so are they all


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["429", "500", "reset"])
def test_a_hub_that_stays_broken_leaves_nothing_half_done(online: Hub, run_dir: Path, fault: str) -> None:
    publish_run(run_dir, REPO)
    requests = len(online.requests)
    for number in range(requests):
        online.repos.clear()
        online.large.clear()
        online.begin((number, fault), persistent=True)
        with pytest.raises(InvalidInput, match=r"429|rate limit|500|reached|reset|aborted|closed"):
            publish_run(run_dir, REPO)
        if REPO in online.repos:
            assert list(files_of(online)) == [".gitattributes"]
    online.begin()
    publish_run(run_dir, REPO)
    assert "model.safetensors" in files_of(online)
