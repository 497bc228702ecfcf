"""Datasets: `python scripts/data.py COMMAND [--help]`.

COMMAND is collect, download, convert, render, relabel, info, verify or suggest-delta.
"""

import logging
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from deflow_vision.envs.worker import WorkerError
from deflow_vision.tasks import data_root, resolve_dataset
from deflow_vision.types import UserError

Name = Annotated[str, tyro.conf.Positional]
Folder = Annotated[Path, tyro.conf.Positional]
Place = Annotated[str, tyro.conf.Positional]


def collect(
    dataset: Name,
    episodes: int = 1000,
    val_episodes: int | None = None,
    seed: int = 0,
    processes: int | None = None,
    path: Path | None = None,
    render_profile: str = "official",
    compression_level: int = 1,
) -> None:
    """Collect a cube, scene or puzzle dataset with OGBench's scripted oracles.

    Args:
        dataset: such as cube-double-play, scene-noisy or visual-puzzle-3x3-play.
        episodes: training episodes of 1,000 transitions; OGBench's own datasets have 1,000 (cube
            triple and puzzle 4x5: 3,000; cube quadruple and puzzle 4x6: 5,000).
        val_episodes: validation episodes; by default a tenth of the training episodes.
        seed: episode i of a split depends on (seed, split, i) alone.
        processes: worker processes, by default one a core; the data do not depend on it.
        path: the store's folder; by default <dataset>.zarr in $DEFLOW_DATA, or data/.
        render_profile: how frames are drawn: official, as in OGBench's own datasets; fast, for
            machines without a GPU; or draft. Evaluation draws as the store says.
        compression_level: zstd's, 1 to 22: 19 makes a pixel store 15% smaller, for 8 ms a frame.
    """
    from deflow_vision.datasets import collect as collecting

    path = path or _default_path(dataset)
    collecting.collect(
        dataset,
        path,
        episodes=episodes,
        val_episodes=val_episodes,
        seed=seed,
        num_processes=processes,
        render_profile=render_profile,
        compression_level=compression_level,
    )
    print(f"{path} is complete; `python scripts/data.py info {path}` shows what it holds.")


def download(dataset: Name, path: Path | None = None, offline: bool = False) -> None:
    """Download an OGBench or D4RL dataset's files and convert them into a store.

    Files go to downloads/ beside the store; their digests are recorded, and checked ever after. One
    that turns out damaged is set aside, as <file>.damaged, and downloaded again.

    Args:
        dataset: such as cube-double-play, visual-scene-play or pen-human-v1.
        path: the store's folder; by default <dataset>.zarr in $DEFLOW_DATA, or data/.
        offline: take the files that are there, and do not touch the network.
    """
    from deflow_vision.datasets.convert import download_store

    path = path or _default_path(dataset)
    folder = download_store(dataset, path, offline=offline)
    print(f"{path} is complete; `python scripts/data.py info {path}` shows what it holds.")
    print(f"The files it was made from are in {folder}; training does not need them.")


def convert(source: Name, dataset: str | None = None, path: Path | None = None) -> None:
    """Convert a dataset that you have, of OGBench, D4RL or Minari, into a store.

    Args:
        source: OGBench's <dataset>.npz, with its -val file beside it; D4RL's <dataset>.hdf5; or
            minari:<id>, such as minari:D4RL/pen/human-v2, a dataset in Minari's local folder.
        dataset: the dataset's name; by default the file's.
        path: the store's folder; by default <dataset>.zarr in $DEFLOW_DATA, or data/.
    """
    from deflow_vision.datasets.convert import convert as convert_source

    path = convert_source(source, path, dataset)
    print(f"{path} is complete; `python scripts/data.py info {path}` shows what it holds.")


def render(
    source: Place,
    path: Path | None = None,
    resolution: int = 64,
    render_profile: str = "official",
    processes: int | None = None,
    compression_level: int = 1,
) -> None:
    """Draw the states of a store: a pixel dataset with its actions, states and goals.

    Args:
        source: the folder or address of a cube, scene or puzzle store, of states or of pixels.
        path: the new store's folder; by default visual-<dataset>.zarr in $DEFLOW_DATA, or data/.
        resolution: pixels a side; training and evaluation take that of the store.
        render_profile: how frames are drawn: official, fast or draft. Evaluation draws as the store
            says.
        processes: worker processes, by default one a core; the data do not depend on it.
        compression_level: zstd's, 1 to 22: 19 makes a pixel store 15% smaller, for 8 ms a frame.
    """
    from deflow_vision.datasets import render as rendering
    from deflow_vision.datasets.store import open_store

    path = path or _default_path(rendering.visual_dataset(open_store(source)))
    rendering.render(
        source,
        path,
        resolution=resolution,
        render_profile=render_profile,
        num_processes=processes,
        compression_level=compression_level,
    )
    print(f"{path} is complete; `python scripts/data.py info {path}` shows what it holds.")


