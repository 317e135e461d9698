r"""Make FairFace's published ResNet-34 a model folder that facescan can ask.

    python -m recipes.convert_fairface --weights res34_fair_align_multi_7_20190809.pt \
        --output-dir fairface-resnet34
    facescan run --model fairface-resnet34 --attributes race,gender,age ...

The published file is a pickle. It is opened here and nowhere else, by `torch.load` with
`weights_only=True`, which makes tensors and runs no code of the file's. The order of the 18 outputs
is that of dchen236/FairFace `predict.py`: 7 races, 2 genders, 9 ages.
"""

import json
from pathlib import Path
from typing import Annotated

import typer
import yaml

from facescan import attributes

RACES = (
    *("White", "Black", "Latino_Hispanic", "East Asian", "Southeast Asian", "Indian"),
    "Middle Eastern",
)
"""In the order of the network's outputs."""


def heads() -> dict[str, list[str]]:
    """Attribute -> labels in the order of the outputs."""
    ages = attributes.load("age").label_set("age-9").labels
    return {"race": list(RACES), "gender": ["Male", "Female"], "age": list(ages)}


def card() -> dict[str, object]:
    """What the folder's `facescan.yaml` says."""
    return {
        "description": "FairFace's ResNet-34 for seven races (arXiv 1908.04913), on aligned faces "
        "with little margin.",
        "engine": "classifier",
        "protocol": "label-probabilities",
        "attributes": list(heads()),
        "checkpoint": {"path": "./"},
        "engine_options": {"architecture": "resnet34", "heads": heads()},
        "licence": "CC BY 4.0",
        "source": "https://github.com/dchen236/FairFace",
    }


def convert(weights: Path, output_dir: Path) -> None:
    """Write the folder.

    Raises:
        typer.BadParameter: the file is not such a network.
    """
    import pickle

    import torch
    from safetensors.torch import save_file
    from torchvision.models import resnet34

    outputs = sum(map(len, heads().values()))
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
        resnet34(weights=None, num_classes=outputs).load_state_dict(state)
    except (OSError, RuntimeError, pickle.UnpicklingError, TypeError, AttributeError) as error:
        raise typer.BadParameter(
            f"{weights}: not the state of a ResNet-34 with {outputs} outputs: {error}"
        ) from error
    output_dir.mkdir(parents=True)
    save_file(
        {name: value.contiguous() for name, value in state.items()},
        output_dir / "model.safetensors",
    )
    (output_dir / "config.json").write_text(json.dumps({"architectures": ["ResNet34"]}) + "\n")
    (output_dir / "facescan.yaml").write_text(yaml.safe_dump(card(), sort_keys=False))


def main(
    weights: Annotated[Path, typer.Option(help="The published .pt file.", exists=True)],
    output_dir: Annotated[Path, typer.Option(help="Folder to make; must not be there yet.")],
) -> None:
    """Convert, and say how to ask the model."""
    if output_dir.exists():
        raise typer.BadParameter(f"{output_dir}: is there already")
    convert(weights, output_dir)
    print(f"facescan run --model {output_dir} --attributes {','.join(heads())} ...")


if __name__ == "__main__":
    typer.run(main)
