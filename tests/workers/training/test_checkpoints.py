"""Directories that a crash, a full disk or a flipped bit cannot tear."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from workers.training import checkpoints
from workers.training.checkpoints import MANIFEST, States, finished, publish, verify
from workers.training.errors import DataError, DiskFullError, ModelError


def _fill(text: str) -> "checkpoints.Callable[[Path], None]":
    def fill(directory: Path) -> None:
        (directory / "model.safetensors").write_text(text)
        (directory / "config.json").write_text("{}")

    return fill


def test_a_published_directory_verifies_and_its_manifest_has_size_hash_and_facts(tmp_path: Path) -> None:
    manifest = publish(tmp_path / "c", _fill("abc"), {"stage": "dpo", "step": 7})
    assert verify(tmp_path / "c") == manifest
    assert (manifest["stage"], manifest["step"]) == ("dpo", 7)
    assert manifest["files"]["model.safetensors"] == {
        "size": 3,
        "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    }
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("spoil", ["flip", "truncate", "remove", "manifest"])
def test_any_damage_is_found(tmp_path: Path, spoil: str) -> None:
    publish(tmp_path / "c", _fill("abc"), {})
    weights = tmp_path / "c" / "model.safetensors"
    if spoil == "flip":
        weights.write_text("abd")
    elif spoil == "truncate":
        weights.write_text("ab")
    elif spoil == "remove":
        weights.unlink()
    else:
        (tmp_path / "c" / MANIFEST).write_text("{")
    with pytest.raises(ModelError):
        verify(tmp_path / "c")


@pytest.mark.parametrize("moment", ["fill", "fsync", "rename"])
def test_a_full_disk_leaves_the_previous_checkpoint_and_no_litter(
    tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path / "c", _fill("old"), {"step": 1})
    full = OSError(errno.ENOSPC, "No space left on device")

    def fail(*_: object) -> None:
        raise full

    if moment == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    elif moment == "rename":
        rename = Path.rename
        monkeypatch.setattr(Path, "rename", lambda self, to: fail() if ".tmp" in self.name else rename(self, to))
    with pytest.raises(DiskFullError, match="disk is full") as e:
        publish(tmp_path / "c", fail if moment == "fill" else _fill("new"), {"step": 2})
    monkeypatch.undo()
    assert e.value.exit_code == 3
    assert verify(tmp_path / "c")["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_safetensors_own_words_for_a_full_disk_are_understood() -> None:
    from safetensors import SafetensorError

    assert checkpoints.is_disk_full(SafetensorError("I/O error: No space left on device (os error 28)"))
    assert not checkpoints.is_disk_full(OSError(errno.EACCES, "Permission denied"))


def test_kill_9_at_any_moment_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """A child replaces one directory over and over and is killed at random: what is there is always one write's."""
    program = (
        "import sys, itertools; from pathlib import Path; from workers.training.checkpoints import publish\n"
        "for i in itertools.count():\n"
        "    def fill(d):\n"
        "        for n in 'abc': (d / f'{n}.safetensors').write_bytes(bytes([i % 251]) * 200_000)\n"
        "    publish(Path(sys.argv[1]), fill, {'step': i})\n"
        "    print(i, flush=True)\n"
    )
    target, chance = tmp_path / "c", random.Random(0)
    for _ in range(12):
        child = subprocess.Popen([sys.executable, "-c", program, str(target)], stdout=subprocess.PIPE)
        assert child.stdout is not None and child.stdout.readline()  # at least one was published
        time.sleep(chance.random() * 0.05)
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        finished(target, "")  # what every reader does first: put an interrupted replacement right
        step = verify(target)["step"]
        contents = {path.read_bytes() for path in target.glob("*.safetensors")}
        assert contents == {bytes([step % 251]) * 200_000}


@pytest.mark.skipif(not shutil.which("strace"), reason="strace shows the order of system calls")
def test_files_are_on_disk_before_the_rename_and_the_manifest_is_last(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from workers.training.checkpoints import publish\n"
        "publish(Path(sys.argv[1]), lambda d: (d / 'w.safetensors').write_text('x'), {})"
    )
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-y", "-e", "trace=fsync,rename,renameat,renameat2", "-o", str(trace), sys.executable]
    if subprocess.run([*command, "-c", program, str(tmp_path / "c")], capture_output=True).returncode:
        pytest.skip("strace may not trace here")
    calls = [line.split(maxsplit=1)[1] for line in trace.read_text().splitlines() if str(tmp_path) in line]
    shown = ["rename" if c.startswith("rename") else c.split("<")[1].split(">")[0].rsplit("/", 1)[1] for c in calls]
    assert shown == ["w.safetensors", MANIFEST, ".tmp-c", "rename", tmp_path.name]


def test_states_keep_the_newest_two_and_fall_back_when_one_is_torn(tmp_path: Path) -> None:
    states, log = States(tmp_path, "run"), list[str]()
    for step in (1, 2, 3):
        states.save(step, {"w": torch.full((2,), float(step))}, {"beta": step})
    assert sorted(p.name for p in (tmp_path / "state").iterdir()) == ["step-000000002", "step-000000003"]
    newest = states.latest(log.append)
    assert newest is not None
    assert (newest[0], newest[1]["w"].tolist(), newest[2]) == (3, [3.0, 3.0], {"beta": 3})

    with (tmp_path / "state" / "step-000000003" / "state.safetensors").open("r+b") as handle:
        handle.truncate(20)
    older = states.latest(log.append)
    assert older is not None and older[0] == 2
    assert "damaged" in log[0]


def test_a_state_of_another_run_is_not_taken(tmp_path: Path) -> None:
    States(tmp_path, "one").save(1, {"w": torch.zeros(1)}, {})
    with pytest.raises(DataError, match="another run"):
        States(tmp_path, "other").latest(print)


def test_an_unfinished_write_is_not_a_state(tmp_path: Path) -> None:
    (tmp_path / "state" / ".tmp-step-000000009").mkdir(parents=True)
    assert States(tmp_path, "run").latest(print) is None


def test_a_finished_checkpoint_counts_only_for_its_own_run(tmp_path: Path) -> None:
    publish(tmp_path / "checkpoint", _fill("abc"), {"run": "mine"})
    assert finished(tmp_path / "checkpoint", "mine") is not None
    assert finished(tmp_path / "checkpoint", "other") is None
    assert finished(tmp_path / "nothing", "mine") is None


def test_fingerprints_follow_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").write_text("x")
    assert checkpoints.fingerprint(tmp_path / "a") == checkpoints.fingerprint(tmp_path / "b")
    assert checkpoints.fingerprint("some/hub-id") == "some/hub-id"
    publish(tmp_path / "c", _fill("abc"), {"step": 1})
    publish(tmp_path / "d", _fill("abc"), {"step": 2})
    assert checkpoints.fingerprint(tmp_path / "c") == checkpoints.fingerprint(tmp_path / "d")
    assert json.loads((tmp_path / "c" / MANIFEST).read_text())["model_hash"] == checkpoints.fingerprint(tmp_path / "c")
