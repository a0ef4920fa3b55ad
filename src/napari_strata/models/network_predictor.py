"""A torch network as a `Predictor`."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from napari_strata.core.errors import RunError
from napari_strata.core.spec import ModelSpec
from napari_strata.models.device import Precision, memory_order
from napari_strata.models.memory import make_room, out_of_memory_as
from napari_strata.networks.blocks import without_weights


class NetworkPredictor:
    """A network on its device; see `Predictor`.

    Parameters
    ----------
    network
        takes float32 (N, C, H, W) of any H and W and gives logits (N, K, H, W); a 3D
        network has one more axis D before H. It is put on `device`.
    spec
        facts of the model.
    device, precision
        see `Predictor`.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: ModelSpec,
        *,
        device: torch.device,
        precision: Precision,
    ) -> None:
        order = memory_order(2 + len(spec.axes), device)
        no_room = RunError(
            f"out of memory on {device}: the network itself does not fit; "
            f"{make_room(device)}"
        )
        with out_of_memory_as(no_room):
            self.network: nn.Module = network.to(device, memory_format=order)  # type: ignore[call-overload]
        self.spec = spec
        self.device = device
        self.precision = precision
        self._activations: dict[tuple[int, ...], int] = {}

    def logits(self, batch: np.ndarray[Any, Any]) -> Tensor:
        """Compute the logits of scaled tiles; see `Predictor.logits`.

        The network is in evaluation mode meanwhile and in its own mode afterwards.

        Raises
        ------
        RunError
            when numbers of the network are too large for fp16.
        """
        with (
            _evaluation_mode(self.network),
            torch.inference_mode(),
            self.precision.autocast(self.device),
        ):
            # From pinned memory (`upload_array`) the copy runs beside the computation.
            inputs = torch.from_numpy(batch).to(self.device, non_blocking=True)
            order = memory_order(inputs.ndim, self.device)
            inputs = inputs.contiguous(memory_format=order)
            logits: Tensor = self.network(inputs)
            logits = logits.float()
            # Their largest would be class 0, whatever the image shows.
            if self.precision.dtype is torch.float16 and not logits.isfinite().all():
                raise RunError(
                    "found logits that are not finite: numbers of this network are "
                    "too large for fp16; set precision to bf16 or fp32."
                )
            return logits

    def memory(self, shape: Sequence[int]) -> int:
        """Estimate the bytes that one tile needs; see `Predictor.memory`.

        The forward pass runs on torch's meta device: nothing is computed and nothing
        allocated. The working memory of single operations comes on top.
        """
        size = tuple(shape)
        if size not in self._activations:
            self._activations[size] = self._count_activations(size)
        activations = self._activations[size]
        if self.precision.dtype is not None:
            activations //= 2
        channels = self.spec.in_channels + len(self.spec.classes)
        return activations + 4 * channels * math.prod(size)

    def _count_activations(self, shape: tuple[int, ...]) -> int:
        """Count the bytes of float32 tensors that are alive at most in the network.

        0 where the network cannot run on the meta device.
        """
        # torch.compile keeps the network that it was given as _orig_mod.
        network = without_weights(getattr(self.network, "_orig_mod", self.network))
        shape = (1, self.spec.in_channels, *shape)
        try:
            with torch.inference_mode(), _LiveTensors() as live:
                # The tile is counted as well.
                network(torch.empty(shape, device="meta"))
        except (RuntimeError, NotImplementedError):
            # An operation that needs values, which there are none of.
            return 0
        return int(live.peak)


@contextmanager
def _evaluation_mode(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, then each layer back into its own mode."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


class _LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counter of the bytes of all tensors that are alive at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self._bytes = 0
        self.peak = 0

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        outputs = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self._bytes)
        return outputs

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._storages:
            return
        self._storages.add(storage)
        self._bytes += storage.nbytes()
        weakref.finalize(storage, self._subtract, storage.nbytes())

    def _subtract(self, count: int) -> None:
        self._bytes -= count
