"""``python -m python_ref.analysis``: every tool writes a picture, and says what is wrong."""

import pytest
import torch
from click.testing import CliRunner, Result

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
Image = pytest.importorskip("PIL.Image")

from python_ref.analysis.__main__ import main  # noqa: E402
from python_ref.models import create_model  # noqa: E402
from python_ref.models.weights import save_weights  # noqa: E402

TOOLS = {
    "attention": ["--place", "0.2", "0.7"],
    "gradcam": ["--class", "7"],
    "fourier": [],
    "interaction": ["--patch", "32", "--pairs", "1", "--contexts", "1"],
}


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("model", ["emsnet_xxtiny", "accvit_femto"])
def test_a_tool_draws_the_photograph(tool, model, tmp_path):
    output = tmp_path / "drawn.png"
    result = invoke(tool, "--model", model, "--size", 64, "--output", output, *TOOLS[tool])
    assert result.exit_code == 0, result.output
    assert f"of {model}: {output}" in result.output
    with Image.open(output) as picture:
        colours = picture.convert("RGB").getcolors(maxcolors=1 << 24)
    assert len(colours) > 100


def test_a_tool_takes_a_picture_and_trained_weights(tmp_path):
    photo, weights, output = (tmp_path / name for name in ("a.png", "b.safetensors", "c.svg"))
    Image.effect_noise((70, 90), 64).save(photo)
    save_weights(create_model("emsnet_xxtiny"), weights)
    arguments = ("--image", photo, "--checkpoint", weights, "--size", 64, "--output", output)
    result = invoke("gradcam", *arguments)
    assert result.exit_code == 0, result.output
    assert output.read_text().count("<image") == 1 + 3  # the photograph, and three classes


def test_the_seed_decides_the_picture(tmp_path):
    drawn = []
    for seed in (0, 0, 1):
        output = tmp_path / "drawn.png"
        invoke("gradcam", "--size", 64, "--seed", seed, "--output", output)
        drawn.append(output.read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("attention", "--model", "emsnet_tinny"), "did you mean emsnet_tiny"),
        (("attention", "--model", "resnet18", "--size", "32"), "no attention between places"),
        (("gradcam", "--class", "1000", "--size", "32"), "one index below 1000"),
        (("gradcam", "--image", __file__), "test_analysis_command.py"),
    ],
)
def test_mistakes_are_usage_errors(arguments, message, tmp_path):
    result = invoke(*arguments, "--output", tmp_path / "drawn.png")
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_weights_of_another_model_are_refused(tmp_path):
    torch.save(create_model("emsnet_xxtiny", row="gated").state_dict(), tmp_path / "weights.pt")
    arguments = ("--checkpoint", tmp_path / "weights.pt", "--output", tmp_path / "drawn.png")
    result = invoke("fourier", "--size", 64, *arguments)
    assert result.exit_code == 2
    assert "does not fit this EMSNet" in result.output
