"""Tests of timm models as encoders."""

import copy

import pytest
import timm
import torch
from safetensors.torch import save_file

from deflow_vision.networks.encoders import EncoderConfig, make_encoder
from deflow_vision.networks.timm_encoder import TimmEncoder
from deflow_vision.types import Spec, UserError

SHAPE = (64, 64, 9)
WITHOUT_BATCH_NORM = ["test_convnext", "test_vit", "test_nfnet", "test_mambaout"]


def observations(shape=SHAPE, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (batch, *shape), dtype=torch.uint8, generator=generator)


def weights_of(name, path, **changes):
    """A file like those on Hugging Face, with random values of some scale in all arrays."""
    torch.manual_seed(1)
    state = timm.create_model(name).state_dict()
    for key, value in state.items():
        if value.is_floating_point() and not key.endswith("running_var"):
            state[key] = value + 0.05 * torch.randn_like(value)
    state |= changes
    save_file({k: v.contiguous() for k, v in state.items() if v is not None}, path)
    return path


@pytest.mark.parametrize("name", WITHOUT_BATCH_NORM)
def test_a_model_gives_features_of_the_asked_width(name):
    encoder = TimmEncoder(name, SHAPE, feature_dim=7)
    features = encoder(observations())
    assert encoder.feature_dim == 7
    assert features.shape == (2, 7)
    assert features.dtype == torch.float32


@pytest.mark.parametrize("name", WITHOUT_BATCH_NORM)
def test_every_parameter_gets_a_gradient(name):
    encoder = TimmEncoder(name, SHAPE)
    encoder(observations()).square().sum().backward()
    assert [key for key, p in encoder.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", [*WITHOUT_BATCH_NORM, "test_resnet", "test_efficientnet"])
def test_the_map_is_kept_at_a_stride_of_sixteen(name, tmp_path):
    encoder = TimmEncoder(name, (64, 96, 3), weights=weights_of(name, tmp_path / "w.safetensors"))
    assert encoder._feature_map(observations((64, 96, 3))).shape[-2:] == (4, 6)


def test_wide_maps_are_narrowed_before_they_are_flattened():
    encoder = TimmEncoder("test_nfnet", SHAPE)
    assert encoder.dense.in_features == 2048
    assert TimmEncoder("test_vit", SHAPE).dense.in_features == 64 * 4 * 4


def test_features_tell_where_things_are():
    encoder = TimmEncoder("test_convnext", SHAPE)
    pictures = torch.zeros(2, *SHAPE, dtype=torch.uint8)
    pictures[0, 16:32, 16:32] = 255
    pictures[1, 32:48, 32:48] = 255
    first, second = encoder(pictures)
    assert (first - second).abs().max() > 0.01


def test_the_registered_name_builds_the_encoder():
    spec = Spec(SHAPE, "uint8", action_dim=5, reward_range=(-1.0, 0.0))
    encoder = make_encoder(spec, EncoderConfig(name="timm:test_convnext"))
    assert isinstance(encoder, TimmEncoder)
    assert encoder(observations()).shape == (2, 512)


def test_images_are_normalised_by_the_statistics_of_the_model_and_its_tag():
    mean = timm.get_pretrained_cfg("test_convnext").mean
    encoder = TimmEncoder("test_convnext", SHAPE)
    assert encoder.mean.flatten().tolist() == pytest.approx([*mean, *mean, *mean])
    assert "mean" not in encoder.state_dict()
    half = TimmEncoder("vit_tiny_patch16_224.augreg_in21k", (32, 32, 3))
    assert half.mean.flatten().tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet"])
def test_the_same_observations_give_the_same_features_in_any_mode(name, tmp_path):
    encoder = TimmEncoder(name, SHAPE, weights=weights_of(name, tmp_path / "w.safetensors"))
    expected = encoder(observations())
    assert torch.equal(encoder.eval()(observations()), expected)
    assert torch.equal(encoder.train()(observations()), expected)


def test_stochastic_depth_is_off():
    encoder = TimmEncoder("swin_tiny_patch4_window7_224", (32, 32, 3)).train()
    drops = [m for m in encoder.modules() if "DropPath" in type(m).__name__]
    assert drops
    assert not any(module.training for module in drops)


def test_a_state_dict_round_trip_keeps_the_features():
    torch.manual_seed(0)
    first, second = (TimmEncoder("test_convnext", SHAPE) for _ in range(2))
    assert not torch.equal(first(observations()), second(observations()))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(observations()), second(observations()))


def test_an_encoder_can_be_copied():
    encoder = TimmEncoder("vit_tiny_patch16_224", (24, 24, 3))
    copied = copy.deepcopy(encoder)
    assert torch.equal(copied(observations((24, 24, 3))), encoder(observations((24, 24, 3))))


def test_a_patch_that_does_not_divide_the_image_enlarges_it():
    encoder = TimmEncoder("eva02_tiny_patch14_224", (32, 40, 3))
    assert encoder.image_size == (42, 42)
    assert encoder(observations((32, 40, 3))).shape == (2, 512)


