"""Directories with small random models, made once, and one thread, so that sums come out the same everywhere."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.workers.training.nets_in_memory import save_model, save_reward_model


@pytest.fixture(scope="module", autouse=True)  # before the modules' own fixtures, some of which train
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def llama_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture(scope="session")
def gpt2_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("models") / "gpt2", "gpt2")


@pytest.fixture(scope="session")
def reward_dir(tmp_path_factory: pytest.TempPathFactory, llama_dir: Path) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("models") / "reward", llama_dir)
