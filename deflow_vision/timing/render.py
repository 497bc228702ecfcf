"""Rows of the render profiles."""

from __future__ import annotations

from collections.abc import Iterator

from deflow_vision.envs.rendering import worker_variables
from deflow_vision.envs.worker import run_in_worker
from deflow_vision.timing.drawing import Drawn, draw_profiles, write_picture
from deflow_vision.timing.figures import Figure, Goal, Sample, more
from deflow_vision.timing.settings import Settings

GOALS = {"fast": Goal(5), "draft": Goal(10)}


def time_render(settings: Settings) -> Iterator[Figure]:
    """Rows of each environment and each profile but the official one, which they are held against.

    They are drawn in a process without torch.
    """
    pictures = {}
    for environment in settings.render_envs:
        found: dict[str, Drawn]
        how, found = run_in_worker(
            draw_profiles,
            environment,
            settings.render_frames,
            max(1, settings.rounds // 2),
            variables=worker_variables(pixels=True),
        )
        against = Sample(found["official"].rates, "frames/s")
        for profile, goal in GOALS.items():
            drawn = found[profile]
            rate = Sample(drawn.rates, "frames/s")
            mean, worst = sum(drawn.likeness) / len(drawn.likeness), min(drawn.likeness)
            note = (
                f"{mean:.1f} dB like it, {worst:.1f} at worst; {drawn.triangles:,} triangles of "
                f"{found['official'].triangles:,}; {how}"
            )
            what, basis = f"drawing {environment}, profile {profile}", "profile official"
            yield Figure("render", what, rate, against, basis, more(rate, against), goal, note)
        pictures[environment] = {profile: drawn.frame for profile, drawn in found.items()}
    if settings.picture is not None:
        write_picture(settings.picture, pictures)
