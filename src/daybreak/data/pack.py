"""Any source into one pack: each image checked, shrunk where that is asked, in parallel, going on where it stopped.

N images.
"""

import contextlib
import fcntl
import hashlib
import io
import json
import os
import tempfile
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa

from ..errors import Failed, Refused
from .decode import Unreadable
from .encode import PackSettings, encode, versions
from .sources import Labels, Source, printable
from .store import (
    Progress,
    batch,
    checksum,
    columns_of,
    features,
    label_names,
    part_name,
    rename,
    schema,
    seal,
    shard_name,
    whole,
    write_json,
)
from .survey import fingerprint, look, look_type, refuse_bad, summarise, write_bad
from .threads import default_threads, quiet_opencv

BATCH_IMAGES, BATCH_BYTES = 1000, 32 << 20  # an Arrow batch is written when it has either
LARGEST = 2_000_000_000  # bytes of an image: a batch counts its bytes in 31 bits
CHUNK = 4  # images a task: fewer cost time in the pool, more of large ones fill the memory
PROBED = 256  # images whose bytes tell one data set from another before anything is packed
BACKGROUND = 255  # grey level under transparent pixels in the statistics; the pack keeps transparency


@dataclass
class Packed:
    """What a pack holds."""

    images: int
    left_out: int  # unreadable, named in bad.csv
    shards: int
    bytes: int
    sentence: str


def write_pack(
    source: Source,
    out: Path,
    settings: PackSettings,
    *,
    max_bad: float = 0.05,
    workers: int | None = None,
    progress: Progress = lambda done, total: None,
) -> Packed:
    """Pack a source into the folder ``out``, or go on with the pack that was begun there.

    Args:
        max_bad: largest share of unreadable images, in [0, 1].
        workers: threads; None takes one for each processor.  No number of them changes a byte.
        progress: is told how many of the source's images are packed, and of how many.

    A pack that was stopped at any moment, and goes on, ends with the bytes of one that was not.

    Raises Refused for a folder that holds something else (a pack of other data, settings or codec versions
    included), that another process packs into, or too many unreadable images; Failed if ``out`` can't be written.
    """
    if workers is not None and workers < 1:
        raise Refused(f"--workers {workers}; expected 1 or more.")
    quiet_opencv()
    source = _plain(source)
    told = {"data": identity(source), "images": len(source), "label": source.label, **asdict(settings)} | versions()
    try:
        out.mkdir(parents=True, exist_ok=True)
        with _alone(out):
            _begin(out, told)
            packing = _Packing(source, out, settings, max_bad)
            packing.write_all(workers or default_threads(), progress)
            return packing.finish(told)
    except OSError as error:
        raise Failed(
            f"{out}: could not be written ({error.strerror or error}); the shards that are whole stay, and "
            "the same command goes on."
        ) from error


def identity(source: Source) -> str:
    """Return 16 hexadecimal digits that tell a source from others without reading all of it.

    They change with any key, label, group or split, the order of images, and the bytes of any of 256 images
    spread over it.
    """
    hashed = hashlib.sha256()
    for texts in (source.keys, source.groups or [], source.splits or []):
        for text in texts:
            hashed.update(text.encode() + b"\0")
        hashed.update(b"\n")
    for name, held in source.labels.items():
        hashed.update(repr((name, held.kind, held.classes)).encode())
        hashed.update(np.ascontiguousarray(held.values).data)
    for i in np.unique(np.linspace(0, len(source) - 1, PROBED).astype(np.int64)).tolist():
        try:
            hashed.update(hashlib.sha256(source.read(i).data).digest())
        except Unreadable:
            hashed.update(b"unreadable")
    return hashed.hexdigest()[:16]


