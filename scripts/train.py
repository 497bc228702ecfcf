"""Train an agent: `accelerate launch scripts/train.py --task ... [--help]`."""

import logging
import os
import sys


def main() -> None:
    from deflow_vision.config import compose, load
    from deflow_vision.types import UserError

    config = load(sys.argv[1:])
    from deflow_vision.analysis.plots import learning_curves
    from deflow_vision.analysis.report.run import write_run_report
    from deflow_vision.analysis.summary import summarise
    from deflow_vision.training.loop import train
    from deflow_vision.training.stopping import Stopped

    main_process = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("deflow_vision").setLevel(logging.INFO if main_process else logging.WARNING)
    try:
        run_dir = train(config)
        if main_process:
            learning_curves(run_dir)
            write_run_report(run_dir)
            published = config if config.env else compose(config.task, config.algo)
            print(summarise(run_dir, published.offline_steps))
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    except OSError as error:  # a full disk, a folder that cannot be written
        sys.stderr.write(
            f"error: {error}\nA run's checkpoints are whole: go on with --resume RUN\n"
        )
        raise SystemExit(2) from None
    except Stopped as stopped:
        sys.stderr.write(f"{stopped}; go on with --resume and the run folder\n")
        raise SystemExit(128 + stopped.signal) from None
    except KeyboardInterrupt:
        sys.stderr.write("stopped; go on with --resume and the run folder\n")
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
