"""`python -m hf_kdnas`, for launchers such as `accelerate launch -m hf_kdnas`."""

from __future__ import annotations

import sys

from hf_kdnas.cli import main

if __name__ == "__main__":
    sys.exit(main())
