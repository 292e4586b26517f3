"""Requests to an object store that fail, whose answer is lost, that are carried out twice, or that end the process."""

import errno
import os
import re
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import aiohttp
import pytest
from fsspec.asyn import sync
from s3fs import S3FileSystem

Kind = Literal["fails", "lost", "twice", "exits before", "exits after"]
"""`fails`: it is not carried out. `lost`: it is, unanswered. `twice`: it is, and the second answer counts."""
EXITED, OTHER_FAILURE = 77, 99
_S3_WRITES = ("put", "upload", "create", "complete", "copy", "delete", "abort")


class Requests:
    """The requests of this process to the stores of one protocol, all of them, and what befalls them.

    Attributes:
        names: of those so far.
        writes: numbers of those that write, the first request being 1.
        befalls: what happens to the request of this number.
        befalls_writes: what happens to the request of this number among those that write.
        twice: every request that writes and whose name it finds is carried out twice.
        answers: called with the name of every request before it is carried out; may raise what the store answers.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.writes: list[int] = []
        self.befalls: dict[int, Kind] = {}
        self.befalls_writes: dict[int, Kind] = {}
        self.twice: re.Pattern[str] | None = None
        self.answers: Callable[[str], None] = lambda _: None

    async def carry_out(self, name: str, send: Callable[[], Awaitable[Any]], *, is_write: bool) -> Any:
        """The answer to a request, or what takes its place."""
        self.names.append(name)
        kind = self.befalls.get(len(self.names))
        if is_write:
            self.writes.append(len(self.names))
            doubled: Kind | None = "twice" if self.twice and self.twice.search(name) else None
            kind = kind or self.befalls_writes.get(len(self.writes), doubled)
        self.answers(name)
        if kind == "fails":
            raise OSError(errno.EIO, f"{name} failed")
        if kind == "exits before":
            os._exit(EXITED)
        try:
            answer = await send()
        finally:  # also where the answer is that there is no such object
            if kind == "exits after":
                os._exit(EXITED)
            if kind == "lost":
                raise OSError(errno.EIO, f"the answer to {name} was lost")
        return await send() if kind == "twice" else answer


@contextmanager
def requests_of(protocol: str) -> Iterator[Requests]:
    """All requests to S3, below which its client tries again by itself, or of the clients of the other storages."""
    requests = Requests()
    with pytest.MonkeyPatch.context() as patch:
        if protocol == "s3":
            _watch_s3(patch, requests)
        else:
            _watch_http(patch, requests)
        yield requests


def _watch_s3(patch: pytest.MonkeyPatch, requests: Requests) -> None:
    call = S3FileSystem._call_s3

    async def call_s3(self: S3FileSystem, method: str, *arguments: Any, **named: Any) -> Any:
        name = f"{method} {named.get('Key') or named.get('Prefix', '')}"
        return await requests.carry_out(
            name, lambda: call(self, method, *arguments, **named), is_write=method.startswith(_S3_WRITES)
        )

    patch.setattr(S3FileSystem, "_call_s3", call_s3)
    patch.setattr(S3FileSystem, "call_s3", lambda self, *a, **named: sync(self.loop, self._call_s3, *a, **named))


def _watch_http(patch: pytest.MonkeyPatch, requests: Requests) -> None:
    call = aiohttp.ClientSession._request

    async def request(self: aiohttp.ClientSession, method: str, url: Any, **named: Any) -> Any:
        is_write = method.upper() not in ("GET", "HEAD")
        return await requests.carry_out(f"{method} {url}", lambda: call(self, method, url, **named), is_write=is_write)

    patch.setattr(aiohttp.ClientSession, "_request", request)


def in_child(work: Callable[[], None]) -> int:
    """The exit code of a forked process that does it: 0, `EXITED`, or `OTHER_FAILURE` after a traceback."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(OTHER_FAILURE)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
