"""Storage and resuming against a model that never fails: any sequence of steps, no wrong read."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stages.artifacts import GLOBAL_CLIP, INITIAL_LABELS
from stages.runtime.errors import UserError
from stages.runtime.job import Job
from stages.runtime.resume import in_blocks
from stages.runtime.types import Arrays
from stages.storage.arrays import read_store, write_store
from stages.storage.tables import class_table, read_table, write_table


class Killed(BaseException):
    """The run ends here, and nothing of it may tidy up."""


def value(fingerprint: str, row: int) -> float:
    """What a run of that fingerprint computes for a row."""
    return float(row * 10 + int(fingerprint))


class Resuming(RuleBasedStateMachine):
    """Blocks: finished ones are never computed again, and none of another run is ever used."""

    rows = 11

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.done: set[tuple[str, int, int]] = set()  # fingerprint, size, first row

    def job(self, fingerprint: str) -> Job:
        job = Job("stage", fingerprint)
        job.scratch = self.home / fingerprint
        return job

    @rule(fingerprint=st.sampled_from("12"), size=st.sampled_from([1, 3, 4]), at=st.integers(0, 6))
    def run(self, fingerprint: str, size: int, at: int) -> None:
        """Killed before its `at`-th block, if it has as many to compute."""
        computed: list[int] = []

        def compute(blocks: list[range]) -> Iterator[Arrays]:
            for number, block in enumerate(blocks):
                if number == at:
                    raise Killed
                assert (fingerprint, size, block.start) not in self.done
                computed.append(block.start)
                yield {"x": np.array([value(fingerprint, row) for row in block])}

        job = self.job(fingerprint)
        try:
            found = in_blocks(job, self.rows, size, "rows", compute)
        except Killed:
            # the last one may still have been on its way to the disk
            written = {int(f.stem) for f in job.scratch.glob(f"blocks-of-{size}/*.npz")}
            assert set(computed) <= written
        else:
            expected = [value(fingerprint, row) for row in range(self.rows)]
            assert np.concatenate(list(found.of("x"))).tolist() == expected
        self.done |= {(fingerprint, size, start) for start in computed}

    @precondition(lambda self: self.done)
    @rule(data=st.data(), how=st.sampled_from(["flip", "cut", "remove", "other"]))
    def damage(self, data: st.DataObject, how: str) -> None:
        one = data.draw(st.sampled_from(sorted(self.done)))
        fingerprint, size, start = one
        file = self.home / fingerprint / f"blocks-of-{size}/{start:09d}.npz"
        content = bytearray(file.read_bytes())
        place = data.draw(st.integers(0, len(content) - 1))
        if how == "remove":
            file.unlink()
        elif how == "other":
            np.savez(file, x=np.zeros(size + 1))
        elif how == "cut":
            file.write_bytes(content[:place])
        else:
            content[place] ^= 1 << data.draw(st.integers(0, 7))
            file.write_bytes(content)
            try:  # a bit that nobody reads, as of a time, is no damage
                with np.load(file) as whole:
                    values = [value(fingerprint, row) for row in range(start, self.rows)][:size]
                    if whole.files == ["x"] and whole["x"].tolist() == values:
                        return
            except Exception:  # whatever numpy makes of a broken file
                pass
        self.done.remove(one)

    def teardown(self) -> None:
        shutil.rmtree(self.home)


class Storing(RuleBasedStateMachine):
    """Artifacts: what is read is what was written last, of the index that was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.written: dict[str, tuple[str, np.ndarray]] = {}
        self.damaged: set[str] = set()

    @rule(
        kind=st.sampled_from(["table", "store"]),
        index=st.sampled_from("ab"),
        rows=st.integers(1, 5),
        seed=st.integers(0, 9),
    )
    def write(self, kind: str, index: str, rows: int, seed: int) -> None:
        values = np.random.default_rng(seed).random((rows, 2), np.float32)
        artifact = self.artifact(kind)
        shutil.rmtree(artifact.path, ignore_errors=True)
        if kind == "table":
            ids = pd.DataFrame({"image_id": [f"{n}" for n in range(rows)]})
            write_table(artifact, class_table(ids, values, "xy"), {"index": index}, Path("/"))
        else:
            names = {"image": [f"{n}" for n in range(rows)]}
            write_store(artifact, {"embedding": values}, {"index": index}, Path("/"), names)
        self.written[kind] = (index, values)
        self.damaged.discard(kind)

    def artifact(self, kind: str):
        from dataclasses import replace

        artifact = INITIAL_LABELS if kind == "table" else GLOBAL_CLIP
        return replace(artifact, path=self.home / artifact.path.name)

    @precondition(lambda self: self.written)
    @rule(data=st.data(), how=st.sampled_from(["flip", "cut", "remove", "stray"]))
    def damage(self, data: st.DataObject, how: str) -> None:
        kind = data.draw(st.sampled_from(sorted(self.written)))
        path = self.artifact(kind).path
        files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
        if not files:
            return
        file = data.draw(st.sampled_from(files))
        content = bytearray(file.read_bytes())
        if how == "stray":
            file.with_name(f"{file.name}.partial").write_bytes(content[:3])
            return
        if how == "remove":
            file.unlink()
        elif how == "cut":
            file.write_bytes(content[: data.draw(st.integers(0, max(0, len(content) - 1)))])
        elif content:
            content[data.draw(st.integers(0, len(content) - 1))] ^= 0x10
            file.write_bytes(content)
        self.damaged.add(kind)

    @invariant()
    def what_is_read_was_written(self) -> None:
        for kind, (index, values) in self.written.items():
            artifact = self.artifact(kind)
            for asked in "ab":
                try:
                    read = self.read(kind, artifact, asked)
                except UserError:
                    read = None
                if read is None:
                    assert asked != index or kind in self.damaged
                    continue
                assert asked == index
                assert np.array_equal(read, values)

    @staticmethod
    def read(kind: str, artifact, index: str) -> np.ndarray:
        if kind == "table":
            return read_table(artifact, index)[0][["x", "y"]].to_numpy()
        return read_store(artifact, index)[0]["embedding"][...]

    def teardown(self) -> None:
        shutil.rmtree(self.home)


TestResuming = Resuming.TestCase
TestStoring = Storing.TestCase
TestResuming.settings = settings(max_examples=60, stateful_step_count=12, deadline=None)
TestStoring.settings = settings(max_examples=30, stateful_step_count=8, deadline=None)
