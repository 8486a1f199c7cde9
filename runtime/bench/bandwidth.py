"""The roofline of decoding on a CPU: how fast memory can be read at all."""

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np


def read_bandwidth_gb_s(threads: int, *, megabytes: int = 512, rounds: int = 5) -> float:
    """Best of `rounds` streaming reads of one buffer per thread, in GB/s (1e9 bytes per second).

    Args:
        threads: how many threads read at once.
        megabytes: size of each thread's buffer; several times the last-level cache, or the cache is measured.
        rounds: repetitions.
    """
    buffers = [np.ones(megabytes * 2**20 // 4, np.float32) for _ in range(threads)]
    best = 0.0
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(rounds):
            start = time.perf_counter()
            list(pool.map(np.max, buffers))
            best = max(best, sum(one.nbytes for one in buffers) / (time.perf_counter() - start))
    return best / 1e9
