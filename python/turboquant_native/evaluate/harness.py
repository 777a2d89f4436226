"""The adapter through which lm-evaluation-harness drives a model (extra `[eval]`): `python -m turboquant_native.evaluate --tasks ...`."""

import argparse
import json
from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM

from ..engine.engine import Engine
from ..engine.generation import Limits
from ..engine.sampling import SamplingOptions
from .loglikelihood import Likelihoods


class TurboquantLM(LM):  # type: ignore[misc, unused-ignore]
    """A model file as an lm-evaluation-harness model.

    Args:
        model_path: the file.
        n_ctx: positions; longer texts lose their beginning.
        **kwargs: `Engine`'s.
    """

    def __init__(self, model_path: str, n_ctx: int = 2048, **kwargs: Any) -> None:
        super().__init__()
        self.engine = Engine(model_path, n_ctx=n_ctx, **kwargs)
        self._likelihoods = Likelihoods(self.engine)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Of each continuation, given its context: (log-likelihood, whether greedy decoding would have written it)."""
        return [self._likelihoods.score(*self._likelihoods.encode_pair(*request.args)) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Of whole texts, each token given what stands before it, in disjoint windows of n_ctx."""
        return [self._rolling(request.args[0]) for request in requests]

    def _rolling(self, text: str) -> float:
        tokens, size = self._likelihoods.vocabulary.encode(text), self._likelihoods.n_ctx
        windows = [(tokens[max(0, start - 1) : start], tokens[start : start + size]) for start in range(0, len(tokens), size)]
        return sum(self._likelihoods.score(before, window)[0] for before, window in windows)

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """Continues each context to one of its stop strings."""
        return [self._generate(*request.args) for request in requests]

    def _generate(self, context: str, options: dict[str, Any]) -> str:
        until = options.get("until") or []
        max_tokens = int(options.get("max_gen_toks", 256))
        vocabulary = self.engine.vocabulary
        prompt = vocabulary.encode(context, add_bos=True, special=True)[-(self.engine.n_ctx - max_tokens) :]
        temperature = float(options.get("temperature", 0.0)) if options.get("do_sample") else 0.0
        limits = Limits(max_tokens, [until] if isinstance(until, str) else until)
        return self.engine.complete(prompt, limits, SamplingOptions(temperature=temperature))

    def close(self) -> None:
        """Frees the model."""
        self.engine.close()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs tasks and prints their results."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import make_table

    parser = argparse.ArgumentParser(prog="python -m turboquant_native.evaluate", description="lm-evaluation-harness on a model file.")
    parser.add_argument("--model", required=True, help="model file")
    parser.add_argument("--tasks", required=True, help="names of tasks, separated by commas")
    parser.add_argument("--include-path", metavar="DIR", help="folder with tasks of your own (YAML)")
    parser.add_argument("--num-fewshot", type=int, help="examples before each question (default: the task's)")
    parser.add_argument("--limit", type=int, help="questions of each task")
    parser.add_argument("--ctx", type=int, default=2048, help="positions (%(default)s)")
    parser.add_argument("--threads", type=int, help="default: this process's cores")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    args = parser.parse_args(argv)
    model = TurboquantLM(args.model, args.ctx, n_threads=args.threads or 0)
    try:
        results = simple_evaluate(
            model=model,
            tasks=args.tasks.split(","),
            num_fewshot=args.num_fewshot,
            limit=args.limit,
            task_manager=TaskManager(include_path=args.include_path),
        )
    finally:
        model.close()
    print(json.dumps(results["results"], default=str) if args.json else make_table(results))
    return 0
