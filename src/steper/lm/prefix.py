"""A tree of token prefixes with their keys and values: what was prefilled once is not again.

The prompts of a run extend each other, runs share their instruction, and the candidates of a step
share all but their sentence. So what is kept is a tree: each node holds some tokens and their
keys and values, each path from the root is a text. A new prompt goes down as far as it matches.

A node that one run only has come through belongs to that run: what the run has left behind is
dropped at its next step, and all of it when the run is over. Nodes of several runs stay until
their room is needed; then the least recently used go first.

>>> tree = PrefixTree(limit=100)
>>> keys = torch.arange(4.0).reshape(1, 4, 1)
>>> tree.keep([5, 6, 7, 8], "run", lambda begin, end: (keys[:, begin:end],))
>>> [(node.tokens, node.states[0].flatten().tolist()) for node in tree.find([5, 6, 9], "other")]
[([5, 6], [0.0, 1.0])]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

States = tuple[torch.Tensor, ...]
"""Keys and values of every layer in turn, each (heads, tokens, dimension)."""


@dataclass(slots=True, eq=False)
class Node:
    """Some tokens of a text, after those of its parents.

    Attributes:
        tokens: at least one, but for the root.
        states: of these tokens.
        run: whose it is; ``None`` once a second run has come through.
        children: by their first token.
        used: when it was last gone through.
    """

    tokens: list[int]
    states: States
    run: str | None
    children: dict[int, Node] = field(default_factory=dict)
    used: int = 0

    def split(self, at: int) -> None:
        """Become the first ``at`` tokens, with the rest as the only child."""
        # Copies, not views: a view of the head would hold the memory of a dropped tail.
        states = _copied(self.states, at, None)
        tail = Node(self.tokens[at:], states, self.run, self.children, self.used)
        self.tokens, self.states = self.tokens[:at], _copied(self.states, None, at)
        self.children = {tail.tokens[0]: tail}

    def drop_children(self, run: str, *, but: Node | None = None) -> None:
        """Drop those that only this run has come through."""
        self.children = {
            token: node for token, node in self.children.items() if node is but or node.run != run
        }


class PrefixTree:
    """Keys and values of prompts that may be extended.

    Args:
        limit: most tokens that ``trim`` leaves.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._root = Node([], (), None)
        self._clock = 0

    @property
    def tokens(self) -> int:
        """How many are kept now."""
        return sum(len(node.tokens) for node, _ in self._nodes())

    def find(self, prompt: Sequence[int], run: str) -> list[Node]:
        """The nodes whose tokens, put together, are the longest kept prefix.

        What only this run has come through and does not go on from is dropped: its prompts never
        come back to it. What follows on the whole prompt stays: sentences drawn for it already.
        """
        path, matched = self._walk(prompt)
        for parent, node in zip([self._root, *path], path, strict=False):
            parent.drop_children(run, but=node)
        if matched < len(prompt):
            # Neither do the sentences kept fit on; what is there is an older, shorter ending.
            (path[-1] if path else self._root).drop_children(run)
        self._touch(path, run)
        return path

    def keep(self, text: Sequence[int], run: str, states: Callable[[int, int], States]) -> None:
        """Add a text.

        Args:
            text: its tokens.
            run: whose it is.
            states: gives keys and values of the tokens from one index up to another; called at
                most once, for those that are not there yet.
        """
        path, matched = self._walk(text)
        if matched < len(text):
            own = Node(list(text[matched:]), _copied(states(matched, len(text)), None, None), run)
            (path[-1] if path else self._root).children[own.tokens[0]] = own
            path.append(own)
        self._touch(path, run)

    def forget(self, run: str) -> None:
        """Drop what only this run has come through."""
        self._root.drop_children(run)
        for node, _ in self._nodes():
            node.drop_children(run)

    def trim(self) -> None:
        """Drop the least recently used ends until the rest is within the limit."""
        excess = self.tokens - self.limit
        while excess > 0:
            ends = [(node, parent) for node, parent in self._nodes() if not node.children]
            node, parent = min(ends, key=lambda end: end[0].used)
            del parent.children[node.tokens[0]]
            excess -= len(node.tokens)

    def _walk(self, text: Sequence[int]) -> tuple[list[Node], int]:
        """The path of the longest kept prefix and its length; it ends at the end of a node."""
        path: list[Node] = []
        node, at = self._root, 0
        while at < len(text) and (child := node.children.get(text[at])):
            common = _common(child.tokens, text[at : at + len(child.tokens)])
            if common < len(child.tokens):
                child.split(common)
            path.append(child)
            node, at = child, at + common
        return path, at

    def _touch(self, path: Sequence[Node], run: str) -> None:
        self._clock += 1
        for node in path:
            node.used = self._clock
            if node.run != run:
                node.run = None

    def _nodes(self) -> Iterator[tuple[Node, Node]]:
        """Every node with its parent."""
        waiting = [self._root]
        while waiting:
            parent = waiting.pop()
            for node in parent.children.values():
                yield node, parent
                waiting.append(node)


def _common(kept: Sequence[int], text: Sequence[int]) -> int:
    """The length of their common prefix."""
    pairs = enumerate(zip(kept, text, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(kept), len(text)))


def _copied(states: States, begin: int | None, end: int | None) -> States:
    """Some tokens' keys and values in memory of their own."""
    return tuple(state[:, begin:end].clone() for state in states)
