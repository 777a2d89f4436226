"""Load on a server with OpenAI's chat: requests and tokens per second, time to the first token, time between tokens.

    tqn serve MODEL --slots 4 --ctx 20480 &
    python benchmarks/server_load.py http://127.0.0.1:8080 --clients 1,4,16,64

Any server with /v1/chat/completions will do, so that two can be compared: run them one at a time, alternating. Prints tables in Markdown.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import httpx

WORDS = ["river", "stone", "window", "garden", "letter", "bridge", "winter", "music", "market", "forest", "mirror", "engine", "harbour"]


@dataclass
class Answer:
    """One streamed answer: when it was asked for and when each piece of it came, in seconds; `left` when the client went away."""

    start: float
    times: list[float] = field(default_factory=list)
    tokens: int = 0
    left: bool = False

    @property
    def first(self) -> float:
        return self.times[0] - self.start

    @property
    def between(self) -> list[float]:
        return [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]


def prompt(seed: int, words: int) -> str:
    """A text of so many words, different for each seed from its first word on."""
    draw = random.Random(seed)
    return f"{seed}: " + " ".join(draw.choice(WORDS) for _ in range(words)) + "\nContinue this list."


async def ask(client: httpx.AsyncClient, text: str, max_tokens: int, leave_after: int | None = None, system: str | None = None) -> Answer:
    """Asks and reads the stream; with `leave_after` the connection is closed after so many pieces."""
    messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": text}]
    body = {"messages": messages, "max_tokens": max_tokens, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    answer = Answer(time.perf_counter())
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.aiter_lines():
            if not line.startswith("data: {"):
                continue
            chunk = json.loads(line[6:])
            if chunk.get("usage"):
                answer.tokens = chunk["usage"]["completion_tokens"]
            if any(choice["delta"].get("content") for choice in chunk["choices"]):
                answer.times.append(time.perf_counter())
            if leave_after is not None and len(answer.times) >= leave_after:
                answer.left = True
                return answer
    return answer


async def crowd(n_clients: int, n_requests: int, one: Callable[[int], Awaitable[Answer]]) -> tuple[float, list[Answer]]:
    """Each client asks again as soon as it has its answer; (seconds, answers)."""
    numbers = iter(range(n_requests))
    answers: list[Answer] = []

    async def go() -> None:
        for number in numbers:
            answers.append(await one(number))

    start = time.perf_counter()
    await asyncio.gather(*(go() for _ in range(n_clients)))
    return time.perf_counter() - start, answers


def quantile(values: list[float], share: float) -> float:
    """The value below which a share of the others lie; NaN of none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else float("nan")


def row(name: str, seconds: float, answers: list[Answer]) -> str:
    """A line of the table."""
    whole = [answer for answer in answers if answer.times and not answer.left]
    firsts = [answer.first for answer in whole]
    between = [gap for answer in whole for gap in answer.between]
    tokens = sum(answer.tokens or len(answer.times) for answer in answers)
    milliseconds = [1e3 * quantile(values, share) for values in (firsts, between) for share in (0.5, 0.99)]
    cells = [name, f"{len(answers) / seconds:.2f}", f"{tokens / seconds:.1f}", *(f"{value:.0f}" for value in milliseconds)]
    return "| " + " | ".join(cells) + " |"


HEAD = """| case | requests/s | tokens/s | first token p50 (ms) | p99 | between tokens p50 (ms) | p99 |
|---|---|---|---|---|---|---|"""


