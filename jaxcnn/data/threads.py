"""Work that all cores share, in little memory."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from jaxcnn.data.decoding import decoding_threads

AHEAD = 2
"""Items that wait for each thread, so that no thread waits for the next one."""


def map_ahead[Item, Result](work: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result]:
    """Yields what a function returns for each item, in the order of the items; all cores compute it.

    Items are read only as far ahead as keeps the cores busy, so that memory does not grow with their number. When the
    generator is closed, or an error such as Ctrl-C ends it, only the items in progress are finished.

    Args:
      work: the function, called from several threads; it should release the interpreter lock for most of its time.
      items: its arguments.
    """
    threads = decoding_threads()
    pool = ThreadPoolExecutor(threads)
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(work, item))
            if len(waiting) > AHEAD * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
