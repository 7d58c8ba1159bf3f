"""Verbs to functions. No logic: what a verb does is the function of the same name in ``daybreak``."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .errors import Failed, Refused

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
                  help="A folder of images in, an evaluated vision backbone out. --debug after any verb shows tracebacks.")

Data = Annotated[str, typer.Argument(help="folder, zip, tar, CSV or Parquet list, Parquet or Arrow table, saved data set")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a run")]


def leave(run: Any) -> None:
    """Exit with 143 or 130 after an interruption, with 1 after a stop by an alarm."""
    if run.interrupted is not None:
        raise typer.Exit(128 + run.interrupted)
    if run.stopped is not None:
        raise typer.Exit(1)


@app.command()
def pretrain(
    data: Annotated[str | None, typer.Argument(help="folder, zip, tar, list, table or saved data set; labels optional")] = None,
    method: Annotated[str | None, typer.Option(help="a name of `daybreak methods`, or a method file; default sit")] = None,
    encoder: Annotated[str | None, typer.Option(help="a preset or a timm name; default by image size and device")] = None,
    image_size: Annotated[int | None, typer.Option(help="pixels; default the images' own up to 64, else 96 (CPU) or 224")] = None,
    epochs: Annotated[float | None, typer.Option(help="budget in passes over the data; default 100 on a GPU")] = None,
    images: Annotated[int | None, typer.Option(help="budget in images seen")] = None,
    minutes: Annotated[float | None, typer.Option(help="budget in minutes of training; default 30 on a CPU")] = None,
    batch_size: Annotated[int | None, typer.Option(help="images a step; default the method's, as the data allow")] = None,
    val: Annotated[str | None, typer.Option(help="labelled images to evaluate on; default a split or a tenth of DATA")] = None,
    label: Annotated[str | None, typer.Option(help="label column; default the first")] = None,
    group: Annotated[str | None, typer.Option(help="column of what belongs together (patient); default none")] = None,
    channels: Annotated[int | None, typer.Option(help="1, 3 or 4; default 1 if all images are grey, else 3")] = None,
    max_bad: Annotated[float | None, typer.Option(help="share of unreadable images that stops a run; default 0.05")] = None,
    out: Annotated[Path | None, typer.Option(help="run folder; default runs/METHOD-N")] = None,
    recipe: Annotated[Path | None, typer.Option(help="TOML file of settings; default none")] = None,
    set: Annotated[list[str] | None, typer.Option(help="key=value, as method.mask_ratio=0.7; repeatable")] = None,
    seed: Annotated[int | None, typer.Option(help="default 0")] = None,
    compile: Annotated[bool | None, typer.Option("--compile", help="torch.compile the encoder; default off")] = None,
    devices: Annotated[int | None, typer.Option(help="processes, one a device, that share each batch; default 1")] = None,
    init: Annotated[str | None, typer.Option(help="start from the weights of a run, a file or timm:NAME; default random")] = None,
    init_partial: Annotated[bool | None, typer.Option("--init-partial", help="take what fits of them; default all or none")] = None,
    save_minutes: Annotated[float | None, typer.Option(help="minutes between two checkpoints; default 10")] = None,
    on_collapse: Annotated[str | None, typer.Option(help="warn or stop; default warn, then stop after a tenth of the run")] = None,
    resume: Annotated[Path | None, typer.Option(help="go on with this run")] = None,
    skip_failure: Annotated[bool, typer.Option("--skip-failure", help="resume past the batch whose loss was not finite")] = False,
    force: Annotated[bool, typer.Option("--force", help="override a refusal: changed settings or data, a run in --out")] = False,
    pictures: Annotated[bool, typer.Option(help="images in the report")] = True,
) -> None:
    """Pretrain a backbone on your images, evaluate it, write its report and weights."""
    from . import verbs

    run = verbs.pretrain(data, method=method, encoder=encoder, image_size=image_size, epochs=epochs, images=images,
                         minutes=minutes, batch_size=batch_size, val=val, label=label, group=group, channels=channels,
                         max_bad=max_bad, out=out, recipe=recipe, overrides=set or (), seed=seed, compile=compile,
                         devices=devices, init=init, init_partial=init_partial, save_minutes=save_minutes,
                         on_collapse=on_collapse, resume=resume, skip_failure=skip_failure, force=force, pictures=pictures)
    leave(run)


@app.command()
def plan(
    data: Data,
    hours: Annotated[float | None, typer.Option(help="the budget; default that of pretrain")] = None,
    method: Annotated[str | None, typer.Option(help="a name of `daybreak methods`, or a method file; default sit")] = None,
    encoder: Annotated[str | None, typer.Option(help="a preset or a timm name; default by image size and device")] = None,
    image_size: Annotated[int | None, typer.Option(help="pixels; default the images' own up to 64, else 96 (CPU) or 224")] = None,
    batch_size: Annotated[int | None, typer.Option(help="images a step; default the method's, as the data allow")] = None,
    devices: Annotated[int | None, typer.Option(help="processes, one a device, that share each batch; default 1")] = None,
    recipe: Annotated[Path | None, typer.Option(help="TOML file of settings; default none")] = None,
    set: Annotated[list[str] | None, typer.Option(help="key=value, as method.mask_ratio=0.7; repeatable")] = None,
) -> None:
    """Say what pretrain would do with these images, and what time and memory it would take; nothing is written."""
    from . import verbs

    verbs.plan(data, hours=hours, method=method, encoder=encoder, image_size=image_size, batch_size=batch_size,
               devices=devices, recipe=recipe, overrides=set or ())


@app.command()
def demo(out: Annotated[Path | None, typer.Option(help="run folder; default runs/demo-N")] = None,
         minutes: Annotated[float | None, typer.Option(help="minutes of training; default 3")] = None,
         seed: Annotated[int, typer.Option(help="default 0")] = 0) -> None:
    """Pretrain on 8,060 animal silhouettes that come with the package, in under five minutes on two cores."""
    from . import verbs

    leave(verbs.demo(out=out, minutes=minutes, seed=seed))


@app.command()
def evaluate(run: RunFolder,
             train: Annotated[str, typer.Option(help="labelled images of the bank")],
             test: Annotated[str, typer.Option(help="labelled images of the queries")],
             protocol: Annotated[list[str] | None, typer.Option(
                 help="repeatable: knn-v1, linear-v1 (default), logistic-v1, fewshot-v1, nearest-mean-v1, retrieval-v1, "
                      "multilabel-v1 (default of several labels an image), ood-v1, rank-v1; of images with masks: segment-v1, "
                      "patch-prompt-v1; with columns of factors: disentangle-v1; finetune-v1")] = None,
             label: Annotated[str | None, typer.Option(help="label column; default the first")] = None,
             group: Annotated[str | None, typer.Option(help="column of what belongs together (patient); default none")] = None,
             ood: Annotated[str | None, typer.Option(help="images of other kinds, for ood-v1")] = None,
             void: Annotated[list[int] | None, typer.Option(help="no class in masks; repeatable; default 255")] = None,
             share: Annotated[list[float] | None, typer.Option(
                 help="of the labels that finetune-v1 trains on, as 0.1; repeatable; default 1")] = None,
             set: Annotated[list[str] | None, typer.Option(help="key=value, as finetune.epochs=20; repeatable")] = None,
             seed: Annotated[int, typer.Option(help="default 0")] = 0) -> None:
    """Measure a backbone on labelled images, or images with masks."""
    from . import verbs

    verbs.evaluate(run, train=train, test=test, protocols=protocol, label=label, group=group, ood=ood, void=void,
                   shares=share, overrides=set or (), seed=seed)


@app.command()
def compare(runs: Annotated[list[Path], typer.Argument(metavar="RUN RUN ...", help="the folders of two or more runs")],
            out: Annotated[Path | None, typer.Option(help="HTML file to draw them in; default none")] = None) -> None:
    """Print the numbers of runs side by side, where they were measured alike."""
    from . import verbs

    verbs.compare(runs, out=out)


@app.command()
def rank(data: Data,
         backbones: Annotated[list[str], typer.Argument(metavar="RUN|timm:NAME ...", help="folders of runs, or models of timm")],
         label: Annotated[str | None, typer.Option(help="label column; default the first")] = None,
         reference: Annotated[str | None, typer.Option(help="images that PED scales by, as of pretraining; default DATA")] = None,
         by: Annotated[str, typer.Option(help="the score that orders: TMI, PED, LogME, H-score or LEEP")] = "LogME") -> None:
    """Order backbones by how well they would serve labelled images, without training."""
    from . import verbs

    verbs.rank(data, backbones, label=label, reference=reference, by=by)


@app.command()
def embed(run: RunFolder, data: Data,
          out: Annotated[Path, typer.Option(help="Parquet file; after an interruption the same command goes on")],
          label: Annotated[str | None, typer.Option(help="label column; default the first")] = None,
          group: Annotated[str | None, typer.Option(help="column of what belongs together (patient); default none")] = None,
          max_bad: Annotated[float, typer.Option(help="share of unreadable images that stops it")] = 0.05) -> None:
    """Write the vector of every image, with key, label and group."""
    from . import verbs

    verbs.embed(run, data, out=out, label=label, group=group, max_bad=max_bad)


@app.command()
def explain(run: RunFolder, images: Annotated[str, typer.Argument(help="as DATA of pretrain")],
            out: Annotated[Path, typer.Option(help="folder of explain.html")],
            count: Annotated[int, typer.Option(help="images to explain, evenly spaced")] = 12,
            label: Annotated[str | None, typer.Option(help="label column; default the first")] = None,
            train: Annotated[str | None, typer.Option(help="labelled images to fit a class head on, for Grad-CAM")] = None,
            target: Annotated[str | None, typer.Option("--class", help="of Grad-CAM; default the predicted one")] = None) -> None:
    """Show what the backbone looks at in some images, in one HTML file."""
    from . import verbs

    verbs.explain(run, images, out=out, count=count, label=label, train=train, target=target)


@app.command()
def pack(
    data: Annotated[str | None, typer.Argument(help="folder, zip, tar, list, table or saved data set")] = None,
    out: Annotated[Path | None, typer.Argument(help="folder to write, or to go on with")] = None,
    short_side: Annotated[str, typer.Option(help="pixels; images with a larger shorter side are shrunk to it; or keep")] = "256",
    encoding: Annotated[str, typer.Option(help="auto, jpeg, raw or lossless")] = "auto",
    quality: Annotated[int, typer.Option(help="of JPEG, 1 to 100")] = 90,
    workers: Annotated[int | None, typer.Option(help="threads; default one for each processor")] = None,
    label: Annotated[str | None, typer.Option(help="label column in use; default the first")] = None,
    group: Annotated[str | None, typer.Option(help="column of what belongs together (patient); default none")] = None,
    max_bad: Annotated[float, typer.Option(help="share of unreadable images that stops it")] = 0.05,
    verify: Annotated[Path | None, typer.Option(help="read this pack again and name what is damaged")] = None,
) -> None:
    """Pack images into shards that train faster and that `datasets` opens too."""
    from . import verbs

    encodings: Any = encoding  # which there are is for the verb to say
    verbs.pack(data, out, short_side=short_side, encoding=encodings, quality=quality, workers=workers, label=label, group=group,
               max_bad=max_bad, verify=verify)


@app.command()
def export(run: RunFolder, to: Annotated[str, typer.Option(help="timm, safetensors, onnx or huggingface")],
           out: Annotated[Path, typer.Option(help="folder")]) -> None:
    """Write the backbone in a form that other tools open."""
    from . import verbs

    verbs.export(run, to=to, out=out)


@app.command()
def methods(as_json: Annotated[bool, typer.Option("--json", help="all settings, for programs")] = False) -> None:
    """List the methods: name, what it is, what it asks for."""
    from .verbs import describe_methods

    rows = describe_methods()
    if as_json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            Console().print(f"[bold]{row['name']:10}[/bold] {row['summary']}", highlight=False)


@app.command()
def doctor() -> None:
    """What is installed, which devices are here, what is missing and the line that fixes it."""
    from .doctor import examine

    for line in examine():
        Console(soft_wrap=True).print(line, highlight=False, markup=False)


def main(arguments: list[str] | None = None) -> Any:
    """Run a command; bad input exits with 2 and a failed run with 1, each with one sentence."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    try:
        app(arguments)
    except (Refused, Failed) as error:
        if debug:
            raise
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", markup=False, highlight=False)
        sys.exit(2 if isinstance(error, Refused) else 1)
    except OSError as error:
        if debug:
            raise
        Console(stderr=True, soft_wrap=True).print(f"error: {error.filename or ''}: {error.strerror or error}.", markup=False,
                                                   highlight=False)
        sys.exit(1)
