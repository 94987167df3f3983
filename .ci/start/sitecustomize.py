"""Every Python that tests start collects garbage seldom: while torch is imported that takes a third of the time."""

import gc

gc.set_threshold(100_000, 50, 100)
