"""The servers under soak: real uvicorn processes, alone, with a socket as from systemd, and with two workers."""

import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.bench.serve import Process
from tests.soak.record import Record, Usage, poll

ROOT = Path(__file__).parents[2]

SETTINGS = {
    "JAXCNN_RELOAD_SECONDS": "1",
    "JAXCNN_DRAIN_SECONDS": "2",
    "JAXCNN_READ_SECONDS": "20",
    "JAXCNN_DEADLINE_MS": "60000",
    "JAXCNN_MAX_BUFFER_BYTES": str(32 * 2**20),
    "JAXCNN_MAX_DECODE_BYTES": "250000000",
    "UVICORN_TIMEOUT_KEEP_ALIVE": "75",
}
LOG_BYTES = 256 * 1024
"""No file of a server may grow beyond this, as on a full disk."""

# The README's bound for one process, without what it has when it is idle: bodies twice, decoding, four threads,
# downloads, the heads and bodies of 500 connections, and a model that is loaded beside the one that it replaces.
BUSY_MB = 2 * 32 + 250 + 4 * (32 + 2 * 10) + 1 + 64 + 30

_UVICORN = "exec {python} -m uvicorn server.app:app --port {port}"
_COMMANDS = {
    "steady": _UVICORN,
    "socket": "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec {python} -m server.deploy.container serve",
    "workers": _UVICORN + " --workers 2",
}


class Service:
    """One deployment of the server, which may be restarted.

    Attributes:
      name: `steady` is never restarted; `socket` inherits a socket, in which clients wait while it restarts; `workers`
        has two processes behind a balancer, which asks them whether they are ready.
      port: where it listens.
      is_ready: whether the balancer sends requests.
      is_restarting: whether it was asked to end and is not ready again.
      restarted_at: when it was last ready again.
      terminated_at: when it was last asked to end.
    """

    def __init__(self, name: str, folder: Path, models: str, record: Record) -> None:
        self.name = name
        self.is_ready = False
        self.is_restarting = True
        self.restarted_at = 0.0
        self.terminated_at = -math.inf
        self.log = folder / f"{name}.log"
        self._metrics = folder / f"{name}-metrics"
        self._record = record
        self._environment = {
            key: value for key, value in os.environ.items() if not key.startswith(("JAXCNN_", "UVICORN_"))
        }
        self._environment |= SETTINGS | {"JAXCNN_MODEL": models, "JAXCNN_THREADS": "1" if name == "workers" else "2"}
        self.fill_log()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.port: int = self._listener.getsockname()[1]
        if name != "socket":
            self._listener.close()
        self.start()

    @property
    def waits_in_socket(self) -> bool:
        """Whether clients need no balancer: those that connect while it restarts are served afterwards."""
        return self.name == "socket"

    @property
    def processes(self) -> int:
        """How many processes serve."""
        return 2 if self.name == "workers" else 1

    def start(self) -> None:
        """Starts the processes, which append to the log."""
        environment = dict(self._environment)
        if self.name == "workers":
            shutil.rmtree(self._metrics, ignore_errors=True)
            self._metrics.mkdir()
            environment["PROMETHEUS_MULTIPROC_DIR"] = str(self._metrics)
        command = _COMMANDS[self.name].format(python=sys.executable, port=self.port)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                ["sh", "-c", f"ulimit -f {LOG_BYTES // 512}; {command}"],
                cwd=ROOT,
                env=environment,
                stdin=self._listener if self.waits_in_socket else subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def restart(self) -> None:
        """Terminates the service, which has to end with status 0, and starts it again."""
        await self._end()
        self.start()
        await self.wait_until_ready()

    async def stop(self) -> None:
        """Terminates the service for good."""
        await self._end()
        self._listener.close()

    def kill(self) -> None:
        """Ends all processes at once, after a failure."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    async def _end(self) -> None:
        self.is_restarting = True
        self.terminated_at = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        if not await poll(lambda: self._process.poll() is not None, 2 * self._record.patience):
            self._record.fault(f"{self.name} did not end at SIGTERM")
            self.kill()
        elif self._process.returncode != 0:
            self._record.fault(f"{self.name} ended with status {self._process.returncode}")

    async def wait_until_ready(self) -> None:
        """Waits until the balancer sends requests; a service that does not start ends the soak."""
        self.is_ready = False
        await poll(lambda: self._is_started() or self._process.poll() is not None, 4 * self._record.patience)
        if not self._is_started():
            raise RuntimeError(f"{self.name} does not start: {self.log.read_text().strip()[-2000:]}")
        self.is_restarting = False
        self.restarted_at = time.monotonic()

    def _is_started(self) -> bool:
        """Whether it responds, and each worker has loaded the models, after which it writes its metrics."""
        if self.name != "workers" or not self.is_ready:
            return self.is_ready
        return len({path.stem.rpartition("_")[2] for path in self._metrics.iterdir()}) >= self.processes

    def check_is_alive(self) -> None:
        """Notes a fault if the service has ended by itself, and starts it again."""
        if not self.is_restarting and self._process.poll() is not None:
            self._record.fault(f"{self.name} ended by itself with status {self._process.returncode}")
            self.start()

    def usage(self) -> Usage:
        """Returns what all of its processes occupy."""
        family = Process(self._process.pid)
        return Usage(round(family.rss_mb(), 1), family.descriptors(), family.threads(), self.processes)

    def fill_log(self) -> None:
        """Fills the disk that the log is on."""
        with self.log.open("ab") as log:
            log.write(b"\n" * (LOG_BYTES - log.tell()))

    def empty_log(self) -> None:
        """Makes room on that disk."""
        self.read_log()
        os.truncate(self.log, 0)

    def read_log(self) -> str:
        """Returns the log since it was last emptied, and notes a fault for a traceback in it."""
        text = self.log.read_text(errors="replace")
        for line in text.splitlines():
            if "raceback" in line:
                self._record.fault(f"{self.name} logged {line[:1000]}")
        return text
