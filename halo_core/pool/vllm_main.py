"""The program in which one vLLM engine lives: vLLM's own OpenAI server, started quickly and dying with its parent.

A self-contained script: it runs in the interpreter where vLLM is installed, where `halo_core` need not be. Halo
starts it (see `halo_core/pool/vllm.py`) as the leader of its own process group, with

- standard input: a pipe whose other end the parent keeps; its end of file means that the parent is gone,
- `--fd N`: an inherited TCP socket, already bound (so the parent knows the port before vLLM has even been imported),
- after `--`: the arguments of vLLM's own server, passed on as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import threading
from typing import Any

_PARENT_CHECK_S = 5.0
"""How often to look at the parent's id, for the case that a forked sibling keeps the pipe open."""
_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Serve until SIGTERM, or until the parent is gone."""
    own, vllm_args = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited, bound TCP socket")
    parser.add_argument("--parent", type=int, required=True, help="process id whose end ends this program")
    parser.add_argument("--scratch", default="", help="folder to remove when the parent is gone")
    parser.add_argument("--cores", default="", help="CPU cores to run on, as 0,1,2; sets the CPU backend's threads")
    parser.add_argument("--kv-store", default="", help="JSON: the host's block store, see halo_core/kv")
    parser.add_argument("--fork", action="store_true", help="CPU backend: fork the engine core instead of spawning it")
    options = parser.parse_args(own)

    # Started as a script, so our own folder comes first: `http.py` there would shadow the standard library's package.
    own_folder = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != own_folder]
    _die_with(options.parent, options.scratch)
    cores = [int(core) for core in options.cores.split(",") if core]
    if cores:
        _bind(cores)
    gc.disable()  # importing vLLM allocates millions of objects that stay: collecting meanwhile costs 1-3 s
    if options.kv_store:
        vllm_args = [*_share_kv(json.loads(options.kv_store), options.scratch), *vllm_args]
    _serve(socket.socket(fileno=options.fd), vllm_args, fork=options.fork)


def _die_with(parent: int, scratch: str) -> None:
    """Kill this process group, engine core and workers included, as soon as `parent` is gone."""

    def watch() -> None:
        while True:
            readable, _, _ = select.select([0], [], [], _PARENT_CHECK_S)
            if (readable and not os.read(0, 4096)) or os.getppid() != parent:
                if scratch:
                    shutil.rmtree(scratch, ignore_errors=True)
                os.killpg(os.getpgrp(), signal.SIGKILL)

    # The engine core must not outlive this process either, however it ends; the kernel sees to that.
    libc = ctypes.CDLL(None)
    if hasattr(libc, "prctl"):
        os.register_at_fork(after_in_child=lambda: libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL))
    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def _bind(cores: list[int]) -> None:
    """Keep this program, and with it vLLM's compute threads, on `cores`; must run before torch is imported."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    os.environ["OMP_NUM_THREADS"] = str(len(cores))
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))


def _share_kv(store: dict[str, Any], scratch: str) -> list[str]:
    """The arguments that make this engine share KV through the block store; none where it cannot, for a told reason."""
    required = store.pop("required")
    plugin = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "kv", "plugin")
    sys.path.append(plugin)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), plugin]))  # if it spawns
    try:
        problem: str = _import("halo_kv.connector").interface_problem()
        if not problem:
            _import("halo_kv.store").BlockStore(store["root"], "probe", store["cap_bytes"]).close()
    except ImportError as error:
        problem = f"this vLLM has no KV connectors ({error})"
    except OSError as error:
        problem = f"the block store {store['root']} cannot be used: {error.strerror or error}"
    with open(os.path.join(scratch, "sharing"), "w", encoding="utf-8") as file:
        file.write(problem)
    if problem and required:
        sys.exit(f"halo: KV cannot be shared: {problem}. Set kv_sharing = 'auto' or 'off'")
    if problem:
        print(f"halo: KV is not shared: {problem}", flush=True)
        return []
    config = {
        "kv_connector": "HaloConnector",
        "kv_connector_module_path": "halo_kv.connector",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {**store, "counters": os.path.join(scratch, "kv-counters")},
    }
    return ["--kv-transfer-config", json.dumps(config)]


def _serve(sock: socket.socket, vllm_args: list[str], *, fork: bool) -> None:
    try:
        entry = _import("vllm.entrypoints.launchers.api_server.entry")
        cli = _import("vllm.entrypoints.launchers.cli_args")
    except ModuleNotFoundError as error:
        if error.name == "vllm":
            raise
        entry = _import("vllm.entrypoints.openai.api_server")  # where vLLM before 0.30 has them
        cli = _import("vllm.entrypoints.openai.cli_args")
    if fork:
        _fork_engine_core()
    host, port = sock.getsockname()[:2]
    parser = cli.make_arg_parser(_import("vllm.utils.argparse_utils").FlexibleArgumentParser(prog="vllm"))
    args = parser.parse_args([*vllm_args, "--host", host, "--port", str(port)])
    cli.validate_parsed_serve_args(args)
    _raise_file_limit()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # until the server installs its own
    gc.collect()
    gc.freeze()
    gc.enable()
    _import("uvloop").run(entry.run_server_worker(f"http://{host}:{port}", sock, args))


def _fork_engine_core() -> None:
    """Fork the engine core from this process, which has imported all it needs, instead of starting over in a new one.

    vLLM forks by default, but its CPU backend insists on spawning, because its workers take their OpenMP settings from
    the environment while torch loads. `_bind` has set these before torch was imported here. OpenMP's threads do not
    survive a fork, so this process never starts any: it computes with one thread, the child with one per core.
    Where this vLLM differs, it spawns as usual, which is slower and otherwise the same.
    """
    torch = _import("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(threads))
    with contextlib.suppress(ModuleNotFoundError):
        utils = _import("vllm.v1.engine.utils")
        if hasattr(utils, "get_mp_context"):
            utils.get_mp_context = lambda: _import("multiprocessing").get_context("fork")
    # Model classes are inspected in a subprocess lest CUDA be initialised here; on a CPU that only costs an import.
    with contextlib.suppress(ModuleNotFoundError):
        registry = _import("vllm.model_executor.models.registry")
        if hasattr(registry, "_run_in_subprocess"):
            registry._run_in_subprocess = lambda inspect: inspect()
    with contextlib.suppress(ModuleNotFoundError):
        _import("vllm.v1.engine.core")
        _import("vllm.v1.worker.cpu_worker")


def _import(name: str) -> Any:
    """Imported late and untyped: where this file is checked, vLLM need not be installed."""
    return importlib.import_module(name)


def _raise_file_limit() -> None:
    """Every open request is a file descriptor."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 65536)), hard))


if __name__ == "__main__":
    main(sys.argv[1:])
