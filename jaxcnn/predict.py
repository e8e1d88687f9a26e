"""Classifies pictures: `python -m jaxcnn.predict MODEL PICTURES... [--output results.csv]`. Imports no JAX."""

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from jaxcnn import cli, options
from jaxcnn.bulk.class_folders import ClassFolders
from jaxcnn.bulk.heatmaps import Heatmaps
from jaxcnn.bulk.output import ENDINGS, Output, identify_model, make_row, open_output
from jaxcnn.bulk.outside import check_outside
from jaxcnn.bulk.picture_files import PictureFile, find_pictures
from jaxcnn.bulk.stream import Outcome, classify
from jaxcnn.bulk.table import Table
from jaxcnn.errors import UserError
from jaxcnn.onnx_file import OnnxModel, open_model
from jaxcnn.paths import check_file, named_path
from jaxcnn.run.describe import counted
from jaxcnn.terminal import open_bar, stage

PROG = "python -m jaxcnn.predict"


@dataclass(frozen=True)
class Arguments:
    """The command line of predictions."""

    output: Path | None = None
    """The file to write, which ends with .csv, .jsonl or .parquet; pictures that it has already are not classified
    again. None: the predictions are printed as a table."""
    top_k: int = 3
    """How many of the most probable classes to list."""
    features: bool = False
    """Also write the features of each picture, to search or cluster by. The model must have been exported with
    --features."""
    heatmaps: Path | None = None
    """Folder for a picture of each picture that shows where the model found the evidence. The model must have been
    exported with --heatmap."""
    sort_into: Path | None = None
    """Folder to sort the pictures into: one folder for each class, with links to the pictures."""
    copy: bool = False
    """Sort copies of the pictures instead of links."""

    def __post_init__(self) -> None:
        if self.top_k < 1:
            raise UserError(f"top_k is {self.top_k}; it must be at least 1")
        if self.output is not None:
            check_file(self.output, endings=ENDINGS)
        if self.features and self.output is None:
            raise UserError("features are too many for a table; give a file with --output")
        if self.copy and self.sort_into is None:
            raise UserError("copy says how to sort pictures; say where to with --sort_into")


