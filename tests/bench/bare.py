"""The upper bound of the machine: a bare loop that decodes and runs, in one process without a server.

`python -m tests.bench.bare MODEL SECONDS` prints pictures per second for two ways to use two cores.
"""

import json
import sys
import threading
import time
from pathlib import Path

import onnxruntime as ort

from server import picture
from tests.bench.load import jpegs


def measure(model: Path, files: list[bytes], *, threads: int, intra_op: int, seconds: float) -> float:
    """Returns the pictures per second of `threads` threads that share a session."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = intra_op
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    height, width = session.get_inputs()[0].shape[1:3]
    done = [0] * threads
    start = time.perf_counter()

    def loop(index: int) -> None:
        while time.perf_counter() - start < seconds:
            data = files[done[index] % len(files)]
            image = picture.Picture(data, height=height, width=width, max_pixels=10**7).decode()
            session.run(["probabilities"], {"image": image[None]})
            done[index] += 1

    workers = [threading.Thread(target=loop, args=(i,)) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(done) / (time.perf_counter() - start)


if __name__ == "__main__":
    path, seconds = Path(sys.argv[1]), float(sys.argv[2])
    files = jpegs()
    rates = {
        "1 thread, intra_op 2": measure(path, files, threads=1, intra_op=2, seconds=seconds),
        "2 threads, intra_op 1": measure(path, files, threads=2, intra_op=1, seconds=seconds),
    }
    print(json.dumps(rates))
