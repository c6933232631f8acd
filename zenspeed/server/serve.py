"""A parameter server: its socket and its connections. One thread; all waiting is asyncio's.

connection ─► proof of the key ─► frame ─► answers.py ─► updates.py ─► frame back … until it ends, for whatever reason
"""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import torch

from zenspeed.errors import InputError
from zenspeed.parallel.mesh import World
from zenspeed.server.answers import Answers
from zenspeed.server.crew import Complaints, Crew, Member
from zenspeed.server.updates import Updates
from zenspeed.server.wire import Stream, WireError, keep_alive

AUTHENTICATE_SECONDS = 10.0
MESSAGE_SECONDS = 120.0
MAX_CONNECTIONS = 256


class Server:
    """One server, in a process group of one process."""

    def __init__(self, world: World, key: bytes, folder: Path, say: Callable[[str], None], *, sync: bool = False) -> None:
        self.key, self.say, self.crew, self.complaints = key, say, Crew(), Complaints(say)
        self.updates = Updates(world, key, folder, self.crew, say, sync=sync)
        self.answers = Answers(self.updates, self.crew, self.complaints, say, self._spawn)
        self.message_seconds, self.authenticate_seconds = MESSAGE_SECONDS, AUTHENTICATE_SECONDS
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopped = asyncio.Event()

    async def run(self, listener: socket.socket) -> None:
        """Serves until a worker has said that the run is over, and all have left."""
        self.updates.recover()
        listener.setblocking(False)
        accepting = asyncio.create_task(self._accept(listener))
        watching = asyncio.create_task(self._watch_leases())
        if self.updates.peer is not None:  # an update whose norm was not heard of before the end
            self._spawn(self.updates.settle())
        await self._stopped.wait()
        for task in (accepting, watching, *self._tasks):
            task.cancel()
        await asyncio.gather(accepting, watching, *self._tasks, return_exceptions=True)
        self.updates.close()

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(listener)
            except OSError as error:  # no file descriptors left, say: those that are there go on
                self.complaints.add("listener", f"cannot accept: {error.strerror}")
                await asyncio.sleep(0.1)
                continue
            if len(self._tasks) >= MAX_CONNECTIONS:
                self.complaints.add(str(address[0]), f"too many connections, {MAX_CONNECTIONS} are open")
                connection.close()
                continue
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            keep_alive(connection)
            self._spawn(self._serve(connection, f"{address[0]}:{address[1]}"))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, connection: socket.socket, peer: str) -> None:
        """One connection, from the proof of the key to its end; whatever goes wrong ends this one alone."""
        stream, member = Stream(connection, self.message_seconds), Member()
        try:
            async with asyncio.timeout(self.authenticate_seconds):
                await stream.authenticate(self.key)
            while True:
                await self.answers.answer(stream, member, await stream.receive(self.answers.max_body()))
        except EOFError:
            pass
        except TimeoutError:
            self.complaints.add(peer, "sent nothing, or not all of a frame, in the time it has")
        except WireError as error:
            self.complaints.add(peer, str(error))
        except OSError as error:
            self.complaints.add(peer, f"connection lost: {error.strerror or error}")
        except asyncio.CancelledError:
            raise
        except Exception as error:  # a fault of ours: this connection is ended, the others go on
            self.complaints.add(peer, f"{type(error).__name__}: {error}")
        finally:
            connection.close()
            await self._leave(member, stream)

    async def _leave(self, member: Member, stream: Stream) -> None:
        number = self.crew.leave(member, stream)
        if number is None:
            return
        freed = self.updates.clocks.lost(number) if self.updates.clocks is not None else 0
        if not self._stopped.is_set():
            shares = f", {freed} of its shares are free again" if freed else ""
            self.say(f"worker {number} left{shares}; {len(self.crew)} here")
        if self.crew.stopping and not self.crew:
            self._stopped.set()
        async with self.updates.changed:
            self.updates.changed.notify_all()

    async def _watch_leases(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            late = self.updates.clocks.overdue(time.monotonic()) if self.updates.clocks is not None else []
            for share, worker in late:
                self.say(f"worker {worker} did not bring share {share.number} of update {share.clock} in time: free again")
            if late:
                async with self.updates.changed:
                    self.updates.changed.notify_all()


def listen(host: str, port: int) -> socket.socket:
    """A socket that takes connections; port 0: any that is free.

    Raises:
        InputError: it cannot.
    """
    try:
        return socket.create_server((host, port), backlog=128, family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise InputError(f"--listen {host}:{port}: {error.strerror}; is another server there already?") from None


def say(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} parameter server: {message}", file=sys.stderr, flush=True)


def serve(
    listener: socket.socket, key: bytes, folder: Path, *, sync: bool = False, ready: Callable[[], None] = lambda: None
) -> None:
    """Runs a server until a worker ends the run. `ready` is called when it has its folder, before it answers."""
    from zenspeed.parallel.mesh import world

    torch.set_num_threads(1)
    with listener, world() as here:

        async def main() -> None:
            server = Server(here, key, folder, say, sync=sync)
            ready()
            await server.run(listener)

        asyncio.run(main())
