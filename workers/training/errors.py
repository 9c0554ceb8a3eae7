"""What can go wrong in training, as the few kinds that a caller must tell apart (torch-free).

Each kind has its exit code, so that a supervisor knows without reading prose whether another attempt can help.
"""

from typing import ClassVar


class TrainingError(Exception):
    """A failure with one clear sentence for people and a `kind` for machines."""

    kind: ClassVar[str] = "internal"
    exit_code: ClassVar[int] = 1


class DataError(TrainingError):
    """The data or the recipe cannot be used as they are; trying again is pointless."""

    kind = "data"
    exit_code = 2


class RecordError(DataError):
    """One record of a JSONL file is wrong; the message names file, line and field and how to mend it."""

    def __init__(self, file: str, line: int, field: str | None, problem: str) -> None:
        self.file, self.line, self.field, self.problem = file, line, field, problem
        where = f"{file}, line {line}" + (f", field '{field}'" if field else "")
        super().__init__(f"{where}: {problem}")


class TooFewError(TrainingError):
    """There is too little data for the result to mean anything."""

    kind = "too_few"
    exit_code = 2


class ModelError(TrainingError):
    """The model directory or hub id cannot be used: unsafe, torn, of the wrong kind, or without a chat template."""

    kind = "model"
    exit_code = 2


class ServerError(TrainingError):
    """The server that should draw completions does not answer, or not as it should; later it may."""

    kind = "server"
    exit_code = 1


class DiskFullError(TrainingError):
    """No space left while writing; what was published before is untouched."""

    kind = "disk"
    exit_code = 3


class OutOfMemoryError(TrainingError):
    """Host or device memory ran out; the message has an estimate and says what to lower."""

    kind = "memory"
    exit_code = 4


class Interrupted(TrainingError):
    """SIGTERM came: the step was finished and the state written; `--resume` goes on from there."""

    kind = "interrupted"
    exit_code = 75
