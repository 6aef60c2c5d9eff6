"""A program's standard streams: fed and read together, within a number of bytes and a time."""

from __future__ import annotations

import contextlib
import os
import selectors
import time
from collections.abc import Iterator

_PIECE = 1 << 16  # bytes; and so much of standard error is kept


class TooMuchError(Exception):
    """More than the limit was written."""


@contextlib.contextmanager
def pipes() -> Iterator[tuple[list[int], list[int]]]:
    """(our ends, the program's ends) of standard input, output and error; what is left open is closed at the end."""
    (read, feed), (out, write), (err, complain) = os.pipe(), os.pipe(), os.pipe()
    ours, theirs = [feed, out, err], [read, write, complain]
    try:
        yield ours, theirs
    finally:
        close(ours)
        close(theirs)


def close(descriptors: list[int]) -> None:
    """Closes the descriptors and empties the list."""
    while descriptors:
        os.close(descriptors.pop())


def exchange(ours: list[int], text: bytes, *, limit: int, deadline: float) -> tuple[bytes, bytes]:
    """(standard output, the end of standard error) of a program that reads the text, once it has closed both.

    Raises: TooMuchError past limit bytes of output; TimeoutError at the deadline, a time.monotonic().
    """
    feed, out, err = ours
    os.set_blocking(feed, False)
    written = {out: bytearray(), err: bytearray()}
    with selectors.DefaultSelector() as selector:
        selector.register(out, selectors.EVENT_READ)
        selector.register(err, selectors.EVENT_READ)
        selector.register(feed, selectors.EVENT_WRITE)
        while len(selector.get_map()) > (feed in selector.get_map()):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            for key, _ in selector.select(left):
                if key.fd == feed:
                    text = _fed(feed, text)
                    if not text:
                        selector.unregister(feed)
                        ours.remove(feed)
                        os.close(feed)
                    continue
                piece = os.read(key.fd, _PIECE)
                written[key.fd] += piece
                if not piece:
                    selector.unregister(key.fd)
                if len(written[out]) > limit:
                    raise TooMuchError
                del written[err][:-_PIECE]
    return bytes(written[out]), bytes(written[err])


def _fed(feed: int, text: bytes) -> bytes:
    """What of the text is left to write; nothing once the program reads no more."""
    try:
        return text[os.write(feed, text[:_PIECE]) :]
    except BlockingIOError:
        return text
    except BrokenPipeError:
        return b""
