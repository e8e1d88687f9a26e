"""The server on a bare machine: its units, the proxies in front of it, and restarts that lose nothing."""

import contextlib
import ctypes
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import ports
import pytest

from server.deploy import container
from server.settings import Settings
from tests.server.deploy.clients import asking
from tests.server.wire import COLOURS, encode, post

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "server" / "deploy" / "systemd"
UNIT, NGINX, CADDY = ((FOLDER / name).read_text() for name in ("jaxcnn.service", "nginx.conf", "Caddyfile"))

# Passes the socket that is its standard input as systemd does, and becomes the server.
ACTIVATE = "exec 3<&0 </dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec {python} -m server.deploy.container serve"

_PR_SET_MDWE, _PR_MDWE_REFUSE_EXEC_GAIN = 65, 1


def need(*programs):
    if missing := [program for program in programs if shutil.which(program) is None]:
        pytest.skip(f"{', '.join(missing)} is not installed")


def free_socket():
    listener = socket.create_server(("127.0.0.1", 0))
    return listener, listener.getsockname()[1]


class Service:
    """The server as a unit with a socket: the socket stays while the server is restarted."""

    def __init__(self, model_path, log, **options):
        self.listener, self.port = free_socket()
        self._model_path, self._log, self._options = model_path, log, options
        self.start()

    def start(self):
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("JAXCNN_")}
        environment = {**inherited, "JAXCNN_MODEL": str(self._model_path), "JAXCNN_DRAIN_SECONDS": "0"}
        command = ["sh", "-c", ACTIVATE.format(python=sys.executable)]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdin=self.listener, stdout=log, stderr=log, **self._options
            )

    def wait_until_ready(self):
        """The connection waits in the socket until the server accepts it."""
        url = f"http://127.0.0.1:{self.port}/readyz"
        assert httpx.get(url, trust_env=False, timeout=30).status_code == 200

    def stop(self):
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)


@pytest.fixture
def start_service(model_path, tmp_path):
    with contextlib.ExitStack() as stack:

        def start(**options):
            service = Service(model_path, tmp_path / "server.log", **options)
            stack.callback(service.listener.close)
            stack.callback(lambda: service.process.poll() is None and service.stop())
            service.wait_until_ready()
            return service

        yield start


def ask_through_restarts(port, service, count=2):
    restarts = []
    with asking(port, "red") as answered:
        for _ in range(count):
            time.sleep(0.4)
            assert service.stop() == 0
            service.start()
            restarts.append(time.monotonic())
            # A start is not interrupted.
            service.wait_until_ready()
        time.sleep(0.4)
    # It was asked before, between and after.
    assert answered[0] < restarts[0] < restarts[-1] < answered[-1]


def test_units_pass_systemd_analyze():
    need("systemd-analyze")
    units = [FOLDER / "jaxcnn.service", FOLDER / "jaxcnn.socket"]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=15", units[0]]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-200:]