def relabel(path: Folder) -> None:
    """Write rewards and masks of all five goals into a store of your own episodes in OGBench.

    They are computed from the simulator states in it, qpos and button_states. What is collected,
    downloaded, converted or rendered has them already.

    Args:
        path: the store's folder; its env_id is the OGBench dataset that it passes for.
    """
    from deflow_vision.datasets.relabel import relabel_store

    relabel_store(path)
    print(f"{path} is complete; `python scripts/data.py info {path}` shows what it holds.")


def info(path: Place, sheet: Path | None = None, video: Path | None = None) -> None:
    """Print the dataset card of a store: origin, counts, rewards and masks of each goal, sizes.

    Args:
        path: the store's folder, or its address, such as s3://bucket/name.zarr.
        sheet: a PNG file for frames of four episodes, a row each, of a pixel dataset.
        video: an MP4 file for its first episode, in 300 frames where it has more.
    """
    from rich.console import Console

    from deflow_vision.datasets.card import card, film_frames, sheet_frames

    for file, suffix in ((sheet, ".png"), (video, ".mp4")):
        if file is not None and file.suffix != suffix:
            raise UserError(f"{file}: name a {suffix} file")
    Console().print(card(path))
    if sheet is not None:
        from deflow_vision.training.video import contact_sheet

        frames = sheet_frames(path)
        contact_sheet(sheet, frames, num_pictures=len(frames))
        print(f"frames: {sheet}")
    if video is not None:
        from deflow_vision.training.video import write_video

        write_video(video, film_frames(path), fps=20)
        print(f"video: {video}")


def verify(
    path: Place, render: bool = False, frames: int = 32, picture: Path | None = None
) -> None:
    """Read a whole store and check every digest and every invariant; exit code 1 if one fails.

    Args:
        path: the store's folder, or its address, which is read twice.
        render: draw stored states again too, and compare; exit code 1 if a frame is unlike.
        frames: how many of them.
        picture: a PNG file for the least like one: as stored, as drawn, eight times the difference.
    """
    from deflow_vision.datasets.store import verify as problems_of

    if picture is not None and (picture.suffix != ".png" or not render):
        raise UserError(f"--picture {picture}: a .png file, together with --render")
    problems = problems_of(path)
    for problem in problems:
        print(problem)
    if problems:
        raise SystemExit(1)
    print(f"{path}: every array matches its digest.")
    if render:
        _compare_frames(path, frames, picture)


def _compare_frames(path: str, frames: int, picture: Path | None) -> None:
    from deflow_vision.datasets.likeness import likeness_of

    likeness = likeness_of(path, frames)
    print(f"{likeness}.")
    if picture is not None:
        from deflow_vision.training.video import contact_sheet, enlarge

        contact_sheet(picture, enlarge(likeness.worst))
        print(f"the worst frame as stored, as drawn here, eight times the difference: {picture}")
    if not likeness.alike:
        print("The simulator or the OpenGL here draws otherwise than what drew this store.")
        raise SystemExit(1)


def suggest_delta(
    path: Place,
    k: int = 5,
    samples: int = 10_000,
    seed: int = 0,
    metric: Literal["standardised", "raw"] = "standardised",
    plot: Path | None = None,
) -> None:
    """Suggest DeFlow's target_divergence: how much the actions around a state differ in a store.

    Args:
        path: the store's folder or address.
        k: nearest states whose actions are compared.
        samples: states to look around; the neighbours are searched in the whole training split.
        seed: of the sample.
        metric: Euclidean distance, with every dimension divided by its standard deviation or not.
        plot: a PNG file for the distribution over states.
    """
    from rich.console import Console

    from deflow_vision.analysis.variance import Suggestion

    if plot is not None and plot.suffix != ".png":
        raise UserError(f"--plot {plot}: the picture is a PNG, name a .png file")
    suggestion = Suggestion.of(path, k=k, samples=samples, seed=seed, metric=metric)
    Console().print(suggestion.table())
    print("\n".join(suggestion.lines()))
    if plot is not None:
        print(f"distribution: {suggestion.plot(plot)}")


def _default_path(dataset: str) -> Path:
    return data_root() / f"{resolve_dataset(dataset).dataset}.zarr"


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    commands = {
        "collect": collect,
        "download": download,
        "convert": convert,
        "render": render,
        "relabel": relabel,
        "info": info,
        "verify": verify,
        "suggest-delta": suggest_delta,
    }
    try:
        tyro.extras.subcommand_cli_from_dict(commands, description=__doc__)
    except (UserError, WorkerError, OSError) as error:
        print(error, file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)  # the writer has said what it keeps
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
