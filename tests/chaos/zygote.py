"""`python zygote.py DIRECTORY SEED`: has imported everything, and forks dispatchers and the attempts they start.

The dispatcher, the driver's frame and the store are the real ones. Only the work is small: three blocks of nothing, on
the way of which some attempts crash. What an attempt does stands in `DIRECTORY/journal`, a line for each step.
"""

import asyncio
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from service_helpers import block_record

from bitpress_service.redis_jobstore import RedisJobStore
from bitpress_workers import driver
from bitpress_workers.dispatcher import Dispatcher

BLOCKS = 3
BLOCK_SECONDS = 0.2
LEASE_SECONDS = 3.0
CRASHES = 0.15  # of first attempts


def main(directory: Path, seed: int) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "zygote.sock"))
        listener.listen(64)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those who end
        while True:
            connection, _ = listener.accept()
            if os.fork() == 0:
                listener.close()
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                serve(connection, directory, seed)
                os._exit(0)
            connection.close()


def serve(connection: socket.socket, directory: Path, seed: int) -> None:
    request = connection.makefile("rb")
    command, length = request.readline().split()
    text = request.read(int(length)).decode()
    if command == b"dispatch":
        connection.sendall(str(os.getpid()).encode())
        connection.close()
        asyncio.run(dispatch(directory, text))
        return
    threading.Thread(target=die_with_stub, args=(connection,), daemon=True).start()
    connection.sendall(str(drive(driver.Order.model_validate_json(text), directory, seed)).encode())


def die_with_stub(connection: socket.socket) -> None:
    connection.recv(1)
    os._exit(137)


async def dispatch(directory: Path, redis_url: str) -> None:
    stub = Path(__file__).with_name("driver_stub.py")
    dispatcher = Dispatcher(
        store=RedisJobStore.from_url(redis_url),
        redis_url=redis_url,
        storage_url=directory.as_uri(),
        ray_address="local",
        logs=directory / "logs",
        lease_seconds=LEASE_SECONDS,
        poll_seconds=0.1,
        driver_command=(sys.executable, "-I", "-S", str(stub), str(directory / "zygote.sock")),
    )
    await dispatcher.run(asyncio.Event())


def drive(order: driver.Order, directory: Path, seed: int) -> int:
    """An attempt, its work apart as `driver.main` does it."""
    journal = os.open(directory / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    chance = random.Random(f"{seed} {order.jobs[0].job.id} {order.jobs[0].job.attempt}")
    first = max(each.job.attempt for each in order.jobs) == 1
    crash_at = chance.randrange(BLOCKS) if first and chance.random() < CRASHES else None

    def work(_: driver.Order, recorders: Sequence[driver.JobRecorder]) -> bool:
        known = {recorder.job.id: recorder.blocks() for recorder in recorders}
        for index in range(BLOCKS):
            for recorder in recorders:
                if index not in known[recorder.job.id]:
                    make_block(recorder, index)
        for recorder in recorders:
            recorder.finish({"manifest.json": f"{recorder.fence}/manifest.json"})
            recorder.ended(None)
        return True

    def make_block(recorder: driver.JobRecorder, index: int) -> None:
        time.sleep(chance.uniform(0, BLOCK_SECONDS))
        line = f"{recorder.job.id} {index} {recorder.fence}\n"
        os.write(journal, f"computed {line}".encode())
        if index == crash_at:
            os.kill(os.getpid(), signal.SIGKILL)
        recorder.block(replace(block_record(index), key=f"{recorder.fence}/{index}"))
        os.write(journal, f"recorded {line}".encode())

    driver._run = work
    return 0 if driver.drive(order) else 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
