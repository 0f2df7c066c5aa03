"""Random choices that are the same on every machine and for every version of numpy: hashes of what is chosen from."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def keyed_hashes(numbers: NDArray[np.uint64], *key: object) -> NDArray[np.uint64]:
    """splitmix64 (Steele, Lea and Flood, OOPSLA 2014) of numbers and a key; another key, another order."""
    name = "/".join(str(part) for part in key)
    start = np.uint64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    with np.errstate(over="ignore"):
        x = numbers * np.uint64(0x9E3779B97F4A7C15) + start
        x ^= x >> np.uint64(30)
        x *= np.uint64(0xBF58476D1CE4E5B9)
        x ^= x >> np.uint64(27)
        x *= np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
        return x


def shuffled(count: int, *key: object) -> NDArray[np.int64]:
    """The numbers below `count` in an order that the key decides."""
    return np.argsort(keyed_hashes(np.arange(count, dtype=np.uint64), *key), kind="stable")
