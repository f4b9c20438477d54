"""Many ids at once out of random bytes, as text."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


def random_uuids(rng: np.random.Generator, count: int) -> list[str]:
    """`count` uuids of version 4; the first ones are the same whatever `count` is."""
    raw = np.frombuffer(rng.bytes(16 * count), dtype=np.uint8).reshape(count, 16).copy()
    return _uuids(raw, version=4)


def timed_uuids(rng: np.random.Generator, times: npt.NDArray[np.datetime64]) -> list[str]:
    """One uuid of version 7 (RFC 9562) for each of `times`; they sort as the times do."""
    raw = np.frombuffer(rng.bytes(16 * len(times)), dtype=np.uint8).reshape(-1, 16).copy()
    milliseconds = times.astype("datetime64[ms]").astype(np.int64).astype(">u8")
    raw[:, :6] = milliseconds.view(np.uint8).reshape(-1, 8)[:, 2:]
    return _uuids(raw, version=7)


def object_ids(rng: np.random.Generator, times: npt.NDArray[np.datetime64]) -> list[str]:
    """One ObjectId for each of `times`, as 24 hexadecimal digits."""
    raw = np.frombuffer(rng.bytes(12 * len(times)), dtype=np.uint8).reshape(-1, 12).copy()
    seconds = times.astype("datetime64[s]").astype(np.int64).astype(">u4")
    raw[:, :4] = seconds.view(np.uint8).reshape(-1, 4)
    return [raw_id.hex() for raw_id in map(bytes, raw)]


def _uuids(raw: Bytes, *, version: int) -> list[str]:
    raw[:, 6] = (raw[:, 6] & 0x0F) | (version << 4)
    raw[:, 8] = (raw[:, 8] & 0x3F) | 0x80
    text = raw.tobytes().hex()
    return [
        f"{text[i : i + 8]}-{text[i + 8 : i + 12]}-{text[i + 12 : i + 16]}"
        f"-{text[i + 16 : i + 20]}-{text[i + 20 : i + 32]}"
        for i in range(0, len(text), 32)
    ]