@dataclass
class Tally:
    """What became of the files so far.

    Attributes:
      classified: files that were classified.
      known: files that the output had already.
      errors: why files could not be read, an entry for each.
      passed_over: other files, which are no pictures.
    """

    classified: int = 0
    known: int = 0
    errors: list[str] = field(default_factory=list)
    passed_over: int = 0

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Counts the outcomes of some files."""
        for outcome in outcomes:
            self.classified += not outcome.error
            if outcome.error and outcome.file.expected:
                self.errors.append(outcome.error)
            elif outcome.error:
                self.passed_over += 1


def main(arguments: Sequence[str]) -> None:
    """Classifies the pictures that the command line names; exits with status 1 if any could not be read."""
    # Everything that may be refused is refused before the first picture is read.
    parsed, words = parse(arguments)
    model = open_model(named_path(words[0], option="the model"))
    parsed = check_fits(parsed, model)
    check_outside(words[1:], heatmaps=parsed.heatmaps, sort_into=parsed.sort_into, classes=model.preparation.names)
    files, total = find_pictures(words[1:], sys.stdin or ())  # None: it is closed.
    tally = Tally()
    try:
        predict(model, files, parsed, tally, total=total)
    except (KeyboardInterrupt, SystemExit):
        if parsed.output is not None:
            done = tally.classified + tally.known
            print(f"{parsed.output} has {done:,} pictures; run the same command again for the others", file=sys.stderr)
        raise
    finally:
        report(tally, parsed.output)
    if tally.errors:
        sys.exit(1)


def parse(arguments: Sequence[str]) -> tuple[Arguments, tuple[str, ...]]:
    """Reads a command line: the options, and the words that name the model and the pictures.

    Raises:
      UserError: an option does not exist, its value is invalid, or the model or the pictures are missing.
    """
    parsed, words = options.parse_with_words(
        Arguments(),
        arguments,
        prog=f"{PROG} MODEL PICTURES...",
        description="Classifies pictures with an .onnx file, or with the one in a workdir. PICTURES are files, folders "
        "with all folders in them, zips, patterns such as 'photos/**/*.jpg', or - for names on standard input.",
    )
    if len(words) < 2:
        missing = "pictures to classify" if words else "a workdir or an .onnx file, and pictures"
        raise UserError(f"give {missing}, such as: {PROG} runs/pictures photos --output results.csv")
    return parsed, words


def check_fits(arguments: Arguments, model: OnnxModel) -> Arguments:
    """Returns the arguments with `top_k` no larger than the number of classes.

    Raises:
      UserError: the model lacks an output that is asked for.
    """
    wanted = {"features": arguments.features, "heatmap": arguments.heatmaps is not None}
    for name, asked in wanted.items():
        if asked and name not in model.outputs:
            raise UserError(
                f"{model.path} has no output {name!r}; export it again with: python -m export WORKDIR --{name}"
            )
    return dataclasses.replace(arguments, top_k=min(arguments.top_k, len(model.preparation.names)))


def predict(
    model: OnnxModel, files: Iterator[PictureFile], arguments: Arguments, tally: Tally, *, total: int | None
) -> None:
    """Classifies files, and writes or prints the predictions.

    Args:
      model: the model.
      files: the files.
      arguments: what to write, and where.
      tally: counts what became of the files.
      total: how many files there are; None if that is not known.

    Raises:
      UserError: something cannot be written, or the model's outputs are not finite.
    """
    heatmaps = None if arguments.heatmaps is None else Heatmaps(arguments.heatmaps)
    with open_predictions(arguments, model) as output, open_progress(arguments, total) as update:
        done = output.done
        folders = open_folders(arguments, model.preparation.names, done.values())

        def remaining() -> Iterator[PictureFile]:
            """Yields the files that the output lacks, or whose heatmap is missing."""
            for file in files:
                if file.name in done and (heatmaps is None or heatmaps.path(file.name).exists()):
                    tally.known += 1
                    update(advance=1)
                    if folders is not None:
                        folders.place(file, done[file.name])
                else:
                    yield file

        outcomes = classify(
            model,
            remaining(),
            top_k=arguments.top_k,
            features=arguments.features,
            save_heatmap=None if heatmaps is None else heatmaps.save,
        )
        with closing(outcomes):
            for batch in outcomes:
                rows = []
                for outcome in batch:
                    if outcome.prediction is None:
                        continue
                    if outcome.file.name not in done:
                        rows.append(make_row(outcome.file.name, outcome.prediction, outcome.features))
                    if folders is not None:
                        folders.place(outcome.file, outcome.prediction.name)
                output.write(rows)
                tally.add(batch)
                update(advance=len(batch))


def open_folders(arguments: Arguments, names: Sequence[str], predicted: Iterable[str]) -> ClassFolders | None:
    """Returns the folders to sort into, if any.

    Args:
      arguments: say where they are.
      names: the classes.
      predicted: classes in the output so far.

    Raises:
      UserError: the output has other classes, as after a change by hand.
    """
    if arguments.sort_into is None:
        return None
    if unknown := sorted(set(predicted).difference(names)):
        raise UserError(
            f"{arguments.output} has the class {unknown[0]!r}, which the model lacks; correct or remove its rows"
        )
    return ClassFolders(arguments.sort_into, names, copy=arguments.copy)


@contextmanager
def open_predictions(arguments: Arguments, model: OnnxModel) -> Iterator[Output]:
    """Opens where predictions go: the file, or the table."""
    if arguments.output is None:
        yield Table(model.preparation.names, top_k=arguments.top_k)
        return
    channels = model.channels if arguments.features else None
    identity = identify_model(model.path)
    with open_output(arguments.output, top_k=arguments.top_k, channels=channels, model=identity) as output:
        yield output


@contextmanager
def open_progress(arguments: Arguments, total: int | None) -> Iterator[Callable[..., None]]:
    """Draws a bar on a terminal, unless a table is printed there; yields a function that changes it, see `open_bar`.

    Without a table, long work is announced in a line, too.
    """
    what = "classifying" if total is None else f"classifying {counted(total, 'file')}"
    prints_table = arguments.output is None
    with (
        nullcontext() if prints_table else stage(what),
        open_bar("classifying", total=total, is_hidden=prints_table and sys.stdout.isatty()) as update,
    ):
        yield update


def report(tally: Tally, output: Path | None) -> None:
    """Prints to standard error how many pictures were classified, and which could not be read."""
    where = "" if output is None else f" into {output}"
    if tally == Tally():
        return  # Nothing was begun.
    parts = [f"{counted(tally.classified, 'picture')} classified{where}"]
    if tally.known:
        parts.append(f"{tally.known:,} were in it already")
    if tally.passed_over:
        parts.append(f"{counted(tally.passed_over, 'file')} passed over as no picture")
    if tally.errors:
        parts.append(f"{counted(len(tally.errors), 'file')} could not be read:")
    for line in ("; ".join(parts), *(f"  {error}" for error in tally.errors)):
        print(cli.printable(line), file=sys.stderr)


if __name__ == "__main__":
    cli.run(main, PROG)