async def measure(args: argparse.Namespace) -> None:
    """All cases, a line each."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)  # some servers close kept ones at any moment
    headers = {"Authorization": f"Bearer {args.key}"} if args.key else {}
    async with httpx.AsyncClient(base_url=args.url, timeout=None, limits=limits, headers=headers) as client:
        seed = random.Random(args.seed).randrange(1 << 30)
        await ask(client, prompt(seed - 1, 8), 4)  # loads what is loaded late
        print(HEAD, flush=True)
        for n_clients in args.clients:
            n_requests = max(args.requests, n_clients)
            result = await crowd(n_clients, n_requests, lambda number: ask(client, prompt(seed + number, args.words), args.tokens))  # noqa: B023
            print(row(f"{n_clients} clients", *result), flush=True)
            seed += n_requests
        if args.leaving:
            await leaving(client, args, seed)
        if args.prefix_words:
            await shared_prefix(client, args, seed)
        if args.long_words:
            await long_beside_four(client, args, seed)
        if args.drift:
            await drift(client, args, seed + 50_000)


async def leaving(client: httpx.AsyncClient, args: argparse.Namespace, seed: int) -> None:
    """30 % of the clients leave after three pieces."""
    n_clients = max(args.clients)

    def one(number: int) -> Awaitable[Answer]:
        return ask(client, prompt(seed + 10_000 + number, args.words), args.tokens, leave_after=3 if number % 10 < 3 else None)

    result = await crowd(n_clients, max(args.requests, n_clients), one)
    print(row(f"{n_clients} clients, 30 % leave", *result), flush=True)


async def shared_prefix(client: httpx.AsyncClient, args: argparse.Namespace, seed: int) -> None:
    """Four clients whose conversations begin alike."""
    system = prompt(seed, args.prefix_words)
    await ask(client, "Begin.", 1, system=system)
    result = await crowd(4, args.requests, lambda number: ask(client, prompt(number, 8), args.tokens, system=system))
    print(row(f"4 clients, shared beginning of {args.prefix_words} words", *result), flush=True)


async def long_beside_four(client: httpx.AsyncClient, args: argparse.Namespace, seed: int) -> None:
    """One long prompt while four others are answered: only the time between *their* tokens counts."""
    long = asyncio.create_task(_later(0.5, lambda: ask(client, prompt(seed + 20_000, args.long_words), 4)))
    start, answers = time.perf_counter(), []
    while not long.done():
        answers += await asyncio.gather(*(ask(client, prompt(seed + 30_000 + len(answers) + i, 8), args.long_tokens) for i in range(4)))
    print(row(f"4 decoders beside a prompt of {args.long_words} words", time.perf_counter() - start, answers), flush=True)
    print(row("that prompt", (await long).first, [await long]), flush=True)


def resident(pid: int) -> float:
    """MiB of memory that a process holds (Linux)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmRSS:"))


async def drift(client: httpx.AsyncClient, args: argparse.Namespace, seed: int) -> None:
    """The server's memory after a tenth of many requests and after all of them; some clients leave."""

    def one(number: int) -> Awaitable[Answer]:
        return ask(client, prompt(seed + number, 8), 4, leave_after=1 if number % 10 == 0 else None)

    sizes = []
    for count in (args.drift // 10, args.drift - args.drift // 10):
        await crowd(16, count, one)
        sizes.append(resident(args.pid))
    print(f"\n{args.drift} requests: {sizes[0]:.1f} MiB after a tenth, {sizes[1]:.1f} MiB at the end ({sizes[1] / sizes[0] - 1:+.2%})")


async def _later(seconds: float, make: Callable[[], Awaitable[Answer]]) -> Answer:
    await asyncio.sleep(seconds)
    return await make()


def main() -> None:
    """Reads the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="http://127.0.0.1:8080")
    parser.add_argument("--clients", type=lambda text: [int(part) for part in text.split(",")], default=[1, 4, 16, 64], metavar="N,N,...")
    parser.add_argument("--requests", type=int, default=64, help="in each case at least (%(default)s)")
    parser.add_argument("--words", type=int, default=60, help="of a prompt (%(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="of an answer (%(default)s)")
    parser.add_argument("--leaving", action="store_true", help="also: the largest crowd, 30 %% of which leave")
    parser.add_argument("--prefix-words", type=int, default=0, help="also: conversations that share a beginning of so many words")
    parser.add_argument("--long-words", type=int, default=0, help="also: a prompt of so many words beside four decoders")
    parser.add_argument("--long-tokens", type=int, default=256, help="of the answers beside it (%(default)s)")
    parser.add_argument("--drift", type=int, default=0, metavar="N", help="also: memory of the server over N requests; needs --pid")
    parser.add_argument("--pid", type=int, help="process of the server")
    parser.add_argument("--key", help="API key")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the prompts (default: new ones each time)")
    args = parser.parse_args()
    if args.drift and args.pid is None:
        parser.error("--drift needs --pid")
    asyncio.run(measure(args))


if __name__ == "__main__":
    main()
