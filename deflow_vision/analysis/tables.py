"""CSV tables of runs: `train.csv` and `episodes.csv`."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from pathlib import Path

import numpy as np
import pandas as pd

from deflow_vision.types import UserError


def read_table(path: Path, needed: Sequence[str] = ()) -> pd.DataFrame:
    """Read a CSV of a run, which may be writing to it at this moment.

    Args:
        path: the file.
        needed: columns that it must have, full of finite numbers, unless it is empty.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    if not path.exists():
        raise UserError(f"no {path}: give the folder of a run")
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        whole = path.read_text().rpartition("\n")[0]  # the last line may be half written
        table = pd.read_csv(StringIO(whole), index_col=False) if whole else pd.DataFrame()
        for name in table:
            values = pd.to_numeric(table[name]).to_numpy(np.float64)
            if name in needed and not np.isfinite(values).all():
                raise ValueError(f"a number is missing in its column {name}")
        if missing := set(needed) - set(table.columns):
            raise ValueError(f"it has no column {min(missing)}")
    except (OSError, ValueError, TypeError, ArithmeticError) as error:
        raise UserError(
            f"{path} is damaged: {error}. Mend its text, or move it away to do without it."
        ) from None
    return table
