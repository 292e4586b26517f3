"""Processes and clients that die at their k-th operation."""

import itertools
import os
import sys
import warnings

from fsspec.asyn import sync
from s3fs import S3FileSystem

from connectors._filesystems import IsolatedMemoryFileSystem

_EVENTS = {"open", "os.link", "os.rename", "os.remove", "os.mkdir", "os.scandir"}


def die_at(k, root, work):
    """Runs `work` in a child that is gone at its `k`-th operation on files below `root`; whether it got that far."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: fork beside threads; the child uses none
        pid = os.fork()
    if pid:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    count = itertools.count(1)

    def hook(event, args):
        if event in _EVENTS and str(root) in str(args) and next(count) == k:
            os._exit(9)

    sys.addaudithook(hook)
    try:
        work()
        os._exit(0)
    finally:
        os._exit(1)


class KilledError(Exception):
    """Stands for the end of the process: from then on every request fails."""


class MortalMemory(IsolatedMemoryFileSystem):
    """Dies at its `k`-th write, before or after it took effect."""

    cachable = False

    def __init__(self, k, after, **kwargs):
        super().__init__(**kwargs)
        self.left, self.after = k, after

    def pipe_file(self, path, value, mode="overwrite", **kwargs):
        self.left -= 1
        if self.left < 0 or (self.left == 0 and not self.after):
            raise KilledError
        super().pipe_file(path, value, mode=mode)
        if self.left == 0:
            raise KilledError


class MortalS3(S3FileSystem):
    """Dies at its `k`-th request of any kind, before or after the server did it."""

    cachable = False

    def __init__(self, k, after, **kwargs):
        super().__init__(**kwargs)
        self.left, self.after = k, after

    async def _call_s3(self, method, *arguments, **kwargs):
        self.left -= 1
        if self.left < 0 or (self.left == 0 and not self.after):
            raise KilledError
        answer = await super()._call_s3(method, *arguments, **kwargs)
        if self.left == 0:
            raise KilledError
        return answer

    def call_s3(self, method, *arguments, **kwargs):
        return sync(self.loop, self._call_s3, method, *arguments, **kwargs)
