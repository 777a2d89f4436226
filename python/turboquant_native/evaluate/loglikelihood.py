"""How likely a model finds given continuations; what multiple-choice tests and lm-evaluation-harness ask for."""

import numpy as np

from ..engine.engine import Engine
from ..engine.sampling import log_softmax
from ..engine.tokens import check_tokens


class Likelihoods:
    """Log-likelihoods under one model. Continuations of one context evaluate that context once.

    Args:
        engine: the model; its context is the longest text in tokens, and older tokens of longer ones are dropped. Not owned.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, self.n_ctx, self.vocabulary = engine, engine.n_ctx, engine.vocabulary

    def encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of a context and of what follows it; spaces at the context's end go to the continuation."""
        kept = context.rstrip()
        continuation = context[len(kept) :] + continuation
        whole = self.vocabulary.encode(kept + continuation, add_bos=True)
        start = len(self.vocabulary.encode(kept, add_bos=True))
        return whole[:start], whole[start:]

    def score(self, context: list[int], continuation: list[int]) -> tuple[float, bool]:
        """(sum of log-probabilities, whether each token is the most likely one). An empty context becomes BOS, or EOS without one."""
        vocabulary = self.vocabulary
        prefix = context or [vocabulary.bos if vocabulary.bos >= 0 else vocabulary.eos]
        tokens = check_tokens((prefix + continuation)[-self.n_ctx - 1 :], vocabulary.n_vocab)
        targets = tokens[max(1, len(tokens) - len(continuation)) :]
        if len(targets) == 0:
            return 0.0, True
        rows = self._engine.evaluate(tokens[:-1], rows=len(targets))
        logprobs = log_softmax(rows)
        total = float(logprobs[np.arange(len(targets)), targets].sum())
        return total, bool((logprobs.argmax(axis=1) == targets).all())
