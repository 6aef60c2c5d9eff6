"""Memory of tensors, counted as operations make and drop them: exact, and the same on every run."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Within the context, `now` and `peak` count the bytes of tensors made since it was entered, views once.

    What an operation allocates and frees inside itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if _is_plain(leaf)}
        for leaf in tree_leaves(result):
            if _is_plain(leaf) and _address(leaf) not in given | self._seen:
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage, address = tensor.untyped_storage(), _address(tensor)
        size = storage.nbytes()
        self._seen.add(address)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, address, size)

    def _forget(self, address: int, size: int) -> None:
        self._seen.discard(address)
        self.now -= size


def _is_plain(leaf: Any) -> bool:
    """A tensor with a storage of its own; oneDNN's reordered ones have none that can be asked."""
    return isinstance(leaf, Tensor) and not leaf.is_mkldnn


def _address(tensor: Tensor) -> int:
    address: int = tensor.untyped_storage()._cdata
    return address
