"""Draw layer_maps.svg, which teacher layers each student layer learns from: `make docs`."""

from __future__ import annotations

from pathlib import Path

from hf_kdnas.distill.layer_maps import KINDS, layer_pairs

PAGE = Path(__file__).with_name("layer_maps.svg")

TEACHER, STUDENT = 6, 3
# Of a panel and of a layer in it, in pixels.
WIDTH, STEP, TOP = 190, 34, 52
BOX_WIDTH, BOX_HEIGHT = 44, 24
TEACHER_X, STUDENT_X = 20, 118
# From the lowest student layer on; safe for eyes that tell red from green badly.
COLOURS = ("#0072b2", "#d55e00", "#009e73")


def picture() -> str:
    """The picture: a panel a map, teacher left, student right, the embeddings (0) at the bottom."""
    width, height = WIDTH * len(KINDS), TOP + STEP * (TEACHER + 1) + 10
    title = f"Layer maps of a student of {STUDENT} layers to a teacher of {TEACHER}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        'aria-labelledby="maps-title" font-family="DejaVu Sans, Verdana, sans-serif" font-size="13" '
        'text-anchor="middle">',
        f'<title id="maps-title">{title}</title>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    for place, kind in enumerate(KINDS):
        parts += [f'<g transform="translate({place * WIDTH} 0)">', *_panel(kind), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _panel(kind: str) -> list[str]:
    parts = [
        f'<text x="{WIDTH / 2:g}" y="22" font-family="DejaVu Sans Mono, monospace">{kind}</text>',
        f'<text x="{TEACHER_X + BOX_WIDTH / 2:g}" y="42" font-size="11" fill="#4b5563">teacher</text>',
        f'<text x="{STUDENT_X + BOX_WIDTH / 2:g}" y="42" font-size="11" fill="#4b5563">student</text>',
    ]
    for teacher, student in layer_pairs(kind, TEACHER, STUDENT):
        parts.append(
            f'<path d="M{TEACHER_X + BOX_WIDTH} {_teacher_y(teacher):g}L{STUDENT_X} {_student_y(student):g}" '
            f'stroke="{COLOURS[student - 1]}" stroke-width="1.8"/>'
        )
    parts += [_box(TEACHER_X, _teacher_y(layer), str(layer), "#9ca3af") for layer in range(TEACHER + 1)]
    parts += [
        _box(STUDENT_X, _student_y(layer), str(layer), COLOURS[layer - 1]) for layer in range(1, STUDENT + 1)
    ]
    return parts


def _box(x: float, y: float, label: str, colour: str) -> str:
    return (
        f'<rect x="{x:g}" y="{y - BOX_HEIGHT / 2:g}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="5" '
        f'fill="#f3f4f6" stroke="{colour}"/><text x="{x + BOX_WIDTH / 2:g}" y="{y + 5:g}">{label}</text>'
    )


def _teacher_y(layer: float) -> float:
    return TOP + STEP * (TEACHER - layer) + BOX_HEIGHT / 2


def _student_y(layer: int) -> float:
    """Beside the teacher's layer that is as deep in its model."""
    return _teacher_y(layer * TEACHER / STUDENT)


if __name__ == "__main__":
    PAGE.write_text(picture(), encoding="utf-8")
    print(PAGE)
