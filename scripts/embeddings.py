"""What encoders have learned: `python scripts/embeddings.py RUN [RUN...] --data STORE`."""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tyro.conf import Positional


@dataclass(frozen=True)
class Arguments:
    """Numbers and figures of the features of trained encoders, beside untrained ones and pixels."""

    runs: Positional[tuple[Path, ...]]
    """Run folders, or folders of exported policies."""
    data: str | None = None
    """The store's folder or address; by default the first run's dataset, where it still is."""
    out: Path | None = None
    """The folder of what is written; by default embeddings/ in the first run's folder."""
    frames: int = 5000
    """States that are looked at, a fifth of them of held-out episodes."""
    neighbours: int = 5
    """Nearest neighbours of the action's consistency."""
    maps: tuple[Literal["pca", "tsne", "umap"], ...] = ("pca", "tsne", "umap")
    """Maps in two dimensions to draw; UMAP needs umap-learn."""
    checkpoints: Literal["newest", "all"] = "newest"
    """Of each run. With all of them, the numbers are drawn over the updates, too."""
    seed: int = 0
    """Of the sample, the untrained encoders and the maps."""
    device: str = "cpu"
    """Where the encoders compute, such as cuda."""


def main() -> None:
    import tyro

    args = tyro.cli(Arguments, description=__doc__)
    from deflow_vision.analysis.embedding_study import draw, study
    from deflow_vision.analysis.frames import draw_sample
    from deflow_vision.files import write_atomically
    from deflow_vision.sharing.subjects import load_subjects, open_data
    from deflow_vision.types import UserError

    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    out = args.out or args.runs[0] / "embeddings"
    try:
        subjects, stack = load_subjects(args.runs, args.checkpoints, args.device)
        store = open_data(args.data, args.runs[0])
        sample = draw_sample(store, args.frames, frame_stack=stack, seed=args.seed)
        found = study(subjects, sample, k=args.neighbours, seed=args.seed)
        out.mkdir(parents=True, exist_ok=True)
        table = found.report.markdown()
        write_atomically(out / "embeddings.md", table)
        write_atomically(out / "embeddings.csv", found.report.csv())
        facts = {"data": str(store.path), "frames": len(sample), "seed": args.seed}
        write_atomically(out / "embeddings.json", found.json(**facts))
        print(table)
        for path in draw(found, out, args.maps, args.seed):
            print(path, flush=True)
    except (UserError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
