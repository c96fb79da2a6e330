"""The virtual environments and the test folders under `.conformance/`, built once per lock file."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from integrations.conformance.suites import Suite

CHECKOUT = Path(__file__).resolve().parents[2]
ROOT = CHECKOUT / ".conformance"
_STAMP = "built-from"


class SetupError(Exception):
    """An environment or a test folder could not be made; the message ends with the tool's own words."""


@contextmanager
def exclusive() -> Iterator[None]:
    """Hold `.conformance/` for this process; a second process waits, so that two runs do not share result files."""
    ROOT.mkdir(exist_ok=True)
    with (ROOT / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for the other conformance run in {ROOT}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def key(suite: Suite) -> str:
    """Changes whenever a package, the tests or the interpreter change; names cached results."""
    content = suite.lock.read_bytes() + sys.version.encode()
    return hashlib.sha256(content).hexdigest()[:16]


def python_of(suite: Suite) -> Path:
    """The interpreter of the suite's environment, built or finished if it must be. Raises `SetupError`.

    Halo itself is the checkout on the path: nothing is built, and the run always sees the files as they are now.
    """
    folder = ROOT / "envs" / suite.environment
    python = folder / "bin" / "python"
    stamp = folder / _STAMP
    if stamp.is_file() and stamp.read_text("utf-8") == key(suite) and python.exists():
        return python
    if stamp.is_file():
        shutil.rmtree(folder)  # Another lock built it; what that lock had and this one lacks must not stay.
    print(f"building the {suite.environment} environment from {suite.lock.name} (about a minute)", flush=True)
    uv = shutil.which("uv")
    if not (uv and _install_with_uv(uv, folder, suite.lock)):
        _install_with_pip(folder, suite.lock)
    site_packages = _output(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    (Path(site_packages) / "halo-checkout.pth").write_text(f"{CHECKOUT}\n", "utf-8")
    stamp.write_text(key(suite), "utf-8")
    return python


def tests_of(suite: Suite) -> Path:
    """The folder with the suite's `tests/` and `pyproject.toml`. Raises `SetupError`.

    Only these leave the sdist: beside its sources, the tests would import them instead of the installed wheel.
    """
    name = f"{suite.distribution.replace('-', '_')}-{suite.version}"
    folder = ROOT / "tests" / name
    if folder.is_dir():
        return folder
    sdists = ROOT / "sdists"
    archive = sdists / f"{name}.tar.gz"
    if not archive.is_file():
        print(f"downloading the tests of {suite.distribution} {suite.version}", flush=True)
        command = [str(python_of(suite)), "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", ":all:", "--no-build-isolation", "-d", str(sdists)]
        _call([*command, f"{suite.distribution}=={suite.version}"])
    if not archive.is_file():
        raise SetupError(f"pip downloaded no {archive.name} into {sdists}; has the project renamed its sdists?")
    unpacked = ROOT / "tests" / f".{name}"
    shutil.rmtree(unpacked, ignore_errors=True)
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if m.name.startswith((f"{name}/tests/", f"{name}/pyproject.toml"))]
        tar.extractall(unpacked, members, filter="data")
    (unpacked / name).rename(folder)  # Last and atomic, so that an interrupted unpacking is never taken for whole.
    unpacked.rmdir()
    return folder


def _install_with_uv(uv: str, folder: Path, lock: Path) -> bool:
    """Whether uv could do it; it reads other settings than pip, so a failure only means that pip must try."""
    commands = (
        [uv, "venv", "-q", "--seed", "--allow-existing", "--python", sys.executable, str(folder)],
        [uv, "pip", "install", "-q", "--python", str(folder / "bin" / "python"), "-r", str(lock)],
    )
    try:
        for command in commands:
            _call(command)
    except SetupError:
        return False
    return True


def _install_with_pip(folder: Path, lock: Path) -> None:
    python = str(folder / "bin" / "python")
    if not (folder / "bin" / "pip").exists():
        _call([sys.executable, "-m", "venv", str(folder)])
    _call([python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-input", "-r", str(lock)])


def _output(python: Path, *arguments: str) -> str:
    return subprocess.run([str(python), *arguments], check=True, capture_output=True, text=True).stdout.strip()


def _call(command: Sequence[str], timeout_s: float = 1200.0) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=environment)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SetupError(f"{' '.join(command)}: {error}") from error
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines()[-15:]
        raise SetupError(f"{' '.join(command)} ended with {done.returncode}:\n" + "\n".join(words))
