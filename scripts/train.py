"""Train an agent: `accelerate launch scripts/train.py --task ... [--help]`."""

import sys


def main() -> None:
    # Imported here: spawned environment workers import this module again, and stay without torch.
    from deflow_vision.config import load
    from deflow_vision.types import UserError

    config = load(sys.argv[1:])
    from deflow_vision.training.loop import train

    try:
        train(config)
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
