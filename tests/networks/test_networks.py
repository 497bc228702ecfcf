import math
from pathlib import Path

import pytest
import torch

from deflow_vision.networks.critics import Critic, Value
from deflow_vision.networks.ema import ema_copy, ema_update
from deflow_vision.networks.encoders import EncoderConfig, make_encoder
from deflow_vision.networks.impala import Impala, same_max_pool
from deflow_vision.networks.mlp import MLP, EnsembleMLP, linear_gelu
from deflow_vision.types import Spec

STATE = Spec((5,), "float32", 3, (-1.0, 0.0))
PIXELS = Spec((16, 18, 6), "uint8", 3, (-1.0, 0.0))


def test_an_ensemble_equals_its_members_one_by_one():
    critic = Critic(5, 3, (11, 13), num_critics=2)
    features, actions = torch.randn(7, 5), torch.randn(7, 3)
    together = critic(features, actions)
    assert together.shape == (2, 7)
    for member in range(2):
        alone = MLP(8, (11, 13), 1, layer_norm=True)
        stacked = critic.mlp
        with torch.no_grad():
            for i, layer in enumerate([*alone.hidden, alone.out]):
                layer.weight.copy_(stacked.weights[i][member].T)
                layer.bias.copy_(stacked.biases[i][member, 0])
        value = alone(torch.cat([features, actions], -1)).squeeze(-1)
        torch.testing.assert_close(together[member], value, rtol=1e-5, atol=1e-6)


def test_a_value_normalises_after_each_activation_or_its_input_alone():
    features = torch.randn(7, 5)
    hidden, alone = Value(5, (11,)), Value(5, (11,), norm="input", activation=torch.relu)
    assert not torch.allclose(hidden(3 * features + 1), hidden(features), rtol=1e-3)
    torch.testing.assert_close(alone(3 * features + 1), alone(features), rtol=1e-4, atol=1e-4)
    normed = (features - features.mean(-1, keepdim=True)) / features.std(-1, False, keepdim=True)
    layer, out = alone.mlp.hidden[0], alone.mlp.out
    torch.testing.assert_close(
        alone(features), out(layer(normed).relu()).squeeze(-1), rtol=1e-4, atol=1e-5
    )


def test_ensemble_members_start_different():
    weights = Critic(5, 3, (11,)).mlp.weights[0]
    assert not torch.equal(weights[0], weights[1])


def test_kernels_are_xavier_uniform_and_biases_zero():
    critic = Critic(40, 8, (500,))
    bound = math.sqrt(6 / (48 + 500))
    weight = critic.mlp.weights[0]
    assert bound * 0.99 < weight.abs().max() <= bound
    assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not any(bias.any() for bias in critic.mlp.biases)


@pytest.mark.parametrize("shape", [(8, 8), (7, 8), (5, 5), (16, 18), (2, 2)])
@pytest.mark.parametrize("grad", [True, False])
def test_same_max_pool_pads_as_the_reference(shape, grad):
    x = torch.randn(2, 3, *shape)
    with torch.set_grad_enabled(grad):
        pooled = same_max_pool(x)
    for axis, size in zip((2, 3), shape, strict=True):
        assert pooled.shape[axis] == (size + 1) // 2
    # Windows of SAME padding start at 2i - floor(total padding / 2).
    offsets = [((-(-n // 2) - 1) * 2 + 3 - n) // 2 for n in shape]
    for i in range(pooled.shape[2]):
        for j in range(pooled.shape[3]):
            top, left = 2 * i - offsets[0], 2 * j - offsets[1]
            window = x[:, :, max(top, 0) : top + 3, max(left, 0) : left + 3]
            assert torch.equal(pooled[:, :, i, j], window.amax((2, 3)))


def test_impala_small_has_the_references_shapes():
    encoder = Impala((64, 64, 9), num_blocks=1)
    assert encoder.dense.weight.shape == (512, 8 * 8 * 32)
    assert encoder(torch.zeros(2, 64, 64, 9, dtype=torch.uint8)).shape == (2, 512)


@pytest.mark.parametrize("name", ["impala", "impala_small", "impala_large", "impala_debug"])
def test_impala_encoders_map_images_to_their_feature_dim(name):
    encoder = make_encoder(PIXELS, EncoderConfig(name=name))
    images = torch.randint(0, 256, (2, 16, 18, 6), dtype=torch.uint8)
    assert encoder(images).shape == (2, encoder.feature_dim)


def test_the_identity_returns_the_state():
    states = torch.randn(7, 5)
    encoder = make_encoder(STATE, EncoderConfig())
    assert encoder(states) is states
    assert encoder.feature_dim == 5


@pytest.mark.parametrize(
    ("spec", "config", "words"),
    [
        (STATE, EncoderConfig(name="impala"), "state observations"),
        (PIXELS, EncoderConfig(name="identity"), "pixel observations"),
        (PIXELS, EncoderConfig(name="impale"), "impala_small"),
        (PIXELS, EncoderConfig(name="impala", weights=Path("w.safetensors")), "timm:<model>"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(spec, config, words):
    with pytest.raises(ValueError, match=words):
        make_encoder(spec, config)


def test_a_slow_copy_starts_equal_and_moves_by_tau():
    online = MLP(3, (4,), 2)
    slow = ema_copy(online)
    assert not any(p.requires_grad for p in slow.parameters())
    with torch.no_grad():
        online.out.bias.fill_(10.0)
    ema_update(slow, online, 0.1)
    torch.testing.assert_close(slow.out.bias, torch.ones(2))
    assert torch.equal(slow.out.weight, online.out.weight)


@pytest.mark.parametrize("autocast", [False, True])
def test_layers_without_gradient_equal_those_with_one(autocast):
    layer = torch.nn.Linear(7, 5)
    x = 3 * torch.randn(11, 7)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        with_gradient = linear_gelu(x, layer.weight, layer.bias)
        with torch.no_grad():
            without = linear_gelu(x, layer.weight, layer.bias)
    assert with_gradient.dtype == without.dtype
    tolerance = {"rtol": 0.02, "atol": 0.02} if autocast else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(without, with_gradient.detach(), **tolerance)


def test_a_shared_part_of_the_input_gives_what_the_whole_input_gives():
    mlp = EnsembleMLP(2, 8, (11, 13), 1, layer_norm=True)
    x = torch.randn(7, 8)
    given = mlp.share(x[:, :3])
    torch.testing.assert_close(mlp(x[:, 3:].expand(2, 7, 5), given), mlp(x), rtol=1e-4, atol=1e-5)