class _Packing:
    """The shards of one pack: which are done, how the others are made, what all of them amount to."""

    def __init__(self, source: Source, out: Path, settings: PackSettings, max_bad: float):
        self.source, self.out, self.settings, self.max_bad = source, out, settings, max_bad
        self.columns, self.names = columns_of(source), label_names(source)
        self.label = self.names[source.label] if source.label else None
        self.schema = schema(self.columns, self.label)
        n = len(source)
        self.bounds = [(start, min(start + settings.shard, n)) for start in range(0, n, settings.shard)]
        self.num_bad = 0

    def path(self, number: int) -> Path:
        return self.out / shard_name(number, len(self.bounds))

    def facts(self, number: int) -> Path:
        return self.out / "facts" / f"{number:05d}.npz"

    def is_done(self, number: int) -> bool:
        """Whether the shard has its name and is as long as the facts beside it say."""
        try:
            with np.load(self.facts(number)) as facts:
                return self.path(number).stat().st_size == facts["bytes"]
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            return False

    def write_all(self, workers: int, progress: Progress) -> None:
        """Write the shards that are not done, in their order."""
        to_do = [number for number in range(len(self.bounds)) if not self.is_done(number)]
        for key, reason in self.bad(sorted({*range(len(self.bounds))} - {*to_do})):
            self.count_bad(key, reason)
        left = sum(stop - start for start, stop in (self.bounds[number] for number in to_do))
        with ThreadPoolExecutor(workers, "pack") as pool:
            results = self.results(pool, 2 * workers, to_do, len(self.source) - left, progress)
            for number in to_do:
                start, stop = self.bounds[number]
                self.write(number, islice(results, stop - start))

    def results(self, pool: Executor, ahead: int, numbers: list[int], done: int, progress: Progress) -> Iterator[tuple]:
        """Yield (position, bytes, look) or (position, None, reason) of the images of some shards, in their order."""
        chunks = (
            range(at, min(at + CHUNK, stop))
            for start, stop in (self.bounds[number] for number in numbers)
            for at in range(start, stop, CHUNK)
        )
        progress(done, len(self.source))
        for made in _in_order(pool, lambda chunk: [self.one(i) for i in chunk], chunks, ahead):
            yield from made
            done += len(made)
            progress(done, len(self.source))

    def one(self, i: int) -> tuple[int, np.ndarray | None, Any]:
        """Pack one image in memory, and look at what is packed: the statistics are of that."""
        try:
            data = encode(self.source.read(i), self.settings)
            if len(data) > LARGEST:
                raise Unreadable("the file is larger than 2 GB, the most that a pack can hold")
            row = np.zeros(1, look_type())
            look(row[0], data, background=BACKGROUND)
            return i, data, row
        except Unreadable as reason:
            return i, None, str(reason)

    def write(self, number: int, results: Iterable[tuple]) -> None:
        """Write a shard and the facts of its images.

        The facts get their name first: a shard with its name then always has them.
        """
        path, looks = self.path(number), [np.zeros(0, look_type())]
        rows: list[int] = []
        bad: dict[int, str] = {}
        contents: list[np.ndarray] = []
        size = 0
        with pa.OSFile(str(part_name(path)), "wb") as file, pa.ipc.new_stream(file, self.schema) as writer:

            def flush() -> None:
                if contents:
                    last = slice(-len(contents), None)
                    sizes = np.concatenate(looks[last])["size"]
                    writer.write_batch(batch(self.schema, self.columns, np.array(rows[last]), contents, sizes))
                    contents.clear()

            for i, data, seen in results:
                if data is None:
                    bad[i] = seen
                    self.count_bad(self.source.keys[i], seen)
                    continue
                rows.append(i)
                looks.append(seen)
                contents.append(data)
                size += len(data)
                if len(contents) >= BATCH_IMAGES or size >= BATCH_BYTES:
                    flush()
                    size = 0
            flush()
        with open(part_name(path), "rb") as written:
            os.fsync(written.fileno())
        with whole(self.facts(number)) as file:
            np.savez(
                file,
                looks=np.concatenate(looks),
                rows=np.array(rows, np.int64),
                bad=np.array(list(bad), np.int64),
                reasons=np.array(list(bad.values()), np.str_),
                bytes=np.int64(part_name(path).stat().st_size),
                sha256=np.str_(checksum(part_name(path))),
            )
        rename(path)

    def count_bad(self, key: str, reason: str) -> None:
        """Stop as soon as too many images are unreadable, not after hours."""
        self.num_bad += 1
        refuse_bad(self.source, self.num_bad, self.max_bad, key, reason)

    def bad(self, numbers: Iterable[int]) -> Iterator[tuple[str, str]]:
        """Yield key and reason of what was left out of some shards."""
        for number in numbers:
            with np.load(self.facts(number)) as facts:
                yield from ((self.source.keys[i], str(said)) for i, said in zip(facts["bad"], facts["reasons"], strict=True))

    def gather(self, file: IO[bytes], rows: np.ndarray) -> list[dict[str, Any]]:
        """Write the looks of all that is packed, fill their positions (N,) in the source; return what the shards are."""
        count = 0
        shards: list[dict[str, Any]] = []
        for number in range(len(self.bounds)):
            with np.load(self.facts(number)) as facts:
                part = slice(count, count + len(facts["rows"]))
                rows[part], count = facts["rows"], part.stop
                file.write(facts["looks"].tobytes())
                known = {"bytes": facts["bytes"].item(), "sha256": str(facts["sha256"])}
                shards.append({"file": self.path(number).name, "images": part.stop - part.start} | known)
        return shards

    def finish(self, told: dict[str, Any]) -> Packed:
        """Write what is known of all shards together; ``state.json`` last."""
        n = len(self.source)
        rows = np.zeros(n, np.int64)
        with tempfile.TemporaryFile(dir=self.out) as file:
            shards = self.gather(file, rows)
            file.flush()
            looks = np.memmap(file, look_type(), "r")  # what is mapped is no burden: the system may drop it
        count = len(looks)
        rows, is_all = rows[:count], count == n
        keys = self.source.keys if is_all else [self.source.keys[i] for i in rows]
        labels = {self.names[name]: held if is_all else held.take(rows) for name, held in self.source.labels.items()}
        found = summarise(replace(self.source, keys=keys, labels=labels, label=self.label), looks)
        contents = np.ascontiguousarray(looks["digest"])
        prints = {name: fingerprint(keys, contents, held) for name, held in labels.items() if name != self.label}
        prints = {"": fingerprint(keys, contents, None)} | prints | {found.label or "": found.fingerprint}
        survey = found.told() | {
            "left_out": n - count,
            "background": BACKGROUND,
            "alpha": bool(looks["alpha"].any()),
            "fingerprints": prints,  # by label column, since any may be in use
            "shards": seal(shards),
        }
        del survey["path"], survey["kind"]  # of the source; a pack is the same wherever it was made
        with whole(self.out / "bad.csv") as file:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            write_bad(text, self.bad(range(len(self.bounds))))
            text.detach()
        write_json(self.out / "survey.json", survey)
        write_json(self.out / "dataset_info.json", {"features": features(self.columns)})
        write_json(self.out / "pack.json", {"settings": told, "images": count, "left_out": n - count, "shards": shards})
        state = {"_data_files": [{"filename": shard["file"]} for shard in shards], "_fingerprint": found.fingerprint}
        no_format: dict[str, Any] = {"_format_columns": None, "_format_kwargs": {}, "_format_type": None,
                                     "_output_all_columns": False}
        write_json(self.out / "state.json", state | no_format | {"_split": None})
        return Packed(count, n - count, len(shards), sum(shard["bytes"] for shard in shards), found.sentence())


