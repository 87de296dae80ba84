"""ImageNet weights of timm, made to fit the images of a comparison. timm is an optional extra.

Patch and position embeddings of vision transformers are resampled by timm's own functions; the
normalisation that the weights expect is folded into the patch embedding, so that they see the
pixels that they were trained on whatever the data set's normalisation.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from bootstrap.errors import ConfigurationError, DataError
from bootstrap.files import sha256_hex
from bootstrap.models import Model, Timm, ViT
from bootstrap.pretrained import head_names, refuse_mismatches
from bootstrap.shards import Manifest

PATCHES, POSITIONS = "patch_embed.proj", "pos_embed"


@dataclass(frozen=True, kw_only=True)
class TimmWeights:
    """Weights by timm's `name`, such as vit_tiny_patch16_224.augreg_in21k, from a local `file`.

    The file is safetensors, or a pickle of tensors (.pth, .bin), read without running code. Nothing
    is downloaded but with download=True, and then by timm, to its own cache.
    """

    name: str
    file: str = ""
    download: bool = False

    def __post_init__(self) -> None:
        if bool(self.file) == self.download:
            raise ConfigurationError(
                f"timm(name={self.name!r}): give file='...', a local file of its weights, or"
                " download=True; nothing is downloaded unasked"
            )

    def fit(self, model: Model, manifest: Manifest) -> tuple[nn.Module, dict[str, Any]]:
        """`model` for the manifest's images with these weights, and the card's `source`.

        ConfigurationError for another architecture, naming the tensors; DataError for a file that
        cannot be read.
        """
        if not isinstance(model, (ViT, Timm)):
            raise ConfigurationError("weights of timm are for the models vit and timm")
        built = model.build(manifest.image_shape, manifest.n_classes)
        read, sha256 = self._read()
        fitted = resampled(read, built)
        head = head_names(built)
        body = {name: t.float() for name, t in fitted.items() if name not in head}
        own = {name: t for name, t in built.state_dict().items() if name not in head}
        refuse_mismatches(own, body, self.file or self.name, "weights of timm")
        mean, deviation = self._normalisation()
        is_folded = f"{PATCHES}.bias" in body
        if is_folded:
            fold_normalisation(body, mean, deviation, manifest)
        built.load_state_dict(body | {name: built.state_dict()[name] for name in head})
        source: dict[str, Any] = {
            "name": self.name,
            "timm": version("timm"),
            "file": Path(self.file).name or None,
            "sha256": sha256,
            "resampled": sorted(n for n in body if n in read and read[n].shape != body[n].shape),
            "mean": list(mean),
            "deviation": list(deviation),
            "normalisation_is_folded_in": is_folded,
        }
        return built, source

    def _read(self) -> tuple[dict[str, Tensor], str | None]:
        """The tensors by name, and the file's sha256."""
        if self.download:
            return self._download(), None
        path = Path(self.file)
        if not path.is_file():
            raise ConfigurationError(f"timm weights {path}: there is no such file")
        content = path.read_bytes()
        try:
            if path.suffix == ".safetensors":
                return load(content), sha256_hex(content)
            found = torch.load(path, map_location="cpu", weights_only=True)
        except (SafetensorError, RuntimeError, ValueError, EOFError, OSError) as error:
            raise DataError(f"{path}: not a file of tensors ({error})") from None
        except Exception as error:  # the unpickler has its own, which refuses code
            raise DataError(f"{path}: refused, it holds more than tensors ({error})") from None
        return found, sha256_hex(content)

    def _download(self) -> dict[str, Tensor]:
        import timm

        try:
            return dict(timm.create_model(self.name, pretrained=True).state_dict())
        except Exception as error:  # the hub's, the network's, or an unknown name
            raise DataError(f"timm cannot give {self.name}: {error}") from error

    def _normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and deviation with which the weights were trained, by timm's own record."""
        import timm

        config = timm.get_pretrained_cfg(self.name)
        if config is None:
            raise ConfigurationError(f"timm has no weights of the name {self.name!r}")
        return tuple(config.mean), tuple(config.std)


def resampled(tensors: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The tensors with patch and position embeddings of the size that a vision transformer has."""
    import timm
    from timm.models.vision_transformer import checkpoint_filter_fn

    if not isinstance(model, timm.models.VisionTransformer):
        return tensors
    return dict(checkpoint_filter_fn(tensors, model))


def fold_normalisation(
    body: dict[str, Tensor],
    mean: tuple[float, ...],
    deviation: tuple[float, ...],
    manifest: Manifest,
) -> None:
    """Let a patch embedding take images normalised by the data set instead of by mean, deviation.

    (u - m) / s of pixels u = x S + M is (S / s) x + (M - m) / s: exact, as patches have no padding.
    """
    m, s, own_m, own_s = map(torch.tensor, (mean, deviation, manifest.mean, manifest.deviation))
    if len(m) != len(own_m):
        raise ConfigurationError(
            f"the weights take {len(m)} channels, the images have {len(own_m)}"
        )
    weight = body[f"{PATCHES}.weight"]
    shift = (weight.sum(dim=(2, 3)) * ((own_m - m) / s)).sum(dim=1)
    body[f"{PATCHES}.bias"] = body[f"{PATCHES}.bias"] + shift
    body[f"{PATCHES}.weight"] = weight * (own_s / s)[None, :, None, None]
