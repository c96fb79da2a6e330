"""The machine: which cores, memory and GPUs this process may use, and which number format its cores are fast in."""

from __future__ import annotations

import functools
import logging
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)

_SYSFS_CPU = Path("/sys/devices/system/cpu")
_SYSFS_NODE = Path("/sys/devices/system/node")


@dataclass(slots=True, frozen=True)
class GPU:
    """One accelerator that nvidia-smi lists and CUDA_VISIBLE_DEVICES allows."""

    index: int
    """As nvidia-smi counts; what CUDA_VISIBLE_DEVICES takes."""
    name: str
    memory_mib: int


@dataclass(slots=True, frozen=True)
class Machine:
    """What engines can be placed on."""

    cores: tuple[tuple[int, ...], ...]
    """Ids of one logical CPU per physical core that this process may use, one tuple per NUMA node, none empty."""
    gpus: tuple[GPU, ...]
    memory_gib: float
    """Memory that this process may use in all (the smaller of installed and the container's limit), GiB."""
    cpu: str
    """Model name of the processor."""
    bfloat16: bool
    """Whether the cores multiply bfloat16; those that emulate it are many times slower than in float32."""

    @property
    def core_count(self) -> int:
        """Usable physical cores."""
        return sum(len(node) for node in self.cores)

    def describe(self) -> str:
        """One line: hardware that decides speed; equal texts mean comparable timings."""
        gpus = ", ".join(f"{gpu.name} {gpu.memory_mib} MiB" for gpu in self.gpus)
        nodes = "+".join(str(len(node)) for node in self.cores)
        formats = "bfloat16" if self.bfloat16 else "no bfloat16"
        return f"{self.cpu}, {nodes} cores, {formats}" + (f", {gpus}" if gpus else "")


@functools.lru_cache(maxsize=1)
def machine() -> Machine:
    """Look at the machine once; later calls return the same object."""
    name, flags = _cpu()
    return Machine(_cores(), _gpus(), _memory_gib(), name, _has_bfloat16(flags))


def _allowed() -> set[int]:
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def _cores() -> tuple[tuple[int, ...], ...]:
    """One logical CPU per physical core: hyperthreads of one core share its arithmetic units."""
    nodes: dict[int, dict[tuple[str, str], int]] = {}
    for cpu in sorted(_allowed()):
        topology = _SYSFS_CPU / f"cpu{cpu}" / "topology"
        core = (_read(topology / "physical_package_id"), _read(topology / "core_id") or str(cpu))
        nodes.setdefault(_node_of(cpu), {}).setdefault(core, cpu)
    return tuple(tuple(sorted(cores.values())) for _, cores in sorted(nodes.items()))


def _node_of(cpu: int) -> int:
    for link in (_SYSFS_CPU / f"cpu{cpu}").glob("node[0-9]*"):
        return int(link.name.removeprefix("node"))
    return 0


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _cpu() -> tuple[str, set[str]]:
    """Model name and feature flags of the first processor."""
    fields: dict[str, str] = {}
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        key, _, value = line.partition(":")
        fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine()
    return f"{name} ({platform.machine()})", set((fields.get("flags") or fields.get("Features") or "").split())


def _has_bfloat16(flags: set[str]) -> bool:
    return bool(flags & {"avx512_bf16", "amx_bf16", "bf16"})


def _memory_gib() -> float:
    total = int(psutil.virtual_memory().total)
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        text = _read(Path(limit))
        if text.isdigit():
            total = min(total, int(text))
    return total / 2**30


def _gpus() -> tuple[GPU, ...]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ()
    query = [tool, "--query-gpu=index,uuid,name,memory.total", "--format=csv,noheader,nounits"]
    try:
        out = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError) as error:
        logger.warning("nvidia-smi failed, so no GPU is used: %s", error)
        return ()
    return parse_gpus(out, os.environ.get("CUDA_VISIBLE_DEVICES"))


def parse_gpus(listing: str, visible: str | None) -> tuple[GPU, ...]:
    """Read nvidia-smi's `index, uuid, name, MiB` lines; keep what CUDA_VISIBLE_DEVICES names, in its order."""
    found: dict[str, GPU] = {}
    for line in listing.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) == 4 and fields[0].isdigit():
            gpu = GPU(int(fields[0]), fields[2], int(fields[3]) if fields[3].isdigit() else 0)
            found[fields[0]] = found[fields[1]] = gpu
    if visible is None:
        return tuple(dict.fromkeys(found.values()))
    named = [name.strip() for name in visible.split(",")]
    return tuple(found[name] for name in named if name in found)
