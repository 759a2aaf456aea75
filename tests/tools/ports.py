"""Where two processes meet, agreed before the first of them is there, and not taken by a third in between.

A port that the system calls free is given to whoever asks next. Of 6,420 kernels started six at a time, 19 found one of
their five ports taken: 15 died, and 4, where it was that of their outputs, hung until their starter gave up.
"""

import random
import socket
import sys
import uuid
from typing import Any

from jupyter_client import KernelManager


def free_port() -> int:
    """A port below those that systems hand out by themselves."""
    draw = random.SystemRandom()  # not the numbers that each test begins with
    while True:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port := draw.randrange(10_000, 32_768)))
            except OSError:
                continue
            return port


def kernels_without_ports() -> None:
    """Let whatever starts a kernel in this process meet it at a name of its own, in no file system. On Linux only."""
    begin = KernelManager.__init__

    def named(self: KernelManager, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **{"transport": "ipc", "ip": f"@{uuid.uuid4()}"} | kwargs)

    if sys.platform == "linux":
        KernelManager.__init__ = named  # type: ignore[method-assign]
