"""Directories on disk: written so that a crash at any moment leaves the old one or the new one, never a torn one.

Order of a write: files into `.tmp-…`, fsync each, `MANIFEST.json` (size and sha256 of each, stage, step, hashes) last,
fsync, rename the directory, fsync its parent. A directory without a valid manifest does not count. Only safetensors
and JSON are ever written or read: nothing here can execute what it loads.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workers.training import parallel
from workers.training.errors import DataError, DiskFullError, ModelError

MANIFEST = "MANIFEST.json"
_UNSAFE_SUFFIXES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".py", ".pyc", ".so", ".npy", ".h5"}
_UNSAFE_KEYS = {"auto_map", "trust_remote_code"}


def publish(target: Path, fill: Callable[[Path], None], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Let `fill` write a directory and put it at `target` in one step; returns the manifest.

    `facts` (stage, step, metrics, …) go into the manifest. A `target` that exists is replaced. On any failure the
    unfinished directory is removed and `target` is as it was; a full disk becomes `DiskFullError`.
    Of several processes the first one writes; the others take part in `fill`, which may have to gather from them.
    """
    if not parallel.first():
        with tempfile.TemporaryDirectory() as nowhere:
            fill(Path(nowhere))
        return {}
    _recover(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh, old = target.with_name(f".tmp-{target.name}"), target.with_name(f".old-{target.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir()
        fill(fresh)
        files = {str(path.relative_to(fresh)): _settle(path) for path in sorted(fresh.rglob("*")) if path.is_file()}
        weights = {name: facts["sha256"] for name, facts in files.items() if name.endswith(".safetensors")}
        manifest = {**facts, "model_hash": digest(weights), "files": files}
        (fresh / MANIFEST).write_text(json.dumps(manifest, indent=1))
        _sync(fresh / MANIFEST)
        _sync(fresh)
        if target.exists():
            target.rename(old)
        fresh.rename(target)
        _sync(target.parent)
    except Exception as error:
        shutil.rmtree(fresh, ignore_errors=True)
        _recover(target)
        if is_disk_full(error):
            raise DiskFullError(
                f"The disk is full: {target.name} could not be written. What was saved before is intact; "
                "free some space and resume."
            ) from error
        raise
    shutil.rmtree(old, ignore_errors=True)
    return manifest


def verify(directory: Path) -> dict[str, Any]:
    """Check every file against the manifest and return it; `ModelError` names the first file that differs."""
    try:
        manifest: dict[str, Any] = json.loads((directory / MANIFEST).read_text())
        files = manifest["files"].items()
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise ModelError(f"{directory.name} has no readable {MANIFEST}: it was not saved to its end.") from error
    for name, facts in files:
        path = directory / name
        if not path.is_file():
            raise ModelError(f"{directory.name} is damaged: {name} is missing.")
        if path.stat().st_size != facts["size"] or _sha256(path) != facts["sha256"]:
            raise ModelError(f"{directory.name} is damaged: {name} is not what was saved (size or sha256 differs).")
    return manifest


def check_model_directory(directory: Path) -> None:
    """Refuse a model directory that could run code when loaded, or that differs from its manifest."""
    for path in sorted(directory.rglob("*")):
        name = path.relative_to(directory)
        if path.suffix.lower() in _UNSAFE_SUFFIXES:
            raise ModelError(
                f"{directory.name} holds {name}: only safetensors and JSON are loaded, never code or pickles."
            )
        if path.suffix == ".json" and (key := _unsafe_key(path)):
            raise ModelError(f"{directory.name}/{name} asks for code of its own ('{key}'), which is never run.")
    if (directory / MANIFEST).exists():
        verify(directory)


def fingerprint(path: str | Path | None) -> str:
    """A short stable name for an input: a file's sha256, a checkpoint's model hash, else the hub id itself."""
    if path is None:
        return ""
    place = Path(path)
    if place.is_file():
        return _sha256(place)
    if (place / MANIFEST).is_file():
        try:
            return str(json.loads((place / MANIFEST).read_text())["model_hash"])
        except (ValueError, KeyError) as error:
            raise ModelError(f"{place.name}/{MANIFEST} cannot be read.") from error
    if place.is_dir():
        return digest({str(p.relative_to(place)): _sha256(p) for p in sorted(place.rglob("*")) if p.is_file()})
    return str(path)


def digest(value: Any) -> str:
    """sha256 of a value's canonical JSON."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def is_disk_full(error: BaseException) -> bool:
    """Whether this failure means that the disk (or the quota) is full; safetensors says so only in its message."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return "No space left on device" in str(error) or "os error 28" in str(error)


class States:
    """The resumable states of one run under `out/state/step-…`, the newest two kept.

    `run` identifies what is being run (recipe, data, models): a state of another run is an error and not a start.
    """

    def __init__(self, out: Path, run: str) -> None:
        self.directory, self.run = out / "state", run

    def clear(self) -> None:
        """Forget the states of earlier runs in the same place."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def save(self, step: int, tensors: Mapping[str, Any], info: Mapping[str, Any]) -> None:
        """Save named tensors and JSON facts after `step` steps, then drop all but the newest two states."""
        from safetensors.torch import save_file

        if not parallel.first():
            return

        def fill(directory: Path) -> None:
            save_file(
                {name: t.detach().cpu().contiguous() for name, t in tensors.items()}, directory / "state.safetensors"
            )
            (directory / "state.json").write_text(json.dumps(info))

        publish(self.directory / f"step-{step:09d}", fill, {"step": step, "run": self.run})
        for stale in self._directories()[2:]:
            shutil.rmtree(stale, ignore_errors=True)

    def latest(self, log: Callable[[str], None]) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
        """The newest whole state as (step, tensors, info); a torn one is passed over for the one before it."""
        from safetensors.torch import load_file

        for directory in self._directories():
            try:
                manifest = verify(directory)
            except ModelError as error:
                log(f"{error} Going back to the state before it.")
                continue
            if manifest["run"] != self.run:
                raise DataError(
                    "The saved state belongs to another run (its recipe, data or model differ): "
                    "start without --resume, or choose another --out."
                )
            info = json.loads((directory / "state.json").read_text())
            return manifest["step"], load_file(directory / "state.safetensors"), info
        return None

    def _directories(self) -> list[Path]:
        return sorted(self.directory.glob("step-*"), reverse=True) if self.directory.is_dir() else []


def finished(target: Path, run: str) -> dict[str, Any] | None:
    """The manifest of a checkpoint that this very run has already published whole, else None."""
    _recover(target)
    if not (target / MANIFEST).is_file():
        return None
    try:
        manifest = verify(target)
    except ModelError:
        return None
    return manifest if manifest.get("run") == run else None


def _recover(target: Path) -> None:
    """A crash between the two renames of a replacement leaves only the old directory, set aside: put it back."""
    old = target.with_name(f".old-{target.name}")
    if old.exists() and not target.exists():
        old.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def _settle(path: Path) -> dict[str, Any]:
    _sync(path)
    return {"size": path.stat().st_size, "sha256": _sha256(path)}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _unsafe_key(path: Path) -> str | None:
    if path.name in ("tokenizer.json", "vocab.json", MANIFEST):  # words of a vocabulary, not settings
        return None
    try:
        return _find_key(json.loads(path.read_text()))
    except (ValueError, RecursionError, OSError) as error:
        raise ModelError(f"{path.parent.name}/{path.name} is not readable JSON.") from error


def _find_key(value: Any) -> str | None:
    if isinstance(value, dict):
        for key in value:
            if key in _UNSAFE_KEYS:
                return str(key)
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((found for item in inner if (found := _find_key(item))), None)
