"""optimize: from a model and images to the fastest file that still answers the same, and what it cost."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from onnx_igpc.compression.optimization.attempts import Attempts
from onnx_igpc.compression.optimization.choice import STATE, VAL, choose, race, stated
from onnx_igpc.compression.optimization.exploration import Exploration
from onnx_igpc.compression.optimization.images import counted, pictures, share_out, size_of
from onnx_igpc.compression.optimization.options import Optimization
from onnx_igpc.compression.optimization.outcome import (
    chosen_report,
    finished,
    publish,
    write_result,
)
from onnx_igpc.compression.optimization.promises import most_differing, settle_promise
from onnx_igpc.compression.optimization.task import DATA, PREPROCESSING, Task
from onnx_igpc.compression.optimization.verdict import verdict
from onnx_igpc.compression.optimization.workbench import (
    Clock,
    Journal,
    Workbench,
    run_key,
    source_files,
)
from onnx_igpc.data.batches import Data
from onnx_igpc.data.dataset import Dataset
from onnx_igpc.data.preprocessing import Preprocessing
from onnx_igpc.data.progress import Progress
from onnx_igpc.data.sources import ImageSource, find_source, open_data
from onnx_igpc.errors import CheckFailedError, UsageError, with_flags
from onnx_igpc.evaluation.damage import UnlabelledData, damage_of
from onnx_igpc.evaluation.verify import verify
from onnx_igpc.files.atomic import locked_folder, write_atomically
from onnx_igpc.graph.checks import check_original
from onnx_igpc.graph.inputs import model_inputs
from onnx_igpc.graph.model import OpenModel, PathLike, open_model
from onnx_igpc.planning.promise import Promise
from onnx_igpc.report.digest import read_digest
from onnx_igpc.report.optimization import (
    ORIGINAL,
    ImagesReport,
    OptimizationReport,
    PictureReport,
    PointReport,
)
from onnx_igpc.report.typed_json import to_values
from onnx_igpc.runtime.setting import Setting

_SAMPLES_TO_LOOK_AT = 2
# Beyond this, pixels were multiplied by something that they should not have been.
_USUAL_VALUES = 300.0


def optimize(
    model: PathLike,
    data: PathLike | Dataset,
    folder: PathLike,
    *,
    val: PathLike | Dataset | None = None,
    optimization: Optimization | None = None,
    progress: Progress | None = None,
    log: Callable[[str], None] | None = None,
) -> OptimizationReport:
    """Find the fastest file that still answers as a model does, out of all that this tool can make of it.

    The images are shared out once. Models are made by :func:`compress`, :func:`finetune`, :func:`lower` and
    :func:`quantize` on one part, measured by :func:`verify` on the other, raced by :func:`benchmark` in one
    process, and the fastest that holds the promise at the lower end of its held-out interval is kept; the
    original where no other does.

    The work goes on in ``FOLDER.work``, and what is done there is kept: the same call goes on with it.

    Args:
        model: a model file.
        data: unlabelled images or arrays by their path, at least 20; images are preprocessed as it says, or
            else as the model's report.
        folder: is written whole or not at all, with model.onnx, report.html, report.json, commands.sh, and
            the images shared out as links in data/.
        val: labelled data by its path, for the accuracy of what was chosen; nothing is fitted to it.
        optimization: what is kept, where the result will run, and how long all may take.
        progress: called with (done, in all or 0, what is being done).
        log: called with a line for every step.

    Returns:
        What was tried, measured and chosen.

    Raises:
        UsageError: options that cannot be used, a promise that so many images cannot show, or a folder that
            is in use.
        ModelError: the model cannot be read or run.
        DataError: data that cannot be used.
        CheckFailedError: the provider asked for is not there.
    """
    options = optimization or Optimization()
    images, labelled = _path_of(data), _path_of(val) if val is not None else None
    opened = open_model(model)
    check_original(opened)
    target = Path(folder)
    prepared = _Prepared.of(opened, images, labelled, options)
    _check_folder(target, images, labelled)
    work = target.absolute().with_name(f"{target.name}.work")
    if (earlier := finished(target, prepared.key)) is not None:
        shutil.rmtree(work, ignore_errors=True)
        return earlier
    _open_work(work, prepared.key)
    with locked_folder(work):
        report = _optimize(prepared, work, progress or (lambda *_: None), log or (lambda _: None))
        publish(work, target)
    return report


@dataclass(frozen=True)
class _Prepared:
    """A run that was checked, and nothing written for it."""

    opened: OpenModel
    model: Path
    images: Dataset
    val: Dataset | None
    options: Optimization
    counts: ImagesReport
    promise: Promise
    preprocessing: Preprocessing | None
    key: str

    @classmethod
    def of(
        cls, opened: OpenModel, images: Dataset, val: Dataset | None, options: Optimization
    ) -> _Prepared:
        assert opened.path is not None
        path, inputs = opened.path.absolute(), model_inputs(opened.proto)
        digest = read_digest(opened.proto)
        recorded = digest.preprocessing if digest is not None else None
        assert isinstance(images.source, Path)
        source = find_source(images.source)
        counts = counted(source, inputs)
        pixels = isinstance(source, ImageSource)
        preprocessing = (images.preprocessing or recorded) if pixels else images.preprocessing
        look = open_data(images.source, inputs, preprocessing, samples=_SAMPLES_TO_LOOK_AT)
        setting = _with_shapes(options.setting.fitted(opened.proto), opened, look)
        options = replace(options, setting=setting)
        itself = damage_of(verify(path, path, UnlabelledData(look), setting=setting))
        labelled = 0
        if val is not None:
            assert isinstance(val.source, Path)
            labelled = size_of(find_source(val.source), inputs)
        promise = settle_promise(options.keep, counts, itself, labelled)
        files = source_files(images.source)
        if val is not None:
            assert isinstance(val.source, Path)
            files += source_files(val.source)
            if val.preprocessing is None and isinstance(find_source(val.source), ImageSource):
                val = replace(val, preprocessing=preprocessing)
        decided_by = {
            "promise": str(promise),
            "precision": options.precision,
            "shares": options.shares,
            "recipe": options.recipe.to_dict(),
            "setting": to_values(setting),
            "machine": setting.environment(),
            "preprocessing": to_values(preprocessing) if preprocessing is not None else None,
            "label_offset": val.label_offset if val is not None else None,
        }
        key = run_key(opened, files, decided_by)
        return cls(opened, path, images, val, options, counts, promise, preprocessing, key)


def _optimize(
    prepared: _Prepared, work: Path, progress: Progress, log: Callable[[str], None]
) -> OptimizationReport:
    """The phases: share out, try, race, choose, state; the report and all files, in the folder of the work."""
    inputs = model_inputs(prepared.opened.proto)
    journal = Journal(work)
    clock = Clock(prepared.options.seconds, sum(step.seconds for step in journal.steps()))
    bench = Workbench(work, journal, clock, progress, log)
    shared = share_out(prepared.images, inputs, work / DATA, prepared.preprocessing)
    if shared.preprocessing is not None:
        journal.write(PREPROCESSING.removesuffix(".json"), shared.preprocessing)
    task = Task(prepared.model, shared, prepared.val, prepared.promise, prepared.options)
    log(_plan(task))
    if bench.clock.used:
        log(f"going on: {bench.clock.used:.0f} s of the time were used before")
    shown = pictures(shared, inputs)
    doubts = _doubts(shown)
    for line in (*(f"input: {each.text}" for each in shown[:1]), *doubts):
        log(line)
    attempts = Attempts(task, bench)
    points = Exploration(task, bench).run()
    if not points:
        raise CheckFailedError(f"the original could not be measured: {bench.steps[-1].note}")
    raced = race(attempts, points)
    chosen, asked = choose(attempts, points)
    said = stated(attempts, chosen, max(len(points) - 1, 1), asked)
    progress(0, 0, "writing the report")
    found = attempts.found(chosen.name, _part_shown(bench, chosen))
    report = OptimizationReport(
        key=prepared.key,
        model=str(prepared.model),
        promise=str(task.promise),
        promise_given=task.options.keep is not None,
        where=task.setting.label,
        limit_seconds=task.options.seconds,
        seconds=round(clock.spent, 1),
        images=shared.counts,
        pictures=shown,
        steps=bench.steps,
        points=points,
        chosen=chosen.name,
        stated=said,
        verdict=verdict(task, points, bench.steps, chosen, said),
        warnings=[*doubts, *attempts.found(ORIGINAL).notes],
        report=chosen_report(task, work / chosen.file, chosen, raced, found),
    )
    write_result(work, task, report)
    return report


def _plan(task: Task) -> str:
    """What is promised on how many images, in a line."""
    counts, promise = task.images.counts, task.promise
    text = f"{counts.total} images: {counts.fit} to fit to, {counts.choose} held out"
    if counts.state:
        text += f", {counts.state} more to state the figure on"
    text += f"; the promise is {promise}"
    if promise.kind == "agreement":
        most = most_differing(promise, counts.choose)
        text += f": of {counts.choose} answers {most} may differ"
    return text


def _doubts(shown: Sequence[PictureReport]) -> list[str]:
    """What speaks against the preprocessing."""
    most = max((max(abs(each.low), abs(each.high)) for each in shown), default=0.0)
    if most <= _USUAL_VALUES:
        return []
    return [
        with_flags(
            f"values of the input reach {most:.3g}, where 0 to 1, -1 to 1 and 0 to 255 are usual: is `scale` right?"
        )
    ]


def _part_shown(bench: Workbench, chosen: PointReport) -> str:
    """The part of the data that the report of the chosen model shows: one that chose nothing, if there is."""
    done = {step.name for step in bench.steps if step.status == "done"}
    return next((part for part in (VAL, STATE) if f"verify {chosen.name} on {part}" in done), "")


def _path_of(data: PathLike | Dataset) -> Dataset:
    """Data by its path, which commands can name.

    Raises:
        UsageError: it is not on disk, or only a part of it is meant.
    """
    given = Dataset.of(data)
    if not isinstance(given.source, (str, os.PathLike)):
        raise UsageError("optimize takes data by its path: a folder of images, a .tar, an .npz")
    if given.samples is not None:
        raise UsageError("optimize takes all samples of its data: leave out `samples`")
    return replace(given, source=Path(given.source).absolute())


def _with_shapes(setting: Setting, opened: OpenModel, look: Data) -> Setting:
    """The setting with the sizes of dynamic inputs, as the data has them, unless they were given."""
    inputs = model_inputs(opened.proto)
    if setting.shapes or all(isinstance(dim, int) for spec in inputs for dim in spec.shape[1:]):
        return setting
    feeds = next(iter(look)).feeds
    return replace(setting, shapes={n: (setting.batch, *v.shape[1:]) for n, v in feeds.items()})


def _check_folder(folder: Path, *sources: Dataset | None) -> None:
    """Refuse a folder that cannot be made, or that data is read from."""
    parent = folder.absolute().parent
    if not parent.is_dir():
        raise UsageError(f"cannot write {folder}: the folder {parent} does not exist")
    if not os.access(parent, os.W_OK):
        raise UsageError(f"cannot write {folder}: the folder {parent} is read-only")
    for source in sources:
        if source is not None and isinstance(source.source, Path):
            place = source.source.resolve()
            if folder.resolve() == place or folder.resolve().is_relative_to(place):
                raise UsageError(f"cannot write {folder}: data is read from {source.source}")


def _open_work(work: Path, key: str) -> None:
    """Make the folder of the work, or go on in it.

    Raises:
        UsageError: it is that of another run.
    """
    work.mkdir(exist_ok=True)
    kept = work / "key"
    if kept.is_file():
        if kept.read_text(encoding="utf-8") != key:
            raise UsageError(
                f"{work} is left of a run with another model, data, machine or options: remove it, or name "
                "another folder with `output`"
            )
        return
    if any(work.iterdir()):
        raise UsageError(f"{work} is in the way: remove it, or name another folder with `output`")
    write_atomically(kept, lambda file: file.write(key.encode()))
