"""The artifact store: immutable files and directories by fsspec URL (`file://`, `s3://`).

A directory is complete exactly when its `MANIFEST.json` (written last) is there and agrees with its files.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

import fsspec

from app.core.errors import NotFound
from app.core.settings import settings

MANIFEST = "MANIFEST.json"


def url(*parts: str) -> str:
    """The URL of a path in this installation's store."""
    return "/".join([settings().artifacts, *parts])


def local_path(where: str) -> Path | None:
    """The path behind a `file://` URL, None for any other scheme."""
    parsed = urlparse(where)
    return Path(unquote(parsed.path)) if parsed.scheme == "file" else None


def write_text(where: str, lines: Iterator[str] | list[str]) -> str:
    """Write a text file and return the sha256 of its bytes. Written beside its place and moved, so never seen half."""
    digest = hashlib.sha256()
    files, path = fsspec.core.url_to_fs(where)
    files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    partial = f"{path}.partial"
    with files.open(partial, "wb") as out:
        for line in lines:
            data = line.encode()
            digest.update(data)
            out.write(data)
    files.mv(partial, path)
    return digest.hexdigest()


def read_text(where: str) -> Iterator[str]:
    """The lines of a text file, or `NotFound`."""
    try:
        with fsspec.open(where, "r", encoding="utf-8") as file:
            yield from file
    except FileNotFoundError as error:
        raise NotFound("The file behind this record is gone from the artifact store.") from error


def upload(directory: Path, where: str) -> str:
    """Copy a finished directory into the store, the manifest last, and return the manifest's sha256."""
    manifest = directory / MANIFEST
    names = [*json.loads(manifest.read_text())["files"], MANIFEST]
    files, path = fsspec.core.url_to_fs(where)
    for name in names:
        target = f"{path}/{name}"
        files.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        files.put_file(str(directory / name), target)
    return hashlib.sha256(manifest.read_bytes()).hexdigest()


def download(where: str, cache: Path) -> Path:
    """A local directory or file with the contents of `where`: itself for `file://`, else a verified copy in `cache`."""
    here = local_path(where)
    if here is not None:
        if not here.exists():
            raise NotFound(f"{where.rsplit('/', 1)[-1]} is gone from the artifact store.")
        return here
    target = cache / hashlib.sha256(where.encode()).hexdigest()[:24]
    if target.exists():
        return target
    partial = target.with_name(target.name + ".partial")
    if partial.exists():
        shutil.rmtree(partial) if partial.is_dir() else partial.unlink()
    files, path = fsspec.core.url_to_fs(where)
    cache.mkdir(parents=True, exist_ok=True)
    files.get(path, str(partial), recursive=files.isdir(path))
    partial.rename(target)
    return target
