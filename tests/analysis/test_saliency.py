"""Where values look."""

from __future__ import annotations

import pytest
import torch

from deflow_vision.analysis.saliency import gradient_saliency, occlusion_saliency, value_of
from deflow_vision.types import UserError

PICTURES = torch.randint(0, 256, (2, 6, 8, 6), generator=torch.Generator().manual_seed(0)).byte()


def corner(pictures):
    """Sees the upper left 2 x 4 pixels of the newest frame alone, in units of black to white."""
    return 3 * pictures[:, :2, :4, 3:].float().sum((1, 2, 3)) / 255


def test_the_gradient_is_that_of_the_value_and_zero_where_it_does_not_look():
    found = gradient_saliency(corner, PICTURES)
    assert found.shape == (2, 6, 8)
    # Of six channels, the three of the newest frame have a slope of 3.
    torch.testing.assert_close(found[:, :2, :4], torch.full((2, 2, 4), 1.5))
    assert found.sum() == pytest.approx(2 * 8 * 1.5)


def test_covering_changes_the_value_where_it_looks_and_nowhere_else():
    background = torch.zeros(6, 8, 6, dtype=torch.uint8)
    found = occlusion_saliency(corner, PICTURES, background, patch=4)
    seen = corner(PICTURES)
    torch.testing.assert_close(found[:, :4, :4], seen[:, None, None].expand(2, 4, 4))
    assert (found[:, 4:] == 0).all()
    assert (found[:, :, 4:] == 0).all()


def test_a_patch_that_shows_the_background_already_changes_nothing():
    found = occlusion_saliency(corner, PICTURES[:1], PICTURES[0], patch=3)
    assert (found == 0).all()


@pytest.mark.parametrize("sharing", ["shared", "separate"])
def test_the_value_is_the_critics_of_the_given_action(pixels, subject, sharing):
    agent = subject(sharing=sharing).agent
    observations = torch.from_numpy(pixels.observations[:4])
    actions = torch.from_numpy(pixels.actions[:4])
    value = value_of(agent, actions)
    known = agent.critic(agent.features(observations, "critic"), actions).mean(0)
    torch.testing.assert_close(value(observations), known)
    assert not torch.allclose(value_of(agent, -actions)(observations), known)
    assert gradient_saliency(value, observations).amax((1, 2)).min() > 0


@pytest.mark.parametrize("algo", ["bc", "bc_flow", "sorl"])
def test_an_agent_without_such_a_value_is_refused(subject, algo):
    with pytest.raises(UserError, match=r"no Q\(s, a\)"):
        value_of(subject(algo).agent, torch.zeros(1, 3))
