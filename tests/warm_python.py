"""A `python`, a `dvc` and a `ccd` that start at once: for tests that run many stages.

A stage spends seconds on importing torch and open_clip before it works for milliseconds. Here one
server process imports the libraries, none of the project's own modules, and for every request forks
a child that runs `python -m …`, DVC or `ccd`, as asked: with the caller's directory, environment,
process group and file descriptors. What runs is the real stage and the real command; only the
imports are warm.

    with serving(folder) as environment:   # PATH has those three, which ask the server
        subprocess.run(["dvc", "repro"], env=environment)
"""

from __future__ import annotations

import array
import gc
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LIBRARIES = (
    "open_clip", "torchvision.transforms.v2", "sklearn.metrics", "pandas", "pyarrow.parquet",
    "zarr", "scipy.special", "pydantic.main", "pydantic.plugin._loader", "ruamel.yaml",
    "rich.progress", "safetensors.torch",
    "altair", "vl_convert", "jinja2", "PIL.Image",
    "dvc.cli.parser", "dvc.repo", "dvc.repo.reproduce", "dvc.repo.status", "dvc.repo.artifacts",
    "dvc.stage.cache", "dvc.cachemgr", "dvc.data_cloud", "dvc.lock", "dvc_data.index",
    "dvc_data.hashfile.db.local", "scmrepo.git", "networkx",
)  # fmt: skip

SHIM = """#!{python} -ISs
import array, json, os, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({address!r})
group = os.getpgrp() if os.getsid(0) == {session} else 0
request = json.dumps([{words} + sys.argv[1:], os.getcwd(), group, dict(os.environ)]).encode()
link.sendmsg([len(request).to_bytes(4, "big")],
             [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
link.sendall(request)
code = link.recv(1)
sys.exit(code[0] if code else 1)
"""


@contextmanager
def serving(folder: Path) -> Iterator[dict[str, str]]:
    """Yield an environment in which `python` is the warm one."""
    address = str(folder / "python.socket")
    shims = folder / "bin"
    shims.mkdir(parents=True)
    ccd = str(Path(sys.executable).with_name("ccd"))
    for name, words in {"python": [], "dvc": ["-m", "dvc"], "ccd": [ccd]}.items():
        of_all = {"python": sys.executable, "address": address, "session": os.getsid(0)}
        text = SHIM.format(words=words, **of_all)
        (shims / name).write_text(text)
        (shims / name).chmod(0o755)
    server = subprocess.Popen([sys.executable, __file__, address], process_group=0)
    try:
        while not Path(address).exists():
            assert server.poll() is None
            time.sleep(0.05)
        path = f"{shims}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        yield os.environ | {"PATH": path, "OMP_NUM_THREADS": "1"}
    finally:
        server.kill()
        server.wait()


def _serve(address: str) -> None:
    """Answer requests, several at a time: DVC's stages ask while it waits for them. For ever."""
    os.environ["OMP_NUM_THREADS"] = "1"  # no thread pool may exist when the children fork
    sys.path.remove(str(Path(__file__).parent))  # the way into the project, if any
    for library in LIBRARIES:
        __import__(library)
    import torch

    torch.set_num_threads(1)
    gc.freeze()  # or a child's first collection copies every page of what was imported
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children that answered are no concern of ours
    while True:
        link, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _wait_for_answer(link)
        link.close()


def _wait_for_answer(link: socket.socket) -> None:
    """Run one request in a child, and say how it ended."""
    child = os.fork()
    if child == 0:
        _answer(link)
    status = os.waitpid(child, 0)[1]
    with suppress(OSError):
        link.sendall(bytes([os.waitstatus_to_exitcode(status) & 0xFF]))
    os._exit(0)


def _answer(link: socket.socket) -> None:
    """Run one request in this forked child, and end it."""
    size, ancillary, _, _ = link.recvmsg(4, socket.CMSG_LEN(12))
    descriptors = array.array("i")
    descriptors.frombytes(ancillary[0][2][:12])
    request = b""
    while len(request) < int.from_bytes(size, "big"):
        request += link.recv(1 << 16)
    arguments, directory, group, environment = json.loads(request)
    os.setpgid(0, group)  # what is sent to the caller's group reaches the child
    for target, descriptor in enumerate(descriptors):
        os.dup2(descriptor, target)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    first, *rest = arguments
    others = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = filter(None, others)
    code = 0
    try:
        if first == "-m":
            sys.path.insert(0, directory)
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        else:
            sys.argv = arguments
            runpy.run_path(first, run_name="__main__")
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        if isinstance(stop.code, str):
            print(stop.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _serve(sys.argv[1])
