"""A stand-in for the `vllm` package: what `vllm_main.py` imports of it, around a tiny server with a child process.

`install(folder)` writes it as packages, so that the real program can be started on it within a second.
"""

from __future__ import annotations

from pathlib import Path

_SERVER = """
import asyncio, json, os, sys, time

BEHAVIOUR = os.environ.get("FAKE_VLLM", "")
METRICS = (
    'vllm:cache_config_info{block_size="32",num_gpu_blocks="10",enable_prefix_caching="True"} 1.0\\n'
)


async def run_server_worker(address, sock, args):
    if BEHAVIOUR == "raise":
        raise ValueError("Unknown model architecture FakeForCausalLM")
    if BEHAVIOUR == "memory":
        print("(EngineCore pid=7) ValueError: Available memory on node 0 (1/2 GiB) is less than requested")
        raise RuntimeError("Engine core initialization failed. See root cause above.")
    if BEHAVIOUR == "hang":
        await asyncio.sleep(3600)
    child = os.fork()  # the engine core
    if child == 0:
        while True:
            time.sleep(3600)
    server = await asyncio.start_server(lambda r, w: serve(r, w, child, args), sock=sock)
    await server.serve_forever()


async def serve(reader, writer, child, args):
    while True:
        try:
            head = (await reader.readuntil(b"\\r\\n\\r\\n")).decode()
        except asyncio.IncompleteReadError:
            writer.close()
            return
        length = next((int(l.split(":")[1]) for l in head.split("\\r\\n") if l.lower().startswith("content-length")), 0)
        body = json.loads(await reader.readexactly(length)) if length else {}
        path = head.split()[1]
        if path == "/v1/models":
            answer = {"data": [{"id": args[args.index("--served-model-name") + 1], "max_model_len": 77}]}
        elif path == "/metrics":
            answer = METRICS
        elif path == "/v1/chat/completions":
            if body["messages"][0]["content"] == "forever":
                await asyncio.sleep(3600)
            said = json.dumps({"child": child, "args": args, "env": dict(os.environ), "body": body})
            message = {"role": "assistant", "content": said}
            answer = {"choices": [{"index": 0, "message": message}], "usage": {"prompt_tokens": 3}}
        else:
            answer = {}
        data = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        writer.write(b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(data) + data)
        await writer.drain()
"""
_MODULES = {
    "vllm/__init__.py": "",
    "vllm/entrypoints/__init__.py": "",
    "vllm/entrypoints/launchers/__init__.py": "",
    "vllm/entrypoints/launchers/api_server/__init__.py": "",
    "vllm/entrypoints/launchers/api_server/entry.py": _SERVER,
    "vllm/entrypoints/launchers/cli_args.py": (
        "def make_arg_parser(parser): return parser\ndef validate_parsed_serve_args(args): pass\n"
    ),
    "vllm/utils/__init__.py": "",
    "vllm/utils/argparse_utils.py": (
        "class FlexibleArgumentParser:\n"
        "    def __init__(self, **kwargs): pass\n"
        "    def parse_args(self, args): return args\n"
    ),
    "torch.py": "def get_num_threads(): return 2\ndef set_num_threads(count): pass\n",
    "uvloop.py": "from asyncio import run\n",
}


def install(folder: Path) -> None:
    """Write the packages into `folder`, which then belongs on PYTHONPATH."""
    for name, text in _MODULES.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
