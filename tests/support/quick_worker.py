"""A dispatcher and a driver whose work is two blocks of nothing; all around the work is real.

`python quick_worker.py dispatch REDIS_URL DIRECTORY` serves until SIGTERM and starts `python quick_worker.py drive`.
"""

import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from service_helpers import block_record

from bitpress.jobs import Progress
from bitpress_service import logs, tracing
from bitpress_service.redis_jobstore import RedisJobStore
from bitpress_service.settings import Settings
from bitpress_workers import driver
from bitpress_workers.dispatcher import Dispatcher


def work(_: driver.Order, recorders: Sequence[driver.JobRecorder]) -> bool:
    for index in range(2):
        for recorder in recorders:
            recorder.progress(Progress(phase="calibrating", blocks_done=index, blocks_total=2))
            recorder.log(f"at block {index}")
            recorder.block(block_record(index))
    for recorder in recorders:
        recorder.finish({"manifest.json": "manifest.json"})
        recorder.ended(None)
    return True


async def dispatch(redis_url: str, directory: Path) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    store = RedisJobStore.from_url(redis_url)
    dispatcher = Dispatcher(
        store=store,
        redis_url=redis_url,
        storage_url=directory.as_uri(),
        ray_address="local",
        logs=directory / "logs",
        poll_seconds=0.1,
        driver_command=(sys.executable, __file__, "drive"),
    )
    await dispatcher.run(stop)
    await store.aclose()


if __name__ == "__main__":
    if sys.argv[1] == "drive":
        driver._run = work
        sys.exit(driver.main())
    logs.configure(Settings().log_format)
    tracing.configure("dispatcher")
    asyncio.run(dispatch(sys.argv[2], Path(sys.argv[3])))