def _in_order(pool: Executor, work: Callable, tasks: Iterable, ahead: int) -> Iterator[Any]:
    """Yield ``work(task)`` in the order of the tasks, of which at most ``ahead`` are begun before they are needed."""
    waiting: deque[Future] = deque()
    for task in tasks:
        waiting.append(pool.submit(work, task))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _begin(out: Path, told: dict[str, Any]) -> None:
    """See that the folder is empty or holds this very pack, begun; sweep what a stopped process left."""
    names = [path.name for path in out.iterdir() if not path.name.endswith(".part")]
    if names and "pack.json" not in names:
        raise Refused(f"{out}: holds other files, such as {min(names)}; choose an empty folder.")
    if names:
        held = json.loads((out / "pack.json").read_text(encoding="utf-8"))["settings"]
        differ = [name for name in {**told, **held} if held.get(name) != told.get(name)]
        if differ:
            shown = "; ".join(f"{name} {held.get(name)} there and {told.get(name)} here" for name in differ)
            raise Refused(f"{out}: holds another pack ({shown}); choose another folder, or remove it.")
    for stale in [*out.glob(".*.part"), *(out / "facts").glob(".*.part")]:
        stale.unlink()
    if not names:
        write_json(out / "pack.json", {"settings": told})
    (out / "facts").mkdir(exist_ok=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder against other processes that would pack into it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network file systems have no locks; then nothing is held
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Refused(f"{folder}: another process packs into it; wait for it, or choose another folder.") from error
        yield
    finally:
        os.close(descriptor)


def _plain(source: Source) -> Source:
    """The source with its names as valid text; bytes of file names that are none are shown, as \\xe9."""
    labels = {
        printable(name): Labels(held.kind, held.values, tuple(map(printable, held.classes)))
        for name, held in source.labels.items()
    }
    groups = None if source.groups is None else _all_shown(source.groups)
    label = source.label and printable(source.label)
    return replace(source, keys=_all_shown(source.keys), labels=labels, label=label, groups=groups)


def _all_shown(texts: list[str]) -> list[str]:
    return texts if all(printable(text) == text for text in texts) else [printable(text) for text in texts]
