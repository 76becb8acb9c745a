"""The sets of a study, one after another, or side by side where there are several GPUs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing import connection, get_context, parent_process
from multiprocessing.context import SpawnProcess
from typing import Any, TypeVar

Task = TypeVar("Task")
Done = TypeVar("Done")
VISIBLE = "CUDA_VISIBLE_DEVICES"


def each(work: Callable[[Task], Done], tasks: Sequence[Task], devices: Sequence[str]) -> list[Done]:
    """Return what `work` makes of each task, in the order of the tasks.

    With two devices or more, and as many tasks, each task runs in a process of its own that sees one device, and a
    device takes the next task when it is free. Otherwise all run here, one after another.

    Args:
        work: a function of a module, which another process can import; it keeps what it finished.
        tasks: plain values.
        devices: what CUDA_VISIBLE_DEVICES is for each device; see `training.gpus`.

    Raises:
        Exception: what a task raised; the others are ended.
        ChildProcessError: a process was killed.
    """
    if min(len(devices), len(tasks)) < 2:
        return [work(task) for task in tasks]
    return _side_by_side(work, tasks, devices)


def _side_by_side(work: Callable[[Task], Done], tasks: Sequence[Task], devices: Sequence[str]) -> list[Done]:
    context = get_context("spawn")  # CUDA does not survive a fork
    waiting, free = list(enumerate(tasks)), list(devices)
    running: dict[connection.Connection, tuple[int, str, SpawnProcess]] = {}
    done: dict[int, Done] = {}
    try:
        while waiting or running:
            while waiting and free:
                (index, task), device = waiting.pop(0), free.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_run, args=(work, task, device, theirs), daemon=True)
                process.start()
                theirs.close()  # so that the end of the process ends the pipe
                running[ours] = (index, device, process)
            for pipe in connection.wait(list(running)):
                assert isinstance(pipe, connection.Connection)
                index, device, process = running.pop(pipe)
                done[index] = _received(pipe, process)
                free.append(device)
    finally:
        for _, _, process in running.values():
            process.terminate()
            process.join()
    return [done[index] for index in range(len(tasks))]


def _received(pipe: connection.Connection, process: SpawnProcess) -> Any:
    try:
        result, error = pipe.recv()
    except EOFError:
        process.join()
        raise ChildProcessError(
            f"a process that worked on one set ended with code {process.exitcode}; run the same command to resume"
        ) from None
    process.join()
    if error is not None:
        raise error  # from here, so that our own errors are shown as such
    return result


def _run(work: Callable[[Task], Done], task: Task, device: str, pipe: connection.Connection) -> None:
    """Work on one task in a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends this process
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ[VISIBLE] = device  # before CUDA is asked for anything
    try:
        answer: tuple[Done | None, Exception | None] = (work(task), None)
    except Exception as error:
        answer = (None, error)
    pipe.send(answer)


def _end_with_parent() -> None:
    """End this process when its parent was killed: a second start must not find it at work."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
