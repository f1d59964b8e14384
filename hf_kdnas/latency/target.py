"""Where and how latency is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_kdnas.environment import environment
from hf_kdnas.errors import InvalidInput, MissingPackage

INSTALL = '"hf-kdnas[onnxruntime]"'
PRECISIONS = ("fp32", "int8")


def import_onnxruntime() -> Any:
    """ONNX Runtime.

    Raises:
        MissingPackage: If it isn't installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackage("onnxruntime", "to run ONNX models", INSTALL) from error
    return onnxruntime


@dataclass(frozen=True)
class LatencyTarget:
    """An ONNX Runtime provider and the inputs that it is timed on.

    Attributes:
        provider: Execution provider.
        threads: Threads inside an operator; operators run one after another.
        batch_size: Rows in a batch.
        sequence_length: Tokens in a row.
        precision: `fp32` or `int8` (dynamic quantisation), of the measured graph.
        warmup: Runs before the first that counts.
        rounds: Timed runs of each model, in turn with the reference.

    Raises:
        InvalidInput: If the provider is not there, or a value can't be used.
        MissingPackage: If ONNX Runtime isn't installed.
    """

    provider: str = "CPUExecutionProvider"
    threads: int = 1
    batch_size: int = 1
    sequence_length: int = 128
    precision: str = "fp32"
    warmup: int = 5
    rounds: int = 30

    def __post_init__(self) -> None:
        available = import_onnxruntime().get_available_providers()
        if self.provider not in available:
            raise InvalidInput(
                "latency.provider",
                self.provider,
                f"this ONNX Runtime has {', '.join(available)}",
                "Choose one of these, or install the ONNX Runtime that brings it.",
            )
        if self.precision not in PRECISIONS:
            raise InvalidInput(
                "latency.precision", self.precision, "must be fp32 or int8", "Choose one of these."
            )
        for name in ("threads", "batch_size", "sequence_length", "warmup", "rounds"):
            if getattr(self, name) < 1:
                raise InvalidInput(
                    f"latency.{name}", getattr(self, name), "must be at least 1", "Give a positive number."
                )

    def __str__(self) -> str:
        return f"{describe_target(vars(self))}, {self.precision}"

    @property
    def device(self) -> str:
        """What the provider runs on: the processor and its cores that are ours, or the GPU."""
        here = environment()
        if self.provider != "CPUExecutionProvider":
            return here["device"]
        cores = here["cores"]
        return f"{here['cpu']}, {cores} core{'' if cores == '1' else 's'}"

    def session(self, path: Path) -> Any:
        """An ONNX Runtime session of a model file on this target.

        Raises:
            InvalidInput: If the provider can't be started, which ONNX Runtime only logs, to go on with
                another one.
        """
        onnxruntime = import_onnxruntime()
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4  # what a run raises, it need not print too
        # Idle threads of one session would otherwise spin on while another session is timed.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        session = onnxruntime.InferenceSession(str(path), options, providers=[self.provider])
        used = session.get_providers()[0]
        if used != self.provider:
            raise InvalidInput(
                "latency.provider",
                self.provider,
                f"ONNX Runtime could not start it here and fell back to {used}",
                "Install the libraries that it needs, or choose another provider.",
            )
        return session


def describe_target(fields: Mapping[str, Any]) -> str:
    """A target but for its precision in words, from its fields: also one that isn't available here."""
    threads = "1 thread" if fields["threads"] == 1 else f"{fields['threads']} threads"
    return (
        f"{fields['provider']}, {threads}, batch {fields['batch_size']}, {fields['sequence_length']} tokens"
    )
