"""Any convolutional network or vision transformer of timm as an encoder of small images."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from deflow_vision.networks.gelu import gelu
from deflow_vision.types import UserError

log = logging.getLogger(__name__)

MAX_STRIDE = 16
"""Pixels a cell of the feature map: of 64x64 pixels, 4x4 cells are left, or more."""
MAX_FLAT = 2048
"""Features of the flattened map, as many as those of `impala`."""
GOOD_CHOICES = "timm:convnext_atto, timm:convnextv2_atto, timm:vit_tiny_patch16_224"


class TimmEncoder(nn.Module):
    """Feature map of a timm model, LayerNorm, 1x1 convolution, flattened, Dense, GELU.

    Nothing is pooled over the image, which would lose where things are: the map is kept at a stride
    of at most 16, by `output_stride` where the family has it, otherwise by leaving out its last
    stages. Vision transformers are built for the size of the image. Nothing is ever downloaded.

    Batch statistics have no place in temporal-difference learning (the two halves of the loss would
    be normalised differently), so BatchNorm always uses its stored ones, and models that have it
    need weights. Dropout and stochastic depth are always off.

    Args:
        name: a model of `timm.list_models()`, with or without the tag of its weights.
        observation_shape: (H, W, C * frame_stack) with C = 3.
        feature_dim: D.
        weights: a local safetensors file in timm's own format.
        freeze: whether the timm model stays as it is loaded; the layers after it are trained.

    Raises:
        UserError: the model is unknown, does not run on such images or needs weights, or the
            weights are not those of the model.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        name: str,
        observation_shape: tuple[int, int, int],
        feature_dim: int = 512,
        *,
        weights: Path | None = None,
        freeze: bool = False,
    ) -> None:
        super().__init__()
        height, width, channels = observation_shape
        if channels % 3:
            raise UserError(
                f"timm encoders take stacks of RGB frames; observations {observation_shape} have "
                f"{channels} channels. Use --encoder.name impala_small."
            )
        _check_name(name)
        if weights is not None:
            _check_weights(name, weights)
        self.feature_dim = feature_dim
        self.backbone, self.image_size = _build(name, (height, width), channels, weights)
        self.name, self.weights = name, weights
        self.backbone.requires_grad_(not freeze)
        self.train()

        pretrained: dict[str, Any] = self.backbone.pretrained_cfg  # type: ignore[assignment]
        for key in ("mean", "std"):
            values = torch.tensor(pretrained[key]).repeat(channels // 3).view(1, -1, 1, 1)
            self.register_buffer(key, values, persistent=False)
        self._resize: Callable[[Tensor], Tensor] | None = None
        if self.image_size != (height, width):
            from torchvision.transforms.v2.functional import resize_image

            log.info("timm:%s sees images enlarged to %dx%d", name, *self.image_size)
            self._resize = partial(resize_image, size=list(self.image_size), antialias=True)

        with torch.no_grad():
            cells = self._feature_map(torch.zeros(1, *observation_shape, dtype=torch.uint8))
        _, depth, rows, columns = cells.shape
        narrow = max(1, min(depth, MAX_FLAT // (rows * columns)))
        # Families differ in the scale of their features by orders of magnitude.
        self.norm = nn.GroupNorm(1, depth)
        self.reduce = nn.Conv2d(depth, narrow, 1) if narrow < depth else nn.Identity()
        self.dense = nn.Linear(narrow * rows * columns, feature_dim)
        for layer in (self.reduce, self.dense):
            if not isinstance(layer, nn.Identity):
                nn.init.xavier_uniform_(layer.weight)
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def check_trainable(self) -> None:
        """Refuse BatchNorm without weights.

        Not when the module is made: a restored policy brings its statistics in its checkpoint.

        Raises:
            UserError: the model would be trained with statistics of nothing.
        """
        if self.weights is None and any(_is_batch_norm(m) for m in self.backbone.modules()):
            raise UserError(
                f"timm:{self.name} has BatchNorm, which does not fit temporal-difference learning "
                "from scratch. Pass --encoder.weights FILE.safetensors (its statistics are then "
                f"kept), or choose a model without: {GOOD_CHOICES}."
            )

    def forward(self, observations: UInt8[Tensor, "B H W C"]) -> Float[Tensor, "B D"]:
        """Encode observations, in [0, 255], into features."""
        return gelu(self.dense(self.reduce(self.norm(self._feature_map(observations))).flatten(1)))

    def train(self, mode: bool = True) -> TimmEncoder:
        """Set the mode, but never that of BatchNorm, dropout and stochastic depth."""
        super().train(mode)
        for module in self.backbone.modules():
            if _is_batch_norm(module) or "Drop" in type(module).__name__:
                module.eval()
        return self

    def _feature_map(self, observations: Tensor) -> Tensor:
        images = observations.permute(0, 3, 1, 2)  # (B, C, H, W)
        images = images.to(torch.float32, memory_format=torch.channels_last) / 255
        if self._resize is not None:
            images = self._resize(images)
        features: Tensor = self.backbone((images - self.mean) / self.std)[-1]
        channels_last = getattr(self.backbone, "output_fmt", "NCHW") == "NHWC"
        return features.permute(0, 3, 1, 2) if channels_last else features


def _is_batch_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm)


def _check_name(name: str) -> None:
    import timm

    if not timm.is_model(name):  # names that start with "hf-hub:" would download
        near = difflib.get_close_matches(name, timm.list_models(), n=5, cutoff=0.4)
        raise UserError(
            f"timm has no model {name!r}; nearest: {', '.join(near) or 'none'}. "
            f"Good ones for small images: {GOOD_CHOICES}."
        )


def _build(
    name: str, size: tuple[int, int], channels: int, weights: Path | None
) -> tuple[nn.Module, tuple[int, int]]:
    """The model up to its last map of fine enough stride, and the image size it is built for."""
    import timm

    pretrained = timm.get_pretrained_cfg(name)
    arguments: dict[str, Any] = {"features_only": True, "in_chans": channels}
    if weights is not None:
        # timm fits the first convolution to the stack, and position embeddings to the image.
        arguments |= {"pretrained": True}
        arguments |= {"pretrained_cfg_overlay": {"file": str(weights), "custom_load": False}}

    def create(size: tuple[int, int], **options: Any) -> Any:
        if pretrained.fixed_input_size:
            options["img_size"] = size
        try:
            return timm.create_model(name, output_stride=MAX_STRIDE, **arguments, **options)
        except (TypeError, AssertionError):  # so the families say that they do not have it
            return timm.create_model(name, **arguments, **options)

    def fit(height: int, width: int) -> tuple[nn.Module, tuple[int, int]]:
        info = create((height, width)).feature_info
        stages = zip(info.out_indices, info.reduction(), strict=True)
        fine = [(index, stride) for index, stride in stages if stride <= MAX_STRIDE]
        if not fine:
            raise ValueError(f"a cell of its map is {info.reduction()[-1]} pixels wide")
        index, stride = fine[-1]
        if pretrained.fixed_input_size:  # in whole patches, such as 70x70 pixels of 14x14
            height, width = -(-height // stride) * stride, -(-width // stride) * stride
        model: nn.Module = create((height, width), out_indices=(index,))
        model.eval()(torch.zeros(1, channels, height, width))
        return model, (height, width)

    try:
        return fit(*size)
    except (RuntimeError, AssertionError, TypeError, ValueError):
        try:  # enlarge the images to what the model was made for
            return fit(*pretrained.input_size[-2:])
        except (RuntimeError, AssertionError, TypeError, ValueError) as error:
            loaded = "" if weights is None else f" with {weights}"
            raise UserError(
                f"timm:{name}{loaded} does not fit images of {size[0]}x{size[1]}: "
                f"{' '.join(str(error).split())} (models that do: {GOOD_CHOICES})"
            ) from error


def _check_weights(name: str, path: Path) -> None:
    """Every array of the model must be in the file, and nothing else but a classifier."""
    import timm

    if path.suffix != ".safetensors" or not path.is_file():
        raise UserError(
            f"encoder.weights is {path}: give a local .safetensors file "
            "(pickled weights can run code and are not read)"
        )
    model = timm.create_model(name)
    classifiers = model.pretrained_cfg.get("classifier") or ()
    classifiers = (classifiers,) if isinstance(classifiers, str) else tuple(classifiers)
    try:
        with safe_open(path, framework="pt") as file:
            found = set(file.keys())
    except SafetensorError as error:
        raise UserError(f"{path} is no safetensors file, or is damaged: {error}") from None
    expected = set(model.state_dict())
    for keys in (found, expected):
        keys -= {key for key in keys if key.startswith(classifiers)}
    if found != expected:
        raise UserError(
            f"{path} does not hold the weights of timm:{name}: "
            f"{len(expected - found)} arrays are missing {_some(expected - found)}, "
            f"{len(found - expected)} are strange {_some(found - expected)}. Files from timm's "
            "pages on Hugging Face fit, or save_file(timm_model.state_dict(), path)."
        )
    log.info(
        "weights of timm:%s from %s (timm's own have the licence %s)",
        name,
        path,
        model.pretrained_cfg.get("license") or "of their page",
    )


def _some(keys: set[str]) -> str:
    return f"({', '.join([*sorted(keys)[:3], *(['...'] if len(keys) > 3 else [])])})"
