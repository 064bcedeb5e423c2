"""Backward passes for tensors without values, in the order of torch's engine, which asks for a real device."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction


class BackwardEngine:
    """Calls the nodes of a graph one by one; what a node had kept is released after its call, as torch does."""

    def __init__(self) -> None:
        self._kept: dict[int, Tensor] = {}
        self._given: list[int] = []
        self._numbers = itertools.count()

    def keep(self, tensor: Tensor) -> int:
        """Takes what a node needs for its backward pass."""
        number = next(self._numbers)
        self._kept[number] = tensor
        return number

    def give(self, number: int) -> Tensor:
        """Gives it to the node."""
        self._given.append(number)
        return self._kept[number]

    def backward(self, loss: Tensor) -> None:
        """Adds to the gradients of all leaves; what a node had kept is gone after it."""
        root: Any = loss.grad_fn
        waits = _gradients_to_come(root)
        gradients: dict[Any, dict[int, Tensor]] = {root: {0: torch.ones_like(loss)}}
        ready = [(0, 0, root)]
        while ready:
            node = heapq.heappop(ready)[-1]
            results = list(self._call(node, gradients.pop(node, {})))
            for following, index in node.next_functions:
                gradient = results.pop(0)
                if following is None:
                    continue
                if gradient is not None:
                    _add(gradients.setdefault(following, {}), index, gradient, following._input_metadata[index])
                waits[following] -= 1
                if not waits[following]:
                    heapq.heappush(ready, (-following._sequence_nr(), next(self._numbers), following))
            gradient = None  # as long as it has a name, it takes memory
        self._kept.clear()

    @torch.no_grad()
    def _call(self, node: Any, given: dict[int, Tensor]) -> tuple[Any, ...]:
        if hasattr(node, "variable"):
            leaf = node.variable
            leaf.grad = given[0] if leaf.grad is None else leaf.grad + given[0]
            return ()
        about = node._input_metadata
        arguments = [given.pop(number, None) for number in range(len(about))]
        self._given.clear()
        if isinstance(node, BackwardCFunction):
            for number, (argument, of) in enumerate(zip(arguments, about, strict=True)):
                if argument is None:
                    arguments[number] = torch.zeros(of.shape, dtype=of.dtype, device=of.device)
            results = node.apply(*arguments)
        else:
            results = node(*arguments)
        for number in self._given:
            del self._kept[number]
        return results if isinstance(results, tuple) else (results,)


def _gradients_to_come(root: Any) -> Counter[Any]:
    """How many gradients each node adds up."""
    waits: Counter[Any] = Counter()
    nodes, seen = [root], {root, None}
    while nodes:
        for node, _ in nodes.pop().next_functions:
            waits[node] += 1
            if node not in seen:
                seen.add(node)
                nodes.append(node)
    return waits


def _add(gradients: dict[int, Tensor], index: int, gradient: Tensor, of: Any) -> None:
    """Adds to those of a node, in the shape and type of its output."""
    if gradient.shape != of.shape:
        gradient = gradient.sum_to_size(of.shape)
    gradient = gradient.to(of.dtype)
    gradients[index] = gradients[index] + gradient if index in gradients else gradient
