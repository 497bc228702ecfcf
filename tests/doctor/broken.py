"""Probes that do not come to an end."""

import os
import signal
import threading


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def hang() -> None:
    threading.Event().wait()


def fail() -> None:
    raise ImportError("libEGL.so.1: cannot open shared object file")


def numbers() -> list[int]:
    return [1, 2]
