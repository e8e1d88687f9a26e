"""Random changes of bytes, where no coverage guides them."""

from collections.abc import Iterator, Sequence
from random import Random

TOKENS = (
    b"\0",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\r\n",
    b"\n",
    b'"',
    b"[" * 2000,
    b"{",
    b"1e999",
    b"-1",
    b"NaN",
)


def mutated(seeds: Sequence[bytes], random: Random) -> Iterator[bytes]:
    """Yields any number of inputs, each made of one or two of the seeds."""
    while True:
        data = random.choice(seeds)
        for _ in range(random.randint(1, 4)):
            data = _change(data, random.choice(seeds), random)
        yield data


def _change(data: bytes, other: bytes, random: Random) -> bytes:
    start, end = sorted(random.randint(0, len(data)) for _ in range(2))
    end = min(end, start + random.choice((1, 1, 4, 16, 1000)))
    match random.randrange(6):
        case 0:
            middle = bytes(byte ^ (1 << random.randrange(8)) for byte in data[start : start + 1])
            return data[:start] + middle + data[start + 1 :]
        case 1:
            return data[:start] + random.randbytes(end - start) + data[end:]
        case 2:
            return data[:start] + data[end:]
        case 3:
            return data[:end] + data[start:]
        case 4:
            return data[:start] + random.choice(TOKENS) + data[end:]
        case _:
            return data[:start] + other[random.randint(0, len(other)) :]
