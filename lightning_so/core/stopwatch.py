"""Process CPU time by stage, off by default."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def stage(seconds: dict[str, float] | None, name: str) -> Iterator[None]:
    """Add the process CPU seconds of the body to `seconds[name]`; nothing if `seconds` is None."""
    if seconds is None:
        yield
        return
    begin = time.process_time()
    yield
    seconds[name] = seconds.get(name, 0.0) + time.process_time() - begin
