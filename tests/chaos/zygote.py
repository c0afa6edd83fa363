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
from dataclasses import replace
from pathlib import Path

from sample_report import sample_report
from service_helpers import block_record

from bitpress.artifacts import Report
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
    chance = random.Random(f"{seed} {order.job.id} {order.job.attempt}")
    crash_at = chance.randrange(BLOCKS) if order.job.attempt == 1 and chance.random() < CRASHES else None

    def work(order: driver.Order, recorder: driver.JobRecorder) -> Report:
        known = recorder.blocks()
        for index in range(BLOCKS):
            if index in known:
                continue
            time.sleep(chance.uniform(0, BLOCK_SECONDS))
            line = f"{order.job.id} {index} {order.fence}\n"
            os.write(journal, f"computed {line}".encode())
            if index == crash_at:
                os.kill(os.getpid(), signal.SIGKILL)
            recorder.block(replace(block_record(index), key=f"{order.fence}/{index}"))
            os.write(journal, f"recorded {line}".encode())
        recorder.finish({"manifest.json": f"{order.fence}/manifest.json"})
        return sample_report(order.job.spec)

    driver._run = work
    result = driver.drive(order)
    path = Path(order.scratch) / driver.RESULT
    path.with_suffix(".part").write_text(result.model_dump_json())
    path.with_suffix(".part").rename(path)
    return 0 if result.code is None else 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
