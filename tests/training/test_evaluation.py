"""Evaluation against a scripted pool: exactly N episodes, seeds of their own, honest results."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from deflow_vision.agents.deflow import DeFlow, DeFlowConfig
from deflow_vision.envs.server import EnvStep
from deflow_vision.networks.encoders import EncoderConfig
from deflow_vision.training.evaluation import Evaluator, evaluate
from deflow_vision.training.logger import RunLogger
from deflow_vision.types import Spec


class ScriptedPool:
    """Episode with seed s lasts 2 + s % 5 steps and succeeds where s is even."""

    def __init__(self, num_envs, pixels=False):
        self.num_envs = num_envs
        self.can_render = True
        self.channels, self.env_id = 3, "scripted"
        self.pixels = pixels
        self.seeds = [0] * num_envs
        self.steps = [0] * num_envs
        self.log = []

    def observe(self, slot):
        value = self.seeds[slot] % 97 + self.steps[slot]
        if self.pixels:
            return np.full((64, 64, 9), value % 256, np.uint8)
        return np.full(3, value / 97, np.float32)

    def reset_many(self, slots, seeds):
        for slot, seed in zip(slots, seeds, strict=True):
            self.seeds[slot], self.steps[slot] = seed, 0
        return [self.observe(slot) for slot in slots]

    def step(self, slots, actions):
        assert len(slots) == len(actions)
        results = []
        for slot, action in zip(slots, actions, strict=True):
            self.steps[slot] += 1
            self.log.append((self.seeds[slot], self.steps[slot], tuple(action.tolist())))
            over = self.steps[slot] == 2 + self.seeds[slot] % 5
            success = float(over and self.seeds[slot] % 2 == 0)
            terminated = bool(success)
            results.append(
                EnvStep(
                    self.observe(slot),
                    -1.0,
                    terminated,
                    over and not terminated,
                    {"success": success},
                )
            )
        return results

    def render(self, slot):
        return np.full((200, 200, 3), self.steps[slot], np.uint8)


class NoisyPolicy:
    """Acts with the observation's first number plus noise of the episode's own generator."""

    def act(self, observations, *, explore=False, generator=None):
        assert not explore
        noise = torch.stack([torch.randn(2, generator=g) for g in generator])
        return observations.flatten(1)[:, :1].float() + noise


def tiny_agent():
    torch.manual_seed(0)
    spec = Spec((3,), "float32", 2, (-1.0, 0.0))
    return DeFlow(spec, DeFlowConfig(hidden_dims=(64, 48)), EncoderConfig())


def run(num_envs, episodes=7, policy=None, **kwargs):
    pool = ScriptedPool(num_envs)
    settings = {"seed": 0, "step": 10, "episodes": episodes, "device": torch.device("cpu")} | kwargs
    return evaluate(policy or NoisyPolicy(), pool, **settings), pool


@pytest.mark.parametrize("num_envs", [1, 3, 7, 9])
def test_exactly_n_episodes_end_each_with_its_own_length_and_success(num_envs):
    episodes, _ = run(num_envs)
    assert [e.index for e in episodes] == list(range(7))
    for episode in episodes:
        assert episode.length == 2 + episode.seed % 5
        assert episode.success == episode.terminated == (episode.seed % 2 == 0)
        assert episode.episode_return == -episode.length


@pytest.mark.parametrize("make_policy", [NoisyPolicy, tiny_agent])
def test_the_number_of_environments_changes_no_bit_of_an_action(make_policy):
    logs = [sorted(run(num_envs, policy=make_policy())[1].log) for num_envs in (1, 3, 11)]
    assert logs[0] == logs[1] == logs[2]


def test_a_policy_acts_in_one_thread_and_training_has_its_own_again():
    class Counting(NoisyPolicy):
        def act(self, observations, *, generator):
            threads.append(torch.get_num_threads())
            return super().act(observations, generator=generator)

    class Failing(NoisyPolicy):
        def act(self, observations, *, generator):
            raise RuntimeError("no action")

    threads, before = [], torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(2, policy=Counting())
        assert set(threads) == {1}
        assert torch.get_num_threads() == 2
        with pytest.raises(RuntimeError, match="no action"):
            run(2, policy=Failing())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_each_evaluation_has_fresh_seeds_and_repeats_exactly():
    seeds = [[e.seed for e in run(2, step=step)[0]] for step in (10, 10, 20)]
    assert seeds[0] == seeds[1]
    assert not set(seeds[0]) & set(seeds[2])


def test_evaluation_leaves_the_global_generators_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    before = (torch.get_rng_state(), np.random.get_state()[1].tolist())
    run(3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


def test_pixels_are_filmed_from_the_newest_frame_and_state_every_fourth_step():
    pool = ScriptedPool(2, pixels=True)
    device = torch.device("cpu")
    pixels = evaluate(NoisyPolicy(), pool, seed=0, step=0, episodes=3, videos=2, device=device)
    assert [len(e.frames) for e in pixels] == [pixels[0].length + 1, pixels[1].length + 1, 0]
    assert pixels[0].frames[0].shape == (64, 64, 3)
    state, _ = run(2, videos=1)
    assert len(state[0].frames) == state[0].length // 4 + 1


def test_where_nothing_can_draw_there_are_no_videos_and_a_warning(tmp_path, caplog):
    pool = ScriptedPool(1)
    pool.can_render = False
    device = torch.device("cpu")
    with RunLogger(tmp_path) as logger:
        settings = {"seed": 0, "episodes": 1, "videos": 1, "cap": None, "device": device}
        Evaluator(pool, tmp_path, logger, **settings)(NoisyPolicy(), 0)
    assert "no videos" in caplog.text
    assert not (tmp_path / "videos").exists()


@pytest.mark.parametrize("cap", [None, 200])
def test_an_evaluation_writes_rows_videos_and_means(cap, tmp_path):
    pool = ScriptedPool(2)
    with RunLogger(tmp_path) as logger:
        evaluator = Evaluator(
            pool,
            tmp_path,
            logger,
            seed=0,
            episodes=4,
            videos=1,
            cap=cap,
            device=torch.device("cpu"),
        )
        metrics = evaluator(NoisyPolicy(), 30)
    table = pd.read_csv(tmp_path / "episodes.csv")
    assert list(table["episode"]) == [0, 1, 2, 3]
    assert metrics["eval/success"] == table["success"].mean()
    assert metrics["eval/capped"] == table["capped"].mean() == float(cap is not None)
    assert (tmp_path / "videos" / "step_30_episode_0.mp4").stat().st_size > 0
