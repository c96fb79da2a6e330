"""`halo exec`: unmodified scripts, merged, with more rows in flight than asyncio's own threads allow."""

from __future__ import annotations

import re
import subprocess
import sys

from tests.cli.conftest import Halo, Project
from tests.cli.gated_stub import GatedStub, last_message

# No main guard, synchronous nodes, three servers, the loop's default executor: what people really write.
SCRIPT = '''"""A script of somebody who has never heard of Halo."""
import asyncio
import json
import sys
from typing import TypedDict

from langchain_openai import ChatOpenAI
from langgraph.graph import END, START, StateGraph

MODELS = [
    ChatOpenAI(model="small", temperature=0, max_tokens=8, api_key="x", base_url=url + "/v1") for url in sys.argv[1:4]
]


class State(TypedDict, total=False):
    question: str
    outline: str
    draft: str
    answer: str


def outline(state: State) -> State:
    return {"outline": MODELS[0].invoke("Outline " + state["question"]).content}


def draft(state: State) -> State:
    return {"draft": MODELS[1].invoke("Draft " + state["outline"]).content}


def answer(state: State) -> State:
    return {"answer": MODELS[2].invoke("Answer " + state["draft"]).content}


builder = StateGraph(State)
for node in (outline, draft, answer):
    builder.add_node(node.__name__ + "_node", node)
builder.add_edge(START, "outline_node")
builder.add_edge("outline_node", "draft_node")
builder.add_edge("draft_node", "answer_node")
builder.add_edge("answer_node", END)
app = builder.compile()


async def everything():
    loop = asyncio.get_running_loop()
    rows = [{"question": f"question {i % 48}"} for i in range(64)]
    return await asyncio.gather(*(loop.run_in_executor(None, app.invoke, row) for row in rows))


for result in asyncio.run(everything()):
    print(json.dumps(result))
print(__name__, __file__, sys.argv[0], sys.argv[4:], sys.path[0])
sys.exit(3)
'''


def test_an_unmodified_script_is_merged_and_uncapped(project: Project) -> None:
    (project.path / "halo.toml").unlink()
    project.write("script.py", SCRIPT)
    first, second, third = GatedStub(lambda text: text.startswith("Outline"), enough=40), GatedStub(), GatedStub()
    with first.threaded(), second.threaded(), third.threaded():
        arguments = ["script.py", first.url, second.url, third.url, "--resume", "-m", "--", "x"]
        # The gate opens only when 40 different first calls are there: 32 threads would wait for ever.
        result = project.run("exec", *arguments)
        assert result.code == 3, result.err
        assert [stub.chats for stub in (first, second, third)] == [48, 48, 48]
        assert first.max_in_flight >= 40
        plain = subprocess.run(
            [sys.executable, *arguments], cwd=project.path, capture_output=True, text=True, timeout=240
        )
    assert plain.returncode == 3, plain.stderr
    assert result.out == plain.stdout
    assert f"__main__ {project.path}/script.py script.py ['--resume', '-m', '--', 'x']" in result.out
    assert "halo: 192 calls seen in 64 runs: 144 executed, 48 shared, 0 left alone" in result.err


FAILING = """
import sys
from langchain_openai import ChatOpenAI
from openai import OpenAI
from langgraph.graph import START, StateGraph

llm = ChatOpenAI(model="small", temperature=0, api_key="x", base_url=sys.argv[1] + "/v1")
sdk = OpenAI(api_key="x", base_url=sys.argv[1] + "/v1")


def ask(state):
    text = llm.invoke("first " + state["q"]).content
    if state["q"] == "fail":
        raise ValueError("on purpose")
    message = {"role": "user", "content": "second " + text}
    sdk.chat.completions.create(model="small", messages=[message], temperature=0)
    llm.bind(audio={"voice": "x"}).invoke("third")
    return {"q": text}


builder = StateGraph(dict)
builder.add_node("ask", ask)
builder.add_edge(START, "ask")
app = builder.compile()
app.invoke({"q": "one"})
app.batch([{"q": "one"}, {"q": "two"}])
app.invoke({"q": "fail"})
"""


def test_an_exception_looks_as_in_python_and_the_journal_goes_on(project: Project) -> None:
    (project.path / "halo.toml").unlink()
    package = project.path / "pack"
    package.mkdir()
    project.write("pack/__init__.py", "")
    project.write("pack/__main__.py", FAILING)
    with GatedStub().threaded() as stub:
        failed = project.run("exec", "--journal", "calls.db", "-m", "pack", stub.url)
        assert failed.code == 1
        trace = failed.err[failed.err.index("Traceback") :].splitlines()
        assert re.match(r'  File ".*/pack/__main__\.py", line \d+, in <module>', trace[1]), failed.err
        assert "ValueError: on purpose" in failed.err
        assert "halo exec" not in failed.err.partition("Traceback")[2].partition("ValueError")[0]
        assert "--resume --journal calls.db -m pack" in failed.err
        assert "left alone: the request uses audio output (audio=)" in failed.err
        asked = [last_message(body) for body in stub.bodies]
        assert sorted(text.split()[0] for text in asked if "third" not in text) == ["first"] * 3 + ["second"] * 2

        again = project.run("exec", "--journal", "calls.db", "--resume", "-m", "pack", stub.url)
        repeated = [last_message(body) for body in stub.bodies[len(asked) :]]
        assert again.code == 1
        assert repeated == ["third", "third", "third"]  # what was left alone is not ours to remember


def test_without_the_sdk_hook(project: Project) -> None:
    (project.path / "halo.toml").unlink()
    project.write("script.py", FAILING)
    with GatedStub().threaded() as stub:
        result = project.run("exec", "--no-openai-sdk", "script.py", stub.url)
    assert result.code == 1
    # The three calls that the script makes with the SDK itself are not even seen.
    assert "halo: 7 calls seen in 4 runs: 4 executed, 0 shared, 3 left alone" in result.err
    assert sum(last_message(body).startswith("second") for body in stub.bodies) == 3


def test_what_cannot_be_run(project: Project, halo: Halo) -> None:
    project.write("wrong.py", "x = (\n")
    for arguments, complaint in (
        (["none.py"], "cannot open the script none.py: No such file"),
        (["-m", "none"], "there is no module 'none'"),
        (["--resume", "wrong.py"], "--resume needs the journal"),
        (["--models", "a=b", "app.py"], "no engine serves 'b'"),
    ):
        result = halo("exec", *arguments)
        assert result.code == 2 and complaint in result.err and len(result.err.splitlines()) == 1
    wrong = halo("exec", "wrong.py")
    assert wrong.code == 1 and wrong.err.endswith("SyntaxError: '(' was never closed\n")
    assert "Traceback" not in wrong.err
