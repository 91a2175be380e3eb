"""All models together: names, hints, counts, acceleration, and what the reference may import."""

import ast
import warnings
from pathlib import Path

import pytest
import torch
from model_checks import TABLES

import python_ref
from hybrid_kernels import models
from hybrid_kernels.count import convention_name, markdown
from python_ref.counting import CONVENTIONS, count
from python_ref.models import create_model, list_models

BASELINES = [
    *("resnet18", "resnet50", "pvt_v2_b0", "pvt_v2_b1", "pvt_v2_b2", "p2t_tiny", "shunted_t"),
    *("swin_t", "convnext_t", "topformer_t", "topformer_b", "coat_tiny", "coat_small"),
]
NAMES = [
    *(f"accvit_{size}" for size in ("femto", "pico", "nano", "tiny", "small", "base")),
    *(f"{mixer}cvt_{depth}" for mixer in ("", "mrl_", "cq_mrl_", "cq_") for depth in (13, 21)),
    *("swin_s", "mrl_swin_t", "mrl_swin_s", "mhvn", "gc_mhvn", "mcga"),
    *BASELINES,
    *(f"{name}_mscsa" for name in BASELINES),
    *(f"emsnet_{size}" for size in ("xxtiny", "xtiny", "xtiny_c192", "tiny")),
    *(f"mat_{number}" for number in range(1, 6)),
    *(f"partialformer_b{number}" for number in range(5)),
]


def test_all_names():
    assert list_models() == sorted(NAMES)
    assert list_models("mat*") == [f"mat_{number}" for number in range(1, 6)]
    assert list_models("*vit_t?ny") == ["accvit_tiny"]


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("accvit_tinny", "accvit_tiny"),
        ("partialformer_5", "partialformer_b"),
        ("mrl_cvt13", "mrl_cvt_13"),
        ("pvtv2_b0_mscsa", "pvt_v2_b0_mscsa"),
        ("MAT_1", "mat_1"),
    ],
)
def test_unknown_names_suggest_the_nearest(wrong, nearest):
    with pytest.raises(ValueError, match=f"no model is called '{wrong}'; did you mean {nearest}"):
        create_model(wrong)


def test_names_that_resemble_none_point_to_the_list():
    with pytest.raises(ValueError, match=r"list_models\(\) names all"):
        create_model("42")


@pytest.mark.parametrize("name", NAMES)
def test_every_model_is_accelerated_put_back_and_counted(name):
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # none of its ops has a kernel yet
        model = models.create_model(name, backend="auto").eval()
        models.accelerate(model, "reference")
        assert models.accelerated_ops(model) == {}
        counted = count(model, torch.empty(1, 3, 64, 96))
    assert counted.parameters > 1e6
    assert counted.total("macs") > 1e6


@pytest.mark.parametrize("name", NAMES)
def test_feature_info_tells_widths_and_strides(name):
    with torch.device("meta"):
        model = create_model(name, features_only=True).eval()
        maps = model(torch.empty(1, 3, 64, 96))
    found = [(m.shape[1], 64 // m.shape[2], 96 // m.shape[3]) for m in maps]
    assert found == [(info.channels, info.stride, info.stride) for info in model.feature_info]


def imported_packages(path: Path) -> set[str]:
    """First names of everything that a file imports, at its top or inside functions."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append(node.module)
    return {name.partition(".")[0] for name in names}


def test_the_reference_needs_nobody_elses_models_and_no_kernels():
    root = Path(python_ref.__file__).parent
    found = {path: imported_packages(path) for path in root.rglob("*.py")}
    assert any("einops" in packages for packages in found.values())
    forbidden = {"hybrid_kernels", "timm", "torchvision", "transformers"}
    assert not {
        path: packages & forbidden for path, packages in found.items() if packages & forbidden
    }


def test_tables_hold_every_published_row_and_no_other():
    """What a row says, the tests of its family compare."""
    rows = (line.startswith("| ") and not line.startswith("| table") for line in TABLES)
    found = ["row" if is_row else line for is_row, line in zip(rows, TABLES, strict=True)]
    assert found == list(markdown(lambda row: "row"))


def test_conventions_are_named_by_what_they_change():
    assert [convention_name(weights) for weights in CONVENTIONS.values()] == list(CONVENTIONS)
    weights = CONVENTIONS["fvcore"] | {"pool": 1, "attention": 0}
    assert convention_name(weights) == "fvcore, attention 0, pool 1"
