"""What needs a running loop, in a thread of its own, for tests that have none."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def running(make: Callable[[], contextlib.AbstractAsyncContextManager[None]], seconds: float) -> Iterator[None]:
    """Enter what ``make`` returns in a loop in a thread, and leave it at the end.

    Raises:
        RuntimeError: if it is not entered in so many seconds, or cannot be; what it began is ended then, too.

    """
    ready, failed, stop = threading.Event(), [], asyncio.Event()

    async def main() -> None:
        try:
            async with make():
                ready.set()
                await stop.wait()
        except BaseException as error:
            failed.append(error)
            raise
        finally:
            ready.set()

    with asyncio.Runner() as runner:
        loop = runner.get_loop()

        def run() -> None:
            with contextlib.suppress(BaseException):
                runner.run(main())

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            if not ready.wait(seconds) or failed:
                raise RuntimeError(f"it did not start: {failed}")
            yield
        finally:
            loop.call_soon_threadsafe(stop.set)
            thread.join(seconds)
