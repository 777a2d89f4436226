"""The server's command line, and the process that serves."""

import argparse
import os
from contextlib import ExitStack
from typing import Any

from ..api.running import registered
from ..common.sizes import size_argument
from ..engine.cache_types import CACHE_HELP, OFFERED, types_of
from .settings import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the command's arguments."""
    parser.add_argument("model", nargs="*", help="model file, or a folder of them; the first is loaded at the start")
    parser.add_argument("--model", "-m", dest="more_models", action="append", default=[], metavar="FILE", help="the same; repeatable")
    parser.add_argument("--alias", action="append", default=[], metavar="NAME", help="a further name of the first model; '*': every name")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (%(default)s: this machine only)")
    parser.add_argument("--port", type=int, default=8080, help="(%(default)s; 0: any free one)")
    engine = parser.add_argument_group("engine")
    engine.add_argument("--ctx", type=int, help="positions of one conversation; 0: the model's (default: 4096, or the model's if less)")
    engine.add_argument("--slots", type=int, default=4, help="conversations evaluated at the same time (%(default)s)")
    engine.add_argument("--batch", type=int, default=512, help="rows of one forward pass at most (%(default)s)")
    engine.add_argument("--threads", type=int, help="default: this process's cores")
    engine.add_argument("--gpu", action="store_true", help="run on a GPU")
    engine.add_argument("--precision", choices=("int8", "f32"), default="int8", help="activations of packed matrices (%(default)s)")
    engine.add_argument("--cache", choices=OFFERED, default="f16", help=CACHE_HELP)
    engine.add_argument(
        "--cache-budget",
        type=size_argument,
        metavar="SIZE",
        help="bytes of all caches, such as 4GB; idle prefixes lose bits before any is forgotten (default: slots keep prefixes, no more)",
    )
    engine.add_argument("--chat-format", help="chatml, llama-3, gemma or a jinja2 template (default: the file's)")
    engine.add_argument("--max-loaded", type=int, default=1, help="models in memory at a time (%(default)s)")
    engine.add_argument("--idle", type=float, metavar="SECONDS", help="unload a model that nobody used for so long (default: never)")
    access = parser.add_argument_group("access and limits")
    access.add_argument("--api-key", action="append", default=[], metavar="KEY", help="ask for this key; repeatable (also: TQN_API_KEY)")
    access.add_argument("--cors", action="append", default=[], metavar="ORIGIN", help="let web pages of this origin call; repeatable")
    access.add_argument("--max-queue", type=int, default=128, help="requests that may wait for a slot (%(default)s)")
    access.add_argument("--max-body", type=int, default=32, metavar="MIB", help="size of a request (%(default)s)")
    access.add_argument("--max-tokens", type=int, help="of one answer, whatever a request asks for (default: the context)")
    access.add_argument("--max-seconds", type=float, help="of one answer, waiting included (default: no limit)")
    access.add_argument("--keep-alive", type=float, default=5.0, help="seconds between comment lines of a silent stream (%(default)s)")
    access.add_argument("--grace", type=float, default=10.0, help="seconds that answers have when the server is stopped (%(default)s)")
    sampling = parser.add_argument_group("sampling, where a request says nothing")
    for name, value in Settings().sampling.items():
        sampling.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help="(%(default)s)")
    ray = parser.add_argument_group("several machines (extra [ray]; docs/cluster.md)")
    ray.add_argument("--ray", action="store_true", help="serve as a Ray Serve application")
    ray.add_argument("--replicas", default="1", metavar="N[:MOST]", help="servers behind the address; MOST: under load (%(default)s)")
    ray.add_argument("--ray-address", metavar="HOST:PORT", help="of a cluster; 'auto': this machine's (default: one is started)")
    log = parser.add_argument_group("log")
    log.add_argument("--log-json", action="store_true", help="one JSON object a line")
    log.add_argument("--log-prompts", action="store_true", help="log what is said, too")


def settings_of(args: argparse.Namespace) -> Settings:
    """The settings that the arguments describe; ValueError where they cannot be."""
    models = [*args.model, *args.more_models]
    if not models:
        raise ValueError("name a model file or a folder of them")
    if args.threads is not None and args.threads < 0:
        raise ValueError(f"--threads {args.threads}: give 0 (this process's cores) or more")
    environment = os.environ.get("TQN_API_KEY")
    type_k, type_v = types_of(args.cache)
    llama = {
        "n_batch": args.batch,
        "n_threads": args.threads,
        "n_gpu_layers": -1 if args.gpu else 0,
        "precision": args.precision,
        "type_k": type_k,
        "type_v": type_v,
        "cache_budget": args.cache_budget,
        "chat_format": args.chat_format,
    }
    return Settings(
        models=models,
        aliases=args.alias,
        n_ctx=args.ctx,
        n_slots=args.slots,
        llama=llama,
        max_loaded=args.max_loaded,
        idle_seconds=args.idle,
        api_keys=[*args.api_key, *([environment] if environment else [])],
        cors_origins=args.cors,
        max_body=args.max_body << 20,
        max_queue=args.max_queue,
        max_tokens=args.max_tokens,
        max_seconds=args.max_seconds,
        keep_alive=args.keep_alive,
        sampling={name: getattr(args, name) for name in Settings().sampling},
        log_json=args.log_json,
        log_prompts=args.log_prompts,
        grace=args.grace,
    )


def replicas_of(text: str) -> tuple[int, int]:
    """(least, most) of `--replicas`; ValueError for what is neither N nor N:MOST."""
    least, _, most = text.partition(":")
    if not least.isdecimal() or not (most or least).isdecimal() or not 1 <= int(least) <= int(most or least):
        raise ValueError(f"--replicas {text}: give a number from 1 on, or two such as 1:4")
    return int(least), int(most or least)


def _run_on_ray(args: argparse.Namespace, settings: Settings) -> int:
    try:
        from .cluster import application
    except ModuleNotFoundError as error:
        raise ImportError(f"--ray needs {error.name}: pip install 'turboquant-native[server,ray]'") from error
    least, most = replicas_of(args.replicas)
    threads = args.threads or os.cpu_count() or 1
    scale = application.Scale(least, most, cpus=threads, gpus=1 if args.gpu else 0)
    application.run(settings, scale, args.ray_address, args.host, args.port)
    return 0


def run(args: argparse.Namespace) -> int:
    """Serves until the process is told to end (SIGTERM or Ctrl-C)."""
    settings = settings_of(args)
    if args.ray:
        return _run_on_ray(args, settings)
    if args.replicas != "1" or args.ray_address:
        raise ValueError("--replicas and --ray-address are for --ray")
    try:
        import uvicorn

        from . import logs
        from .app import create_app
    except ModuleNotFoundError as error:
        raise ImportError(f"the server needs {error.name}: pip install 'turboquant-native[server]'") from error
    logs.configure(settings.log_json)
    app = create_app(settings)
    config = uvicorn.Config(app, host=args.host, port=args.port, log_config=None, access_log=False, server_header=False)

    class Server(uvicorn.Server):
        """Answers end before connections are closed: by themselves, or after the grace with an error that their clients can read."""

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:  # the port is known now
                port = self.servers[0].sockets[0].getsockname()[1]
                listed.enter_context(registered(args.host, port, str(settings.models[0])))

        async def shutdown(self, sockets: Any = None) -> None:
            await app.state.service.registry.drain(settings.grace)
            await super().shutdown(sockets)

    server = Server(config)
    with ExitStack() as listed:  # for `tqn ps` and `tqn stop`
        server.run()
    return 0 if server.started else 1