def test_shell_of_the_installer_is_sound():
    need("shellcheck")
    done = subprocess.run(["shellcheck", FOLDER / "install.sh"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("arguments", [["--proxy"], ["--caddy"], ["--caddy", ""]])
def test_the_installer_refuses_what_it_does_not_know(arguments):
    done = subprocess.run(["sh", FOLDER / "install.sh", *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"install\.sh: (there is no option --proxy: use|--caddy needs a domain)[^\n]*\n", done.stderr)


def seconds(pattern, text):
    return int(re.search(pattern, text)[1])


def test_limits_of_the_proxies_are_those_of_the_server():
    settings, kept = Settings(), seconds(r"timeout_keep_alive=(\d+)", Path(container.__file__).read_text())
    longest = settings.read_seconds + settings.deadline_ms / 1000
    assert seconds(r"client_max_body_size (\d+)m;", NGINX) * 2**20 == settings.max_body_bytes
    assert seconds(r"max_size (\d+)MiB", CADDY) * 2**20 == settings.max_body_bytes
    for name in ("client_header_timeout", "client_body_timeout", "send_timeout"):
        assert seconds(rf"{name} (\d+)s;", NGINX) == settings.read_seconds
    for name in ("read_header", "read_body"):
        assert seconds(rf"{name} (\d+)s", CADDY) == settings.read_seconds
    assert seconds(r"proxy_read_timeout (\d+)s;", NGINX) > longest
    assert seconds(r"response_header_timeout (\d+)s", CADDY) > longest
    assert seconds(r"keepalive_timeout (\d+)s;", NGINX) < kept
    assert seconds(r"TimeoutStopSec=(\d+)", UNIT) > longest


def test_nginx_refuses_the_site_beside_debians_own():
    """Debian's is the default server, too: nginx then refuses to start, instead of serving the welcome page."""
    assert "listen 80 default_server;" in NGINX
    assert "rm /etc/nginx/sites-enabled/default" in NGINX


@pytest.mark.run
def test_connections_wait_in_the_socket_while_there_is_no_server(start_service):
    service = start_service()
    assert service.stop() == 0
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(socket.create_connection(("127.0.0.1", service.port), timeout=0.5))
        service.start()
        service.wait_until_ready()


@pytest.mark.run
def test_a_restart_loses_no_request_of_new_connections(start_service):
    service = start_service()
    is_over, lost, answered = threading.Event(), [], []

    def ask_once():
        while not is_over.is_set():
            try:
                response = httpx.get(f"http://127.0.0.1:{service.port}/readyz", trust_env=False, timeout=30)
                # A response says so if the server has begun to stop.
                assert response.status_code in (200, 503)
                answered.append(time.monotonic())
            except Exception as failure:
                lost.append(failure)
            time.sleep(0.02)

    clients = [threading.Thread(target=ask_once) for _ in range(2)]
    for client in clients:
        client.start()
    time.sleep(0.3)
    assert service.stop() == 0
    service.start()
    restarted = time.monotonic()
    service.wait_until_ready()
    time.sleep(0.2)
    is_over.set()
    for client in clients:
        client.join()
    assert lost == []
    assert answered[0] < restarted < answered[-1]


@pytest.mark.run
@pytest.mark.filterwarnings("ignore:os.fork")  # JAX, which other tests load, warns of what runs in the child.
def test_no_memory_of_the_server_is_writable_and_executable(start_service):
    """The kernel refuses such memory, as MemoryDenyWriteExecute= of the unit does."""
    assert "MemoryDenyWriteExecute=yes" in UNIT
    libc = ctypes.CDLL(None, use_errno=True)

    def refuse():
        if libc.prctl(_PR_SET_MDWE, _PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0):
            os._exit(9)

    service = start_service(preexec_fn=refuse)
    with httpx.Client(base_url=f"http://127.0.0.1:{service.port}", trust_env=False) as client:
        assert post(client, encode(COLOURS["red"], "JPEG")).json()["predicted_class"] == "red"
    assert service.stop() == 0


def test_several_sockets_are_refused(tmp_path):
    command = "LISTEN_FDS=2 LISTEN_PID=$$ exec {python} -m server.deploy.container serve"
    done = subprocess.run(
        ["sh", "-c", command.format(python=sys.executable)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "systemd passes 2 sockets: leave one ListenStream= in the socket unit.\n"


@pytest.fixture
def nginx(tmp_path):
    """Starts nginx with the site in front of a port, and returns its own port."""
    need("nginx")
    with contextlib.ExitStack() as stack:

        def start(upstream, *replacements):
            port = ports.free_port()
            site = NGINX.replace("127.0.0.1:8080", f"127.0.0.1:{upstream}").replace(
                "listen 80 default_server;", f"listen 127.0.0.1:{port} default_server;"
            )
            site = site.replace("listen [::]:80 default_server;", "")
            for old, new in replacements:
                assert old in site
                site = site.replace(old, new)
            temporary = "".join(
                f"{name}_temp_path {tmp_path}/{name};\n"
                for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
            )
            main = f"user root;\npid {tmp_path}/pid;\nerror_log {tmp_path}/error.log;\nevents {{}}\n"
            main += f"http {{\naccess_log off;\n{temporary}{site}\n}}\n"
            (tmp_path / "nginx.conf").write_text(main)
            command = ["nginx", "-c", tmp_path / "nginx.conf", "-e", tmp_path / "start.log", "-g", "daemon off;"]
            process = subprocess.Popen(command)
            stack.callback(process.wait, timeout=10)
            stack.callback(process.terminate)
            for _ in range(100):
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    return port
                time.sleep(0.05)
            raise AssertionError((tmp_path / "error.log").read_text())

        yield start


@pytest.fixture
def caddy(tmp_path):
    """Starts Caddy with the site in front of a port, and returns its own port."""
    need("caddy")
    with contextlib.ExitStack() as stack:

        def start(upstream):
            port = ports.free_port()
            (tmp_path / "Caddyfile").write_text(CADDY.replace("127.0.0.1:8080", f"127.0.0.1:{upstream}"))
            environment = {**os.environ, "JAXCNN_SITE": f"http://127.0.0.1:{port}", "HOME": str(tmp_path)}
            command = ["caddy", "run", "--config", tmp_path / "Caddyfile", "--adapter", "caddyfile"]
            with (tmp_path / "caddy.log").open("wb") as log:
                process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            stack.callback(process.wait, timeout=10)
            stack.callback(process.terminate)
            for _ in range(200):
                with contextlib.suppress(OSError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    return port
                time.sleep(0.05)
            raise AssertionError((tmp_path / "caddy.log").read_text())

        yield start


def post_bytes(port, count):
    """Sends a body of zeros, which is no picture, and returns the status."""
    response = httpx.post(
        f"http://127.0.0.1:{port}/predict", content=bytes(count), headers={"Content-Type": "image/png"}, trust_env=False
    )
    return response.status_code


def slow_body_takes(port):
    """Sends half a request, and returns the seconds until the connection is closed, with what came before."""
    head = b"POST /predict HTTP/1.1\r\nHost: test\r\nContent-Type: image/png\r\nContent-Length: 100\r\n\r\nhalf"
    start = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(head)
        received = b"".join(iter(lambda: connection.recv(65536), b""))
    return time.monotonic() - start, received


@pytest.mark.run
def test_nginx_takes_what_the_server_takes_and_restarts_lose_nothing(start_service, nginx, tmp_path):
    service = start_service()
    port = nginx(service.port)
    largest = Settings().max_body_bytes
    assert post_bytes(port, largest) == 400
    assert post_bytes(port, largest + 1) == 413
    # Connections to the server are kept: one serves many requests.
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
        for _ in range(20):
            response = post(client, encode(COLOURS["green"]))
        assert response.json()["predicted_class"] == "green"
        assert "nginx/" not in response.headers["server"]
        assert client.get("/readyz", headers={"X-Request-ID": "mine"}).headers["x-request-id"] == "mine"
    ask_through_restarts(port, service)


@pytest.mark.run
def test_nginx_gives_a_slow_client_no_longer_than_the_server(start_service, nginx):
    port = nginx(start_service().port, ("client_body_timeout 30s", "client_body_timeout 1s"))
    taken, received = slow_body_takes(port)
    assert 0.9 < taken < 5
    assert received == b"" or b" 408 " in received


@pytest.mark.run
def test_caddy_takes_what_the_server_takes_and_restarts_lose_nothing(start_service, caddy):
    service = start_service()
    port = caddy(service.port)
    largest = Settings().max_body_bytes
    assert post_bytes(port, largest) == 400
    assert post_bytes(port, largest + 1) == 413
    ask_through_restarts(port, service)
