"""What test_metrics.py runs in a process of its own: `load_offline.py ROWS`.

ROWS is JSON: by the path of a module, what its `compute` takes. Prints what each computes, likewise; any
attempt to reach the network ends it.
"""

from __future__ import annotations

import json
import os
import socket
import sys


def refuse(*_args: object, **_options: object) -> None:
    os._exit(99)  # an exception might be swallowed


socket.socket.connect = socket.getaddrinfo = refuse  # type: ignore[method-assign, assignment]

import evaluate  # noqa: E402

rows = json.loads(sys.argv[1])
print(json.dumps({path: evaluate.load(path).compute(**given) for path, given in rows.items()}))
