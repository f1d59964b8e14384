"""The commands that share what runs found: `kdnas publish` and `kdnas gallery`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from hf_kdnas.errors import InvalidInput


def add_publish(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `kdnas publish`."""
    command.add_argument(
        "run_dir",
        metavar="RUN",
        type=Path,
        help="folder of the run, or of a student that superlm extract wrote",
    )
    command.add_argument("repo_id", metavar="REPO_ID", help="NAME or OWNER/NAME; made where there is none")
    command.add_argument("--private", action="store_true", help="make the repository a private one")
    command.add_argument(
        "--revision", metavar="BRANCH", help="commit to this branch, made where there is none (main)"
    )
    command.add_argument("--pr", action="store_true", help="open a pull request instead")
    command.add_argument(
        "--dry-run", action="store_true", help="list files and sizes, and stop; without network or token"
    )


def publish(options: argparse.Namespace) -> None:
    """Run `kdnas publish`."""
    from hf_kdnas import workflows

    names = ("private", "revision", "pr", "dry_run")
    done = workflows.publish(
        options.run_dir, options.repo_id, **{name: getattr(options, name) for name in names}
    )
    for note in done.notes:
        print(f"note: {note}", file=sys.stderr)
    if options.dry_run:
        for name, size in done.sizes.items():
            print(f"{size:>12,}  {name}")
        print(f"{sum(done.sizes.values()):>12,}  bytes in {len(done.sizes)} files, for {done.repo_id}")
    else:
        print(done.url)


def add_gallery(command: argparse.ArgumentParser) -> None:
    """Add the arguments of `kdnas gallery`."""
    command.add_argument(
        "folders", metavar="FOLDER", type=Path, nargs="+", help="folder of a run, or one that holds such"
    )
    command.add_argument("--output", metavar="FILE", type=Path, help="write it there, not on the screen")


def gallery(options: argparse.Namespace) -> None:
    """Run `kdnas gallery`."""
    from hf_kdnas import workflows
    from hf_kdnas.run import write_text

    page = workflows.gallery(options.folders)
    if options.output is None:
        print(page, end="")
    else:
        try:
            write_text(options.output, page)
        except OSError as error:
            raise InvalidInput(
                "--output",
                str(options.output),
                f"it can't be written ({error.strerror})",
                "Name another file.",
            ) from None
        print(options.output)
