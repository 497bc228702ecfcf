"""Features of trained encoders and of baselines."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from deflow_vision.agents import AGENTS
from deflow_vision.analysis import encoders
from deflow_vision.analysis.embeddings import linear_cka
from deflow_vision.analysis.encoders import (
    Subject,
    encoders_of,
    features_of,
    layer_features,
    pixel_features,
    random_features,
)
from deflow_vision.networks.encoders import EncoderConfig
from deflow_vision.types import Spec, UserError
from tests.agents.conftest import SPECS


def test_a_shared_encoder_is_one_row_read_by_all_heads(pixels, subject):
    made = subject()
    (found,) = features_of(made, pixels)
    assert found.heads == ("critic", "flow", "refinement")
    assert found.name == "deflow, 7 updates: critic, flow, refinement"
    assert found.encoder == "impala_debug"
    known = made.agent.features(torch.from_numpy(pixels.observations), "flow")
    np.testing.assert_allclose(found.values, known.numpy(), atol=1e-6)


def test_separate_encoders_are_a_row_each(pixels, subject):
    made = subject(sharing="separate")
    found = list(features_of(made, pixels))
    assert [features.heads for features in found] == [("critic",), ("flow",), ("refinement",)]
    for features in found:
        known = made.agent.features(torch.from_numpy(pixels.observations), features.heads[0])
        np.testing.assert_allclose(features.values, known.numpy(), atol=1e-6)
    assert not np.allclose(found[0].values, found[1].values)


def test_a_head_that_froze_its_copy_is_a_row_beside_the_others(subject):
    trained_by_both = {"gradients_from": ("critic", "flow")}
    frozen = subject(freeze_bc_flow=True, encoder=trained_by_both)
    assert encoders_of(frozen.agent) == [("critic", "refinement"), ("flow",)]


@pytest.mark.parametrize("algo", AGENTS)
def test_every_method_has_features(pixels, subject, algo):
    found = list(features_of(subject(algo), pixels))
    assert all(features.values.shape == (60, 512) for features in found)
    assert {head for features in found for head in features.heads}


def test_batches_make_no_difference(pixels, subject, monkeypatch):
    whole = next(features_of(subject(), pixels)).values
    monkeypatch.setattr(encoders, "BATCH_SIZE", 7)
    np.testing.assert_allclose(next(features_of(subject(), pixels)).values, whole, atol=1e-6)


def test_a_sample_of_another_shape_is_refused(pixels, subject):
    other = dataclasses.replace(pixels, observations=pixels.observations[:, :8])
    with pytest.raises(UserError, match=r"\(16, 18, 6\).*\(8, 18, 6\)"):
        next(features_of(subject(), other))


def test_a_random_encoder_has_the_architecture_but_not_the_weights(pixels, subject):
    made = subject()
    state = torch.get_rng_state()
    one, same, other = (random_features(made, pixels, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    assert one.name == "random (impala_debug)"
    assert one.values.shape == (60, 512)
    np.testing.assert_array_equal(one.values, same.values)
    trained = next(features_of(made, pixels)).values
    assert not np.allclose(one.values, other.values)
    assert not np.allclose(one.values, trained)


def test_components_of_pixels_keep_what_varies(pixels, monkeypatch):
    monkeypatch.setattr(encoders, "BATCH_SIZE", 16)
    found = pixel_features(pixels)
    assert found.name == "pixels (PCA 39)"  # of 40 training states
    flat = pixels.observations.reshape(60, -1).astype(np.float64)
    train = flat[~pixels.held_out] - flat[~pixels.held_out].mean(0)
    kept = np.square(found.values[~pixels.held_out]).sum() * 255**2
    assert kept == pytest.approx(np.square(train).sum(), rel=1e-3)


def test_layers_lead_from_pixels_to_what_the_head_reads(pixels, subject):
    made = subject(sharing="separate")
    found = layer_features(made.agent, pixels, "flow")
    assert list(found) == ["stack 0", "stack 1", "features"]
    assert found["stack 0"].shape == (60, 4 * 4 * 4)  # 4 channels, maps of 8 x 9 averaged to 4 x 4
    known = list(features_of(made, pixels))[1].values
    np.testing.assert_allclose(found["features"], known, atol=1e-6)
    cka = linear_cka(list(found.values()))
    assert cka[0, 1] < 1 - 1e-3
    assert not any(module._forward_hooks for module in made.agent.modules())


def test_layers_of_a_timm_encoder_are_its_parts(pixels):
    config = EncoderConfig(name="timm:test_vit")
    spec = Spec((16, 18, 6), "uint8", 3, (-1.0, 0.0))
    agent = AGENTS["bc_flow"](spec, AGENTS["bc_flow"].Config(hidden_dims=(8,)), config)
    found = layer_features(agent, pixels, "flow")
    first, *_, last = found
    assert (first, last) == ("backbone", "features")
    assert all(len(values) == 60 for values in found.values())


def test_a_state_has_no_layers_before_it(pixels):
    spec = SPECS["state"]
    agent = AGENTS["bc"](spec, AGENTS["bc"].Config(hidden_dims=(8,)), EncoderConfig())
    rows = np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)
    sample = dataclasses.replace(pixels, observations=rows, frame_stack=1)
    assert list(layer_features(agent, sample, "actor")) == ["features"]
    (found,) = features_of(Subject("bc", 0, agent, EncoderConfig()), sample)
    assert found.encoder == "identity"
    np.testing.assert_array_equal(found.values, rows)
