"""What is run while the disk fails: everything that promises to lose nothing."""

from pathlib import Path

from PIL import Image

from jaxcnn.disk import write_atomically
from jaxcnn.run.metrics_log import StartRecord, open_log, read_log
from tests.bulk.test_output_crashes import FIRST, predict, read, write_pictures
from tests.data.test_cache_crashes import load
from tests.faults.schedules import Target
from tests.log_lines import train_record


class Predictions:
    """`predict`, which goes on with some that are there already."""

    flips = False

    def __init__(self, ending: str) -> None:
        self._ending = ending

    def prepare(self, inputs: Path) -> None:
        self._pictures = write_pictures(inputs)

    def begin(self, folder: Path) -> None:
        predict(self._pictures, folder, self._ending, count=FIRST)

    def work(self, folder: Path) -> object:
        predict(self._pictures, folder, self._ending)
        return None

    def check(self, folder: Path) -> None:
        for path in [*folder.glob("heat/**/[!.]*.png"), *folder.glob("sorted/**/[!.]*.png")]:
            with Image.open(path) as image:
                image.load()

    def read(self, folder: Path) -> object:
        return read(folder)


class Json:
    """A record that is replaced, such as an evaluation."""

    flips = False
    _contents = ("old" * 1000, "new" * 3000)

    def prepare(self, inputs: Path) -> None:
        pass

    def begin(self, folder: Path) -> None:
        (folder / "evaluation.json").write_text(self._contents[0])

    def work(self, folder: Path) -> object:
        write_atomically(folder / "evaluation.json", self._contents[1])
        return None

    def check(self, folder: Path) -> None:
        assert (folder / "evaluation.json").read_text() in self._contents, "it is not whole"

    def read(self, folder: Path) -> object:
        # A partial file stays where a disk that fails does not let it be removed.
        return (folder / "evaluation.json").read_text()


class Log:
    """A session that goes on with `metrics.jsonl`."""

    flips = False
    _steps = 5

    def prepare(self, inputs: Path) -> None:
        pass

    def begin(self, folder: Path) -> None:
        with open_log(folder) as log:
            log.write(train_record(1))

    def work(self, folder: Path) -> object:
        with open_log(folder) as log:
            log.write(StartRecord(step=1, epoch=0.0))
            for step in range(2, self._steps + 1):
                log.write(train_record(step))
                log.sync()
        return None

    def check(self, folder: Path) -> None:
        records = read_log(folder / "metrics.jsonl").train
        assert [record.step for record in records] == list(range(1, len(records) + 1)), records

    def read(self, folder: Path) -> object:
        return [(record.step, record.loss) for record in read_log(folder / "metrics.jsonl").train]


class Cache:
    """Pictures that are decoded or copied, in place of a damaged entry; with `flips`, an entry that is read."""

    def __init__(self, store: str, *, flips: bool = False) -> None:
        self._store, self.flips = store, flips

    def prepare(self, inputs: Path) -> None:
        self._pictures = inputs
        for number in range(8):
            path = inputs / ("cat", "dog")[number % 2] / f"{number}.png"
            path.parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 8), (30 * number, 90, 250 - 20 * number)).save(path)

    def begin(self, folder: Path) -> None:
        self._load(folder)
        if not self.flips:
            (entry,) = folder.glob("*/entry.json")
            entry.write_text("{}")

    def work(self, folder: Path) -> object:
        return self._load(folder)

    def check(self, folder: Path) -> None:
        pass  # The entry is written again if it is not whole.

    def read(self, folder: Path) -> object:
        return self._load(folder), {path.name for path in folder.rglob("*") if path.suffix != ".lock"}

    def _load(self, folder: Path) -> object:
        images, labels, files = load(self._store, self._pictures, folder)
        return images.tobytes(), labels.tolist(), files


def make_target(name: str) -> Target:
    """Returns the target of a name. What needs JAX, which takes long to import, is imported where it is asked for."""
    kind, *flips = name.split("-flips")
    if kind in ("checkpoint", "export", "swap"):
        from tests.faults import jax_targets

        classes = {"checkpoint": jax_targets.Checkpoints, "swap": jax_targets.Swap}
        return jax_targets.Export() if kind == "export" else classes[kind](flips=bool(flips))
    if kind in ("decoded", "encoded"):
        return Cache(kind, flips=bool(flips))
    return {"record": Json, "log": Log}[kind]() if kind in ("record", "log") else Predictions(kind.split("-")[1])


TARGETS = (
    *("predict-csv", "predict-jsonl", "predict-parquet", "record", "log", "decoded", "encoded", "checkpoint", "export"),
    *("swap", "decoded-flips", "encoded-flips", "checkpoint-flips", "swap-flips"),
)
"""Names of the targets; those that end with `flips` get flipped bits, the others errors."""
