"""What a file's loss means for answers: how long they get, and a multiple-choice test, both made of a text of questions and answers.

    python benchmarks/answers.py FAQ MODEL.gguf [MODEL.gguf ...] [--prompts 100] [--max-tokens 256]

FAQ: plain text in which a line that ends in a question mark is followed by its answer (Perl's FAQ from perl-doc, formatting removed).
Questions spread over it are asked as a chat, greedily; of an answer that does not end by itself the limit counts. In the test a question
has four openings of answers, its own and three others, and the likeliest is chosen; SE: its standard error.
"""

import argparse
import itertools
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from turboquant_native import Llama, _core
from turboquant_native.evaluate.multiple_choice import Question, evaluate

ENDINGS, SHORTEST, LONGEST = 4, 40, 200  # characters of an answer's opening
STREAMS = 8


def questions_and_answers(text: str) -> list[tuple[str, str]]:
    """Each question with the first sentence of its answer."""
    found = []
    text = re.sub(r"(\n\n[^\n]+\?)\n(?!\n)", r"\1\n\n", text)  # a question's line may be right above its answer
    blocks = [re.sub(r"\s+", " ", block).strip() for block in text.split("\n\n")]
    for question, answer in itertools.pairwise(blocks):
        sentence = re.split(r"(?<=[.:!?]) ", answer)[0][:LONGEST]
        if question.endswith("?") and len(question) < 120 and len(sentence) >= SHORTEST and not sentence.endswith("?"):
            found.append((question, sentence))
    return found


def test_of(pairs: list[tuple[str, str]]) -> list[Question]:
    rng = np.random.default_rng(0)
    made = []
    for number, (question, answer) in enumerate(pairs):
        others = rng.choice([i for i in range(len(pairs)) if i != number], ENDINGS - 1, replace=False)
        place = int(rng.integers(ENDINGS))
        endings = [pairs[i][1] for i in others]
        endings.insert(place, answer)
        made.append(Question(f"Question: {question}\nAnswer:", [" " + ending for ending in endings], place))
    return made


def lengths(path: Path, prompts: list[str], most: int) -> list[int]:
    """Tokens of every answer."""
    with Llama(str(path), n_ctx=most + 256, n_slots=STREAMS) as llm, ThreadPoolExecutor(STREAMS) as pool:

        def answer(prompt: str) -> int:
            made = llm.create_chat_completion(messages=[{"role": "user", "content": prompt}], max_tokens=most, temperature=0)
            return int(made["usage"]["completion_tokens"])  # type: ignore[index]

        return list(pool.map(answer, prompts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("faq", type=Path)
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL.gguf")
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--questions", type=int, help="of the test (default: all)")
    parser.add_argument("--max-tokens", type=int, default=256)
    args = parser.parse_args()
    pairs = questions_and_answers(args.faq.read_text(encoding="utf-8"))
    chosen = [pairs[i][0] for i in np.linspace(0, len(pairs) - 1, min(args.prompts, len(pairs))).round().astype(int)]
    print("| file | answers | tokens: mean | median | at the limit |\n|" + "---|" * 5)
    for path in args.models:
        took = np.array(lengths(path, chosen, args.max_tokens))
        limited = (took >= args.max_tokens).mean()
        print(f"| {path.name} | {len(took)} | {took.mean():.0f} | {np.median(took):.0f} | {limited:.2f} |", flush=True)
    print("\n| file | questions | right +- SE | by length +- SE |\n|" + "---|" * 4)
    for path in args.models:
        test = evaluate(_core.Model(str(path)), test_of(pairs)[: args.questions])
        right, by_length = (
            f"{value:.3f} +- {error:.3f}"
            for value, error in ((test.accuracy, test.accuracy_se), (test.accuracy_norm, test.accuracy_norm_se))
        )
        print(f"| {path.name} | {test.questions} | {right} | {by_length} |", flush=True)


if __name__ == "__main__":
    main()
