"""RNN, GRU and LSTM, as plain loops over time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional

from onnx_igpc.torch_bridge.node import Node, Run
from onnx_igpc.torch_bridge.registry import Inputs, register_operator

Activation = Callable[[torch.Tensor], torch.Tensor]
State = tuple[torch.Tensor, ...]
#: state, input part and recurrent weights of one direction -> next state; the first is the output
Cell = Callable[[State, torch.Tensor, "Direction"], State]

_ACTIVATIONS: dict[str, Activation] = {
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Softplus": functional.softplus,
    "Softsign": functional.softsign,
    "Tanh": torch.tanh,
}


class Direction:
    """Weights of one direction.

    Attributes:
        recurrent: R, [gates * hidden, hidden].
        recurrent_bias: Its bias, [gates * hidden].
        peephole: Weights from the cell to the gates (LSTM), [3 * hidden], or None.
        activations: Functions of the gates, in the order ONNX lists them.
    """

    def __init__(
        self,
        recurrent: torch.Tensor,
        recurrent_bias: torch.Tensor,
        peephole: torch.Tensor | None,
        activations: list[Activation],
    ) -> None:
        self.recurrent = recurrent
        self.recurrent_bias = recurrent_bias
        self.peephole = peephole
        self.activations = activations


class _Recurrent:
    """The loop that RNN, GRU and LSTM share."""

    def __init__(self, node: Node, cell: Cell, gates: int, states: int, default: list[str]) -> None:
        self.cell = cell
        self.gates = gates
        self.states = states
        self.hidden = node.get_int("hidden_size", node.shapes.get(2, (0, 0, 0))[2] or None)
        self.direction = node.get_string("direction", "forward")
        self.batch_first = bool(node.get_int("layout", 0))
        self.count = len(node.outputs)
        directions = 2 if self.direction == "bidirectional" else 1
        names = [
            name.decode() if isinstance(name, bytes) else name
            for name in node.attributes.get("activations", default * directions)
        ]
        if set(names) - set(_ACTIVATIONS) or "clip" in node.attributes:
            raise node.refuse(f"activations {names} or clip are not supported")
        if node.get_int("input_forget", 0):
            raise node.refuse("coupled gates (input_forget=1) are not supported")
        self.activations = [_ACTIVATIONS[name] for name in names]

    def __call__(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        recurrent: torch.Tensor,
        bias: torch.Tensor | None = None,
        lengths: torch.Tensor | None = None,
        *states_and_peephole: torch.Tensor | None,
    ) -> tuple[torch.Tensor, ...] | torch.Tensor:
        if self.batch_first:
            x = x.transpose(0, 1)
        given = list(states_and_peephole) + [None] * (self.states + 1)
        first, peephole = given[: self.states], given[self.states]
        outputs, last = [], []
        per_direction = len(self.activations) // weight.shape[0]
        for number in range(weight.shape[0]):
            biases = x.new_zeros(2, self.gates * self.hidden)
            if bias is not None:
                biases = bias[number].reshape(2, -1)
            direction = Direction(
                recurrent[number],
                biases[1],
                None if peephole is None else peephole[number],
                self.activations[number * per_direction : (number + 1) * per_direction],
            )
            projected = functional.linear(x, weight[number], biases[0])
            state = tuple(self._first(s, x, number) for s in first)
            backward = number == 1 or self.direction == "reverse"
            sequence, state = self._walk(projected, state, direction, lengths, backward)
            outputs.append(sequence)
            last.append(state)
        return self._results(outputs, last)

    def _first(self, state: torch.Tensor | None, x: torch.Tensor, number: int) -> torch.Tensor:
        if state is None:
            return x.new_zeros(x.shape[1], self.hidden)
        return state[:, number] if self.batch_first else state[number]

    def _walk(
        self,
        projected: torch.Tensor,
        state: State,
        direction: Direction,
        lengths: torch.Tensor | None,
        backward: bool,
    ) -> tuple[torch.Tensor, State]:
        steps = range(projected.shape[0])
        sequence: list[torch.Tensor] = []
        for time in reversed(steps) if backward else steps:
            new = self.cell(state, projected[time], direction)
            shown = new[0]
            if lengths is not None:
                valid = (time < lengths).unsqueeze(1)
                new = tuple(torch.where(valid, n, old) for n, old in zip(new, state, strict=True))
                shown = torch.where(valid, shown, torch.zeros_like(shown))
            state = new
            sequence.append(shown)
        if backward:
            sequence.reverse()
        return torch.stack(sequence), state

    def _results(
        self, outputs: list[torch.Tensor], last: list[State]
    ) -> tuple[torch.Tensor, ...] | torch.Tensor:
        every = torch.stack(outputs, 1)  # [time, directions, batch, hidden]
        finals = [torch.stack(parts) for parts in zip(*last, strict=True)]
        if self.batch_first:
            every = every.permute(2, 0, 1, 3)
            finals = [final.transpose(0, 1) for final in finals]
        results = (every, *finals)[: self.count]
        return results if self.count > 1 else results[0]


def _lstm_cell(state: State, part: torch.Tensor, d: Direction) -> State:
    hidden, cell = state
    i, o, f, c = (part + functional.linear(hidden, d.recurrent, d.recurrent_bias)).chunk(4, 1)
    gate, squash, show = d.activations
    if d.peephole is not None:
        from_input, from_output, from_forget = d.peephole.chunk(3)
        i, f = i + from_input * cell, f + from_forget * cell
        cell = gate(f) * cell + gate(i) * squash(c)
        o = o + from_output * cell
    else:
        cell = gate(f) * cell + gate(i) * squash(c)
    return gate(o) * show(cell), cell


def _gru_cell(linear_before_reset: bool) -> Cell:
    def cell(state: State, part: torch.Tensor, d: Direction) -> State:
        (hidden,) = state
        gate, squash = d.activations
        size = hidden.shape[1]
        gates = functional.linear(hidden, d.recurrent[: 2 * size], d.recurrent_bias[: 2 * size])
        update, reset = gate(part[:, : 2 * size] + gates).chunk(2, 1)
        weight, bias = d.recurrent[2 * size :], d.recurrent_bias[2 * size :]
        if linear_before_reset:
            candidate = reset * functional.linear(hidden, weight, bias)
        else:
            candidate = functional.linear(reset * hidden, weight, bias)
        candidate = squash(part[:, 2 * size :] + candidate)
        return ((1 - update) * candidate + update * hidden,)

    return cell


def _rnn_cell(state: State, part: torch.Tensor, d: Direction) -> State:
    (hidden,) = state
    return (d.activations[0](part + functional.linear(hidden, d.recurrent, d.recurrent_bias)),)


@register_operator("LSTM", inputs=Inputs(weights=(1, 2, 3, 7), structural=(4, 5, 6)))
def lstm(node: Node) -> Run:
    return _Recurrent(node, _lstm_cell, 4, 2, ["Sigmoid", "Tanh", "Tanh"])


@register_operator("GRU", since=3, inputs=Inputs(weights=(1, 2, 3), structural=(4, 5)))
def gru(node: Node) -> Run:
    cell = _gru_cell(bool(node.get_int("linear_before_reset", 0)))
    return _Recurrent(node, cell, 3, 1, ["Sigmoid", "Tanh"])


@register_operator("RNN", inputs=Inputs(weights=(1, 2, 3), structural=(4, 5)))
def rnn(node: Node) -> Run:
    return _Recurrent(node, _rnn_cell, 1, 1, ["Tanh"])
