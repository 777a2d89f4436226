"""What the API adds to plain decoding, in figures: many sequences at once, guessed tokens, reused prefixes.

    python benchmarks/sessions.py MODEL [--threads N] [--rounds 3]

Prints Markdown. Every figure is a median over the rounds; texts are greedy and checked to be those of plain decoding.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

from turboquant_native import Llama, LlamaPromptLookupDecoding

ARTICLE = (
    "The harbour of the old town was rebuilt after the storm of 1953. The new breakwater is 840 metres long and protects the fleet, the "
    "ferry terminal and the lifeboat station. Engineers from the university measured the waves for two winters before the first stone was "
    "laid. The fishing fleet has since grown from twelve boats to thirty, and the ferry terminal serves four islands. "
)
TASK = "Summarize the text by repeating its most important sentences."
SUMMARIZE = f"{TASK}\n\nText: {ARTICLE * 2}\n\nSummary: The harbour of the old town was"
PROMPTS = ["The capital of France is", "Once upon a time", "def fibonacci(n):", "The sky is blue because", "Water boils at", "In 1969,"]


def timed(rounds: int, work: Callable[[], object]) -> tuple[float, object]:
    """Median seconds, and the result of the last round."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return median(seconds), result


def texts(answers: list[dict]) -> list[str]:
    return [answer["choices"][0]["text"] for answer in answers]


def batches(llm: Llama, rounds: int, tokens: int = 32) -> None:
    """Tokens/s of all sequences together."""
    options = {"max_tokens": tokens, "temperature": 0.0, "logit_bias": {token: -100.0 for token in llm.vocabulary.end_tokens}}
    print("| sequences at once | tokens/s together | against one |\n|---|---|---|")
    single = None
    for count in (1, 8, 32):
        prompts = [PROMPTS[i % len(PROMPTS)] for i in range(count)]
        seconds, answers = timed(rounds, lambda prompts=prompts, count=count: llm.generate_batch(prompts, n_slots=count, **options))
        assert texts(answers) == texts([llm(prompt, **options) for prompt in prompts])
        rate = count * tokens / seconds
        single = single or rate
        print(f"| {count} | {rate:.1f} | {rate / single:.2f} |")


def speculation(llm: Llama, rounds: int, tokens: int = 96) -> None:
    """Generation of a summary with and without prompt look-up."""

    def run() -> str:
        return llm(SUMMARIZE, max_tokens=tokens, temperature=0.0)["choices"][0]["text"]

    run()  # the prompt is in the cache from here on
    plain_seconds, plain = timed(rounds, run)
    llm.draft_model = LlamaPromptLookupDecoding(max_ngram_size=3, num_pred_tokens=8)
    guessed_seconds, guessed = timed(rounds, run)
    llm.draft_model = None
    assert guessed == plain
    print("\n| summary | seconds |\n|---|---|")
    print(
        f"| plain | {plain_seconds:.2f} |\n| prompt look-up | {guessed_seconds:.2f} ({plain_seconds / guessed_seconds:.2f} times as fast) |"
    )


def prefixes(llm: Llama, rounds: int) -> None:
    """Time to the first token of a question about a text that was evaluated before."""

    def first_token(question: str, fresh: bool) -> float:
        if fresh:
            llm.reset()
        start = time.perf_counter()
        llm(f"{ARTICLE * 2}\n\nQuestion: {question}\nAnswer:", max_tokens=1)
        return time.perf_counter() - start

    questions = [f"What is said about number {i}?" for i in range(rounds)]
    cold = median(first_token(question, True) for question in questions)
    warm = median(first_token(question, False) for question in questions)
    print(f"\n| first token | ms |\n|---|---|\n| empty cache | {1e3 * cold:.0f} |\n| the text is in the cache | {1e3 * warm:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with Llama(args.model, n_ctx=1024, n_threads=args.threads, verbose=False) as llm:
        batches(llm, args.rounds)
        speculation(llm, args.rounds)
        prefixes(llm, args.rounds)


if __name__ == "__main__":
    main()
