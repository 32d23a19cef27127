"""Search: chooses the table of words and the form of each linear layer by measuring the whole model's vectors."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from build import graph
from build.forms import FORMS, IN_FP32, SMOOTHING, SMOOTHINGS, Form, kind_of
from build.network import LINEARS, Floats, Ids, Linear, Network, QuantizedLinear, Table
from build.quantize_linear import InputStatistics, open_session, quantize_linear
from build.similarity import cosines, unit

# Limits of the loss, 1 - cosine to FP32, table of words included: mean and 99th percentile. Where all vectors of a
# model lie close together, as E5's do, the same loss changes more neighbours. Hence the limit relative to their
# spread, 1 - the mean cosine of two texts.
MAX_MEAN_LOSS = 3e-4
MAX_MEAN_LOSS_OF_SPREAD = 1.3e-3
MAX_P99_LOSS = 7e-4

# Single changes are ranked on every k-th text of the search, and on RANKED_TEXTS at least. k: weights of the linear
# layers, in multiples of RANKED_WEIGHTS. The time of the ranking grows with the weights and with the number of changes,
# and it is most of a build's: with 85 million weights 16 minutes on all texts (two cores).
RANKED_WEIGHTS = 40_000_000
RANKED_TEXTS = 24

# Steps of the table of words to try, as multiples of the finest step, which maps the largest value to 127. A coarser
# step has fewer values, which pack better: on the stand-in 1.5 into 58 MB at a loss of 0.8e-4, 2 into 54 MB at 1.2e-4,
# 2.5 into 51 MB at 1.8e-4. If all lose too much, each word gets a step of its own.
TABLE_STEPS = (3.0, 2.75, 2.5, 2.25, 2.0, 1.75, 1.5, 1.25, 1.0)
# Share of the allowed loss that the table may cause.
TABLE_SHARE = 0.33


class Evaluator:
    """Measures the loss of a quantized network: 1 - cosine to FP32 on some texts.

    words: ids that these texts have; only their rows of the table are used. ids: the texts as indexes into words.
    ranking_texts: those of the texts on which single changes are ranked.
    """

    def __init__(self, network: Network, ids: list[Ids]) -> None:
        self.network = network
        self._of_words, self.words, self.ids = network.of_words(ids)
        self.reference = self._embed(self._of_words, self._of_words.words, network.linears, slice(None))
        weights = sum(linear.weight.size for linear in network.linears.values())
        every = min(round(weights / RANKED_WEIGHTS), len(ids) // RANKED_TEXTS)
        self.ranking_texts = slice(None, None, max(1, every))
        spread = 1 - float(np.sum(unit(self.reference).mean(0) ** 2))
        self.allowed_loss = min(MAX_MEAN_LOSS, MAX_MEAN_LOSS_OF_SPREAD * spread)

    def losses(
        self,
        network: Network,
        table: Table,
        linears: Mapping[str, Linear | QuantizedLinear],
        some: slice = slice(None),
    ) -> NDArray[np.float64]:
        """Return the loss of some texts, (texts,). table: rows of self.words."""
        network = replace(network, uncounted=self._of_words.uncounted)
        return 1 - cosines(self._embed(network, table, linears, some), self.reference[some])

    def _embed(
        self,
        network: Network,
        table: Table | Floats,
        linears: Mapping[str, Linear | QuantizedLinear],
        some: slice,
    ) -> Floats:
        session = open_session(graph.write(network, table, linears).SerializeToString())
        return np.array([session.run(None, {"input_ids": item[None]})[0][0] for item in self.ids[some]], np.float32)


def choose_table(evaluator: Evaluator) -> tuple[Table, str]:
    """Return the coarsest table within its share of the allowed loss, or the finest; and its description."""
    words = evaluator.network.words
    finest = max(float(np.abs(words).max()), 1e-12) / 127
    for multiple in TABLE_STEPS:
        step = np.array(finest * multiple, np.float32)
        losses = evaluator.losses(
            evaluator.network, _quantize_table(words[evaluator.words], step), evaluator.network.linears
        )
        if losses.mean() <= TABLE_SHARE * evaluator.allowed_loss:
            return _quantize_table(words, step), f"one step, {multiple:g} x the finest"
    return _quantize_table(words, np.maximum(np.abs(words).max(1, keepdims=True), 1e-12) / 127), "a step for each word"


def _quantize_table(words: Floats, step: Floats) -> Table:
    return Table(np.round(words / step).astype(np.int8), step)


@dataclass(frozen=True)
class Choice:
    """A form for each linear layer, the layers in these forms, and the loss of each measured text, (texts,)."""

    forms: dict[str, Form]
    linears: dict[str, Linear | QuantizedLinear]
    losses: NDArray[np.float64]


class Search:
    """Searches a form for each linear layer. Each candidate is measured in the whole model.

    table: rows of evaluator.words.
    """

    def __init__(
        self, network: Network, inputs: dict[str, InputStatistics], table: Table, evaluator: Evaluator
    ) -> None:
        self._network, self._inputs, self._table, self._evaluator = network, inputs, table, evaluator
        self._smoothing = dict(SMOOTHING)
        self._quantized: dict[tuple[str, Form, float], Linear | QuantizedLinear] = {}

    def run(self, effort: str) -> Choice:
        """Return the choice for an effort: fast, default or best (see build/quantize.py)."""
        if effort == "best":
            self._choose_smoothing()
        exact = self._choice(self._most_exact_forms())
        if effort == "fast":
            return exact
        if self._is_exact_enough(exact):
            # replaces the most exact forms by cheaper ones: first those with the least loss for the time saved
            steps = self._steps(exact, {kind: forms[:-1] for kind, forms in FORMS.items()})
            return self._bisect(exact, steps, are_cheaper=True)
        # puts layers into FP32: first those with the most gain for the time spent
        steps = self._steps(exact, {kind: (form,) for kind, form in IN_FP32.items()})
        all_fp32 = self._choice({name: IN_FP32[kind_of(name)] for name in exact.forms})
        # not exact enough even so: the table causes the loss, and FP32 would only be slower
        return self._bisect(exact, steps, are_cheaper=False) if self._is_exact_enough(all_fp32) else exact

    def _choose_smoothing(self) -> None:
        """Set the exponent of each kind of layer to the best one of SMOOTHINGS."""
        for kind in LINEARS:
            if kind == "attention_out":
                continue  # fold_smoothing has fixed it already
            losses = {}
            for smoothing in SMOOTHINGS:
                self._smoothing[kind] = smoothing
                losses[smoothing] = float(self._choice(self._most_exact_forms()).losses.mean())
            self._quantized.clear()  # most of them are not needed any more
            self._smoothing[kind] = min(SMOOTHINGS, key=losses.__getitem__)

    def _most_exact_forms(self) -> dict[str, Form]:
        return {name: FORMS[kind_of(name)][-1] for name in self._network.linears}

    def _steps(self, start: Choice, forms: Mapping[str, tuple[Form, ...]]) -> list[tuple[str, Form]]:
        """Return single changes of a choice, (layer, form), by their change of the loss for each unit of cost."""
        ratios = []
        some = self._evaluator.ranking_texts
        loss = start.losses[some].mean()
        for name in self._network.linears:
            for form in forms[kind_of(name)]:
                changed = self._choice({**start.forms, name: form}, some)
                difference = float(changed.losses.mean() - loss)
                ratios.append((difference / abs(form.cost - start.forms[name].cost), name, form))
        ratios.sort(key=lambda item: (item[0], item[1]))
        return [(name, form) for _, name, form in ratios]

    def _bisect(self, start: Choice, steps: list[tuple[str, Form]], are_cheaper: bool) -> Choice:
        """Find by bisection how many steps to take: as many cheaper ones, or as few more exact ones, as possible."""

        def after(count: int) -> Choice:
            forms = dict(start.forms)
            for name, form in steps[:count]:
                if not are_cheaper or form.cost < forms[name].cost:
                    forms[name] = form
            return self._choice(forms)

        low, high = 0, len(steps)
        while low < high:
            middle = (low + high + are_cheaper) // 2
            if self._is_exact_enough(after(middle)) == are_cheaper:
                low = middle if are_cheaper else middle + 1
            else:
                high = middle - 1 if are_cheaper else middle
        return after(low)

    def _is_exact_enough(self, choice: Choice) -> bool:
        losses = choice.losses
        return bool(losses.mean() <= self._evaluator.allowed_loss and np.percentile(losses, 99) <= MAX_P99_LOSS)

    def _choice(self, forms: Mapping[str, Form], some: slice = slice(None)) -> Choice:
        linears = {name: self._linear(name, form) for name, form in forms.items()}
        return Choice(dict(forms), linears, self._evaluator.losses(self._network, self._table, linears, some))

    def _linear(self, name: str, form: Form) -> Linear | QuantizedLinear:
        smoothing = self._smoothing[kind_of(name)]
        key = name, form, smoothing
        if key not in self._quantized:
            linear = self._network.linears[name]
            self._quantized[key] = linear if form.fp32 else quantize_linear(linear, self._inputs[name], form, smoothing)
        return self._quantized[key]
