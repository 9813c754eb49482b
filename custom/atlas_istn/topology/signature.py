# Copyright 2026 The Atlas-ISTN bundle developers
# Licensed under the Apache License, Version 2.0; see the file LICENSE.
"""The topology of a whole labelmap: of every label, of unions of labels, and which labels touch."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy import ndimage

from ..errors import InputError
from .betti import Topology, label_topology

__all__ = ["Signature"]

Union = tuple[int, ...]
"""A label, or labels taken together, in ascending order."""


@dataclass(frozen=True)
class Signature:
    """Topology of a labelmap, found or wanted.

    Attributes:
        shapes: topology of every label, of every two labels that touch taken together, and of the whole foreground.
        adjacent: pairs of labels that touch, with full connectivity.
    """

    shapes: Mapping[Union, Topology]
    adjacent: frozenset[tuple[int, int]]

    @cached_property
    def unions(self) -> list[Union]:
        """Every union whose topology has to stay for shapes and contacts to stay: the shapes, and all other pairs.

        Two labels touch exactly where their union has fewer components than both together.
        """
        return [*self.shapes, *self._open_pairs]

    @cached_property
    def _open_pairs(self) -> list[Union]:
        """Pairs of labels whose contact no shape tells."""
        pairs = itertools.combinations(sorted(union[0] for union in self.shapes if len(union) == 1), 2)
        return [pair for pair in pairs if pair not in self.shapes]

    @classmethod
    def of(cls, labelmap: np.ndarray, num_classes: int) -> Signature:
        """Measure a labelmap.

        Args:
            labelmap: class indices ``[(D,) H, W]``, 0 for the background.
            num_classes: classes, background included; a class that is absent has the topology of an empty mask.

        Raises:
            InputError: the labelmap is neither 2D nor 3D.
        """
        adjacent = _adjacent(labelmap)
        labels = range(1, num_classes)
        unions = dict.fromkeys([*((label,) for label in labels), *sorted(adjacent), tuple(labels)])
        return cls({union: _topology(labelmap, union) for union in unions}, adjacent)

    @classmethod
    def majority(cls, signatures: Sequence[Signature]) -> Signature:
        """What more than half of several labelmaps have, shape by shape and pair by pair.

        There may be shapes that no such majority agrees upon, as where thin walls leak at random: they are left out.
        """
        pairs = Counter(pair for signature in signatures for pair in signature.adjacent)
        votes = Counter(itertools.chain.from_iterable(signature.shapes.items() for signature in signatures))
        half = len(signatures) / 2
        return cls(
            {union: topology for (union, topology), count in votes.items() if count > half},
            frozenset(pair for pair, count in pairs.items() if count > half),
        )

    def over(self, base: Signature) -> Signature:
        """This one with the shapes of another where it says nothing itself."""
        # The shape of a pair says whether it touches: where this one has it otherwise, the other's cannot stay.
        changed = base.adjacent ^ self.adjacent
        kept = {union: topology for union, topology in base.shapes.items() if union not in changed}
        return Signature(kept | dict(self.shapes), self.adjacent)

    def declare(self, declared: Mapping[Any, Any], num_classes: int) -> Signature:
        """The same with what a user declares in its place.

        Args:
            declared: label, or labels joined by ``+``, to ``[components, holes, cavities]``; under ``adjacent`` the
                list of all pairs that shall touch.
            num_classes: classes, background included.

        Raises:
            InputError: a label does not exist or a value makes no sense.
        """
        adjacent = _pairs(declared["adjacent"], num_classes) if "adjacent" in declared else self.adjacent
        shapes = {}
        for key, value in declared.items():
            if key == "adjacent":
                continue
            counts = list(value) if isinstance(value, Sequence) else []
            if len(counts) != 3 or not all(isinstance(n, int) and n >= 0 for n in counts):
                raise InputError(
                    f"topology: expected {key}: [components, holes, cavities], three whole numbers, found {value!r}."
                )
            shapes[_union(str(key).split("+"), num_classes)] = Topology(*counts)
        return Signature(shapes, adjacent).over(self)

    def violations(self, labelmap: np.ndarray) -> dict[Union, Topology]:
        """What of a labelmap differs from this: shapes, and pairs that touch or do not, with the topology they have."""
        found = {union: _topology(labelmap, union) for union in self.shapes}
        wrong = {union: topology for union, topology in found.items() if topology != self.shapes[union]}
        contacts = (_adjacent(labelmap) ^ self.adjacent) if self._open_pairs else frozenset()
        return wrong | {pair: _topology(labelmap, pair) for pair in self._open_pairs if pair in contacts}

    def defects(self, labelmap: np.ndarray) -> int:
        """Number of components, holes, cavities and contacts too many or too few, over all shapes and pairs."""
        return sum(
            sum(abs(n - wanted) for n, wanted in zip(found, self.shapes[union], strict=True))
            if union in self.shapes
            else 1
            for union, found in self.violations(labelmap).items()
        )

    def describe(self, names: Mapping[int, str] | None = None) -> dict[str, Any]:
        """As a JSON tree, with labels by name."""
        names = names or {}

        def name(union: Union) -> str:
            return "+".join(names.get(label, str(label)) for label in union)

        return {
            "shapes": {name(union): list(topology) for union, topology in self.shapes.items()},
            "adjacent": [name(pair) for pair in sorted(self.adjacent)],
        }


def _topology(labelmap: np.ndarray, union: Union) -> Topology:
    return label_topology(labelmap == union[0] if len(union) == 1 else np.isin(labelmap, union))


def _union(labels: Sequence[Any], num_classes: int) -> Union:
    try:
        union = tuple(sorted(int(label) for label in labels))
    except (TypeError, ValueError) as error:
        raise InputError(f"topology: expected labels, such as 1 or 1+2, found {labels!r}.") from error
    if not union or min(union) < 1 or max(union) >= num_classes:
        raise InputError(f"topology: expected labels from 1 to {num_classes - 1}, found {list(union)}.")
    return union


def _pairs(value: Any, num_classes: int) -> frozenset[tuple[int, int]]:
    lists = value if isinstance(value, Sequence) else [value]
    if not all(isinstance(pair, Sequence) and len(pair) == 2 for pair in lists):
        raise InputError(f"topology: adjacent: expected pairs of labels, such as [[1, 2]], found {value!r}.")
    unions = (_union(pair, num_classes) for pair in lists)
    return frozenset((union[0], union[1]) for union in unions)


def _adjacent(labelmap: np.ndarray) -> frozenset[tuple[int, int]]:
    boxes = ndimage.find_objects((labelmap > 0).view(np.uint8))
    labelmap = labelmap[boxes[0]] if boxes else labelmap
    pairs: set[tuple[int, int]] = set()
    # Of two opposite directions one is enough.
    for step in itertools.islice(itertools.product((-1, 0, 1), repeat=labelmap.ndim), 3**labelmap.ndim // 2):
        here = labelmap[tuple(slice(max(-s, 0), n - max(s, 0)) for s, n in zip(step, labelmap.shape, strict=True))]
        there = labelmap[tuple(slice(max(s, 0), n - max(-s, 0)) for s, n in zip(step, labelmap.shape, strict=True))]
        touch = (here != there) & (here > 0) & (there > 0)
        pairs.update(zip(here[touch].tolist(), there[touch].tolist(), strict=True))
    return frozenset((min(pair), max(pair)) for pair in pairs)
