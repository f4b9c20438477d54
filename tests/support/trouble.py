"""Servers in trouble: frozen, or at the far end of a wire that a test can cut or hold."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psutil

from support.embedded import pid


@contextmanager
def freezing(home: Path, name: str) -> Iterator[Callable[[], None]]:
    """What stops all processes of a built-in server; they go on after the block."""
    stopped: list[psutil.Process] = []

    def freeze() -> None:
        leader = psutil.Process(pid(home, name))
        for process in (*leader.children(recursive=True), leader):
            with contextlib.suppress(psutil.NoSuchProcess):  # a session that has just ended
                process.send_signal(signal.SIGSTOP)
                stopped.append(process)

    try:
        yield freeze
    finally:
        for process in stopped:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGCONT)


def in_child(work: Callable[[], object]) -> str:
    """What `work` gives, or raises, in a forked process."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            said = str(work())
        except BaseException as error:  # noqa: BLE001  told to the parent
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return pipe.read()


@contextmanager
def wired(url: str) -> Iterator[tuple[Wire, str]]:
    """A wire to the server of `url`, and the URL of the database at its near end."""
    parts = urlsplit(url)
    wire = Wire(parts.hostname or "127.0.0.1", parts.port or 0)
    account, at, _ = parts.netloc.rpartition("@")
    query = parts.query
    if url.startswith("mongodb") and "directConnection" not in query:
        # Else the driver goes to the address that the server tells.
        query += ("&" if query else "") + "directConnection=true"
    netloc = f"{account}{at}127.0.0.1:{wire.port}"
    try:
        yield wire, urlunsplit((parts.scheme, netloc, parts.path, query, ""))
    finally:
        wire.close()


class Wire:
    """A piece of wire between a client and a server that a test can cut."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener: socket.socket | None = None
        self._flows = threading.Event()
        self._flows.set()
        self.port = 0
        self.connect()

    def connect(self) -> None:
        listener = socket.create_server(("127.0.0.1", self.port))
        self.port = listener.getsockname()[1]
        self._listener = listener
        self._start(self._accept, listener)

    def cut(self) -> None:
        """End all connections and refuse new ones."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.drop()

    def drop(self) -> None:
        """End all connections, as a server does that restarts."""
        with self._lock:
            for each in self._open:
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def hold(self) -> None:
        """Keep what is sent, as a server does that hangs."""
        self._flows.clear()

    def flow(self) -> None:
        """Pass on what was kept."""
        self._flows.set()

    def close(self) -> None:
        self.flow()
        self.cut()
        for thread in self._threads:
            thread.join(5)

    def _start(self, work: Any, *arguments: Any) -> None:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            with self._lock:
                self._open += [client, server]
            left = threading.Semaphore(0)
            self._start(self._pump, client, server, left)
            self._start(self._pump, server, client, left)
            self._start(self._end, client, server, left)

    def _pump(self, source: socket.socket, sink: socket.socket, left: threading.Semaphore) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(65536):
                self._flows.wait()
                sink.sendall(block)
        for each in (source, sink):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        left.release()

    def _end(self, client: socket.socket, server: socket.socket, left: threading.Semaphore) -> None:
        left.acquire()
        left.acquire()
        with self._lock:
            for each in (client, server):
                self._open.remove(each)
                each.close()