@pytest.mark.parametrize("name", ["test_convnext", "test_vit", "test_resnet"])
def test_loaded_weights_give_the_features_of_the_timm_model(name, tmp_path):
    path = weights_of(name, tmp_path / "w.safetensors")
    encoder = TimmEncoder(name, (64, 64, 3), weights=path)
    size = {"img_size": 64} if name == "test_vit" else {"output_stride": 16}
    overlay = {"file": str(path)}
    model = timm.create_model(
        name, pretrained=True, pretrained_cfg_overlay=overlay, features_only=True, **size
    ).eval()
    cfg = model.pretrained_cfg
    mean, std = (torch.tensor(cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    images = observations((64, 64, 3)).permute(0, 3, 1, 2) / 255
    with torch.no_grad():
        expected = model((images - mean) / std)[-1]
        found = encoder._feature_map(observations((64, 64, 3)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_stack_of_equal_frames_looks_to_loaded_weights_as_one_frame(tmp_path):
    path = weights_of("test_resnet", tmp_path / "w.safetensors")
    frame = observations((64, 64, 3))
    one = TimmEncoder("test_resnet", (64, 64, 3), weights=path)._feature_map(frame)
    three = TimmEncoder("test_resnet", SHAPE, weights=path)._feature_map(frame.repeat(1, 1, 1, 3))
    torch.testing.assert_close(three, one, rtol=1e-3, atol=1e-4)


def test_weights_without_a_classifier_fit(tmp_path):
    path = weights_of(
        "test_vit", tmp_path / "w.safetensors", **{"head.weight": None, "head.bias": None}
    )
    assert TimmEncoder("test_vit", SHAPE, weights=path)(observations()).shape == (2, 512)


def test_batch_norm_keeps_its_loaded_statistics_in_training(tmp_path):
    path = weights_of("test_resnet", tmp_path / "w.safetensors")
    encoder = TimmEncoder("test_resnet", SHAPE, weights=path).train()
    before = {key: value.clone() for key, value in encoder.named_buffers()}
    encoder(observations()).sum().backward()
    assert any(key.endswith("running_mean") for key in before)
    for key, value in encoder.named_buffers():
        assert torch.equal(value, before[key])


def test_batch_norm_is_refused_for_training_without_weights():
    encoder = TimmEncoder("test_resnet", SHAPE)  # a policy can be restored into it
    with pytest.raises(UserError, match=r"BatchNorm.*encoder\.weights.*timm:convnext_atto"):
        encoder.check_trainable()
    TimmEncoder("test_convnext", SHAPE).check_trainable()


def test_a_damaged_weights_file_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"not safetensors at all")
    with pytest.raises(UserError, match="damaged"):
        TimmEncoder("test_convnext", SHAPE, weights=path)


def test_a_frozen_model_takes_no_gradient_but_its_head_does(tmp_path):
    path = weights_of("test_convnext", tmp_path / "w.safetensors")
    encoder = TimmEncoder("test_convnext", SHAPE, weights=path, freeze=True)
    encoder(observations()).sum().backward()
    assert all(parameter.grad is None for parameter in encoder.backbone.parameters())
    assert encoder.dense.weight.grad is not None


@pytest.mark.parametrize(
    ("name", "near"),
    [("convnext_ato", "convnext_atto"), ("hf-hub:timm/test_vit", "nearest"), ("", "nearest")],
)
def test_unknown_models_are_refused_and_nothing_is_downloaded(name, near):
    with pytest.raises(ValueError, match=f"no model .*{near}"):
        TimmEncoder(name, SHAPE)


def test_models_with_coarse_maps_are_refused():
    with pytest.raises(ValueError, match=r"32 pixels wide.*timm:convnext_atto"):
        TimmEncoder("mixer_s32_224", (64, 64, 3))


def test_frames_that_are_not_rgb_are_refused():
    with pytest.raises(ValueError, match="4 channels"):
        TimmEncoder("test_convnext", (64, 64, 4))


def test_pickled_and_missing_weights_are_refused(tmp_path):
    (tmp_path / "w.pth").write_bytes(b"")
    for name in ("w.pth", "none.safetensors"):
        with pytest.raises(ValueError, match="give a local"):
            TimmEncoder("test_convnext", SHAPE, weights=tmp_path / name)


def test_weights_with_missing_or_strange_arrays_are_refused(tmp_path):
    path = weights_of(
        "test_vit", tmp_path / "a.safetensors", **{"norm.bias": None, "extra": torch.zeros(2)}
    )
    with pytest.raises(ValueError, match=r"1 arrays are missing \(norm.bias\), 1 are strange"):
        TimmEncoder("test_vit", SHAPE, weights=path)


def test_weights_of_other_shapes_are_refused(tmp_path):
    path = weights_of("test_vit", tmp_path / "a.safetensors", **{"norm.bias": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"does not fit .*norm\.bias"):
        TimmEncoder("test_vit", SHAPE, weights=path)
