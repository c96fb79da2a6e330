"""The vLLM engine: vLLM's own server in a program of its own, which Halo starts, watches, and never leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import socket
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from halo_core.errors import EngineDiedError, EngineError, EngineStartError
from halo_core.pool.call import Completion, LLMCall
from halo_core.pool.endpoint import EndpointEngine
from halo_core.pool.engine import CacheEvent, Capacity, Health
from halo_core.pool.http import HttpError
from halo_core.pool.kv_events import subscribe
from halo_core.pool.sharing import OFFLOADED, ON_GPUS, SharedStore
from halo_core.pool.vllm_command import (
    Placement,
    VLLMSettings,
    cache_dir,
    check_path,
    default_placement,
    engine_command,
    engine_environment,
    engine_python,
)
from halo_core.pool.vllm_failure import start_failure
from halo_core.pool.vllm_process import EngineProcess, scratch_folder

logger = logging.getLogger(__name__)

_POLL_S = 0.1
_GRACE_S = 5.0
_TOLD = re.compile(rb',"kv_transfer_params":\{"halo":\{[^{}]*\}\}')
_LABELS = re.compile(r'(\w+)="([^"]*)"')


class VLLMEngine(EndpointEngine):
    """One vLLM engine on this machine. Bound to the event loop that first uses it.

    `start` also brings a dead engine up again. `base_url` (for other clients of the same engine) is known once `start`
    has returned, and stays the same over restarts where the port is still free.
    """

    def __init__(
        self,
        name: str,
        model: str,
        settings: VLLMSettings,
        placement: Placement | None = None,
        *,
        aliases: tuple[str, ...] = (),
        python: str | None = None,
        start_timeout_s: float = 900.0,
        request_timeout_s: float = 3600.0,
    ) -> None:
        """`model` and `aliases` are the names that the server answers to; `python` the interpreter that has vLLM."""
        # A lost connection is final here: it means that the process is gone.
        super().__init__(
            name,
            model,
            "http://127.0.0.1:9/v1",
            slots=settings.max_num_seqs,
            request_timeout_s=request_timeout_s,
            max_retries=0,
        )
        self.settings = settings
        self.placement = placement or default_placement()
        self.load_s = 0.0
        """Seconds that the last start took."""
        self._aliases = aliases
        self._python = python
        self._start_timeout_s = start_timeout_s
        self._port = 0
        self._process: EngineProcess | None = None
        self._events_address = ""
        self._events_stopped = asyncio.Event()
        self._sharing: SharedStore | None = None
        self.not_sharing = "" if self.settings.store is not None else "it is switched off"
        """Why the running engine shares no KV; empty where it does."""

    def __repr__(self) -> str:
        return f"VLLMEngine({self.name!r}, {self.model!r}, {self.settings.path!r}, {self.placement})"

    @property
    def _label(self) -> str:
        return f"engine {self.name!r} (vLLM, model {self.model!r}, {self.placement})"

    @property
    def python(self) -> str:
        """The interpreter that has vLLM."""
        return engine_python(self._python)

    @property
    def pid(self) -> int | None:
        """The process id of the engine's program, which leads its process group; None where it does not run."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def log(self) -> Path | None:
        """The log of the last start."""
        return self._process.log if self._process is not None else None

    @property
    def sharing(self) -> SharedStore | None:
        """Its end of the host's block store, while it runs with one."""
        return self._sharing

    # -- life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the program and wait until it takes calls; idempotent. Raises `EngineStartError`."""
        async with self._starting:
            if self._health.state == "ready":
                return
            if self._health.state == "closed":
                raise EngineStartError(f"{self._label} was closed; make a new engine")
            began = time.monotonic()
            self._health = Health("starting")
            try:
                check_path(self.settings.path)
                if self._process is not None:  # it may be alive still: its engine core died, or it hangs
                    await self._process.stop(0.0)
                process = self._launch()
                await self._wait_until_ready(process)
                await self._learn_limits()
                self._learn_sharing(process)
            except BaseException as error:
                await self._give_up(error)
                raise
            if self._process is process and process.returncode is None and self._health.state == "starting":
                self._health = Health("ready")
                self.load_s = time.monotonic() - began
                logger.info("%s is up after %.0f s, on %s", self._label, self.load_s, self.base_url)
                return
            failure = EngineStartError(f"{self._label} ended as soon as it was up; its log is {process.log}")
            await self._give_up(failure)
            raise failure

    async def _give_up(self, error: BaseException) -> None:
        """Leave nothing behind after a start that failed or was cancelled."""
        if self._process is not None:
            self._process.kill()
        if self._health.state != "closed":
            failed = isinstance(error, Exception)
            self._health = Health("dead", str(error)) if failed else Health("new")

    def _launch(self) -> EngineProcess:
        python = self.python
        scratch: Path | None = None
        try:
            scratch = scratch_folder()
            listen = _bound_socket(self._port)
        except OSError as error:  # no room, no descriptors
            if scratch is not None:
                shutil.rmtree(scratch, ignore_errors=True)
            raise EngineStartError(f"{self._label} cannot be started: {error}") from error
        self._events_address = f"ipc://{scratch}/kv"
        self._events_stopped = asyncio.Event()
        self._port = listen.getsockname()[1]
        stamp = time.strftime("%Y%m%d-%H%M%S")
        log = (
            cache_dir()
            / "logs"
            / f"{re.sub(r'[^A-Za-z0-9.-]+', '_', self.name)}-{stamp}-{os.getpid()}-{self._port}.log"
        )
        command = engine_command(
            self.settings,
            self.placement,
            (self.model, *self._aliases),
            python=python,
            listen_fd=listen.fileno(),
            scratch=scratch,
            events_address=self._events_address,
        )
        logger.info("%s starts; its log is %s", self._label, log)
        try:
            process = self._process = EngineProcess(
                command,
                env=engine_environment(self.settings, self.placement, python=python, scratch=scratch),
                log=log,
                listen=listen,
                scratch=scratch,
                on_exit=self._process_ended,
            )
        except OSError as error:
            shutil.rmtree(scratch, ignore_errors=True)
            raise EngineStartError(
                f"{self._label} cannot be started: {error}. Check HALO_VLLM_PYTHON (now {python}) and {log.parent}"
            ) from error
        finally:
            listen.close()
        self._client.close()
        self._connect_to(f"http://127.0.0.1:{self._port}/v1")
        return process

    async def _wait_until_ready(self, process: EngineProcess) -> None:
        deadline = time.monotonic() + self._start_timeout_s
        while time.monotonic() < deadline:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.exited.wait(), _POLL_S)
            if process.returncode is not None:
                if self._health.state == "closed":
                    raise EngineStartError(f"{self._label} was closed while it started")
                tail = process.log_tail()
                raise EngineStartError(
                    f"{self._label} did not start: {start_failure(process.log_tail(400), process.ending)}.\n"
                    f"The end of {process.log}:\n{tail}"
                )
            with contextlib.suppress(HttpError):
                if (await self._client.request("GET", "/health", read_timeout_s=5.0)).status == 200:
                    return
        raise EngineStartError(
            f"{self._label} was not up after {self._start_timeout_s:.0f} s; raise start_timeout_s if it only is slow.\n"
            f"The end of {process.log}:\n{process.log_tail()}"
        )

    async def _learn_limits(self) -> None:
        """Read the context and the size of the KV cache from the running engine."""
        try:
            self._learn(await self._client.request("GET", self._path("/models")))
            metrics = (await self._client.request("GET", "/metrics")).body.decode("utf-8", "replace")
        except HttpError as error:
            raise EngineStartError(f"{self._label} came up but does not answer: {error}") from error
        line = next((line for line in metrics.splitlines() if line.startswith("vllm:cache_config_info{")), "")
        labels = dict(_LABELS.findall(line))
        block_size = int(labels["block_size"]) if labels.get("block_size", "").isdigit() else 16
        blocks = int(labels["num_gpu_blocks"]) if labels.get("num_gpu_blocks", "").isdigit() else 0
        self._capacity = Capacity(
            self.settings.max_num_seqs, blocks * block_size, block_size, self._capacity.max_model_len
        )

    def _learn_sharing(self, process: EngineProcess) -> None:
        """Whether the program shares KV, which it has found out itself."""
        store = self.settings.store
        said = process.scratch / "sharing"
        if store is None:
            return
        if self._sharing is not None:
            self._sharing.counts_in(process.scratch / "kv-counters")
            return
        if self.placement.gpus:
            self.not_sharing = OFFLOADED if store.required else ON_GPUS
        elif not said.is_file():
            self.not_sharing = "its program did not say whether it can"
        elif problem := said.read_text("utf-8"):
            self.not_sharing = problem
            logger.warning("%s does not share KV: %s", self._label, problem)
        else:
            self._sharing = SharedStore(store, process.scratch / "kv-counters")

    def _process_ended(self, process: EngineProcess) -> None:
        """The watchdog: the process group is gone, so every call under way fails now."""
        self._events_stopped.set()
        if process is not self._process or self._health.state in ("starting", "closed"):
            return
        self._health = Health("dead", f"its process ended with {process.ending}; its log is {process.log}")
        logger.warning("%s died: %s", self._label, self._health.detail)
        self._client.close()

    def _died(self, error: EngineDiedError) -> EngineDiedError:
        process = self._process
        if self._health.state == "dead" and process is not None and process.returncode is not None:
            return EngineDiedError(f"{self._label} died: {self._health.detail}")
        return super()._died(error)

    async def restart(self) -> None:
        """Kill the program, whatever it does, and start it again with an empty cache. Raises `EngineStartError`."""
        if self._health.state != "closed":
            self._health = Health("dead", "it is being restarted")
        if self._process is not None:
            self._client.close()
            await self._process.stop(0.0)
        await self.start()
        self.counters.restarts += 1

    async def close(self) -> None:
        """Stop the program, killing it where it does not end by itself; calls under way get `EngineDiedError`."""
        await super().close()
        self._events_stopped.set()
        if self._process is not None:
            await self._process.stop(_GRACE_S)
        if self._sharing is not None:
            self._sharing.close()
            self._sharing = None

    # -- calls ---------------------------------------------------------------------------------------------------

    def _body(self, call: LLMCall) -> bytes:
        wire = call.wire()
        wire["model"] = self.model
        wire["priority"] = call.priority
        if self._sharing is not None:
            asked = {
                "save": call.share_tokens,
                "load": call.share_loads,
                "last": call.share_ends,
                "pin_s": call.share_pin_s,
            }
            wire["kv_transfer_params"] = {"halo": asked}
        return self._encode(wire)

    def _completion(self, document: Mapping[str, Any], body: bytes) -> Completion:
        completion = super()._completion(document, body)
        told = (document.get("kv_transfer_params") or {}).get("halo") if self._sharing is not None else None
        if not told:
            return completion
        usage = completion.usage
        return Completion(
            _TOLD.sub(b"", body),  # the app sees, and the journal keeps, what a plain server would have said
            replace(usage, moved_tokens=min(int(told.get("moved_tokens", 0)), usage.cached_tokens)),
            self.name,
            tuple(bytes.fromhex(block) for block in told.get("blocks", "").split()),
        )

    async def cache_events(self) -> AsyncIterator[CacheEvent]:
        """What the engine stores and removes from now on; ends with the process. The first event is `cleared`.

        vLLM tells of a step's changes when the step ends, and of a reset with the step that follows it.
        """
        if self._health.state == "ready":
            async for event in subscribe(self._events_address, self._events_stopped):
                yield event

    async def reset_cache(self) -> None:
        """Forget all cached prefixes. Raises `EngineError` while calls run."""
        if self._health.state != "ready":
            raise EngineError(f"{self._label} is {self._health.state}: only a running engine can reset its cache")
        await super().reset_cache()
        if self._sharing is not None:
            self._sharing.clear()


def _bound_socket(port: int) -> socket.socket:
    """A TCP socket bound on loopback: to `port` where that is free, else to any free one."""
    for wanted in (port, 0) if port else (0,):
        listen = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listen.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listen.bind(("127.0.0.1", wanted))
            return listen
        except OSError:
            listen.close()
            if not wanted:
                raise
    raise AssertionError("unreachable")
