"""The GPU queue's worker: one run at a time, each in a child process of its own (`--pool solo`).

Started as `celery -A workers.gpu worker -Q gpu --pool solo`. Never imports torch: CUDA does not survive a fork, and a
child that runs out of memory must not take the worker with it.
"""

import threading
import uuid
from typing import Any

from celery.signals import worker_ready, worker_shutting_down

from app.core.jobs import make_celery
from app.rounds import runs
from workers import stages

app = make_celery("tiebreak-gpu")
stopping = threading.Event()


@worker_shutting_down.connect
def _stop(**_: Any) -> None:
    """The child is asked to write its state; the run goes back into the queue."""
    stopping.set()


@worker_ready.connect
def _start(**_: Any) -> None:
    stages.sweep()


@app.task(name=runs.EXECUTE)
def execute_run(run_id: str) -> None:
    stages.execute(uuid.UUID(run_id), stopping)
