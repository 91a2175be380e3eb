"""The stages of MRL's backbones, as the benchmarks of its operators take them."""

from bench.op_bench import Case, sized_for
from hybrid_kernels.samples import Maker

# (name, group, batch, side of the map, channels, side of a region)
STAGES = (
    ("CvT-13 stage 0, 224", "CvT, 224", 8, 56, 64, 4),
    ("CvT-13 stage 1, 224", "CvT, 224", 8, 28, 192, 4),
    ("CvT-13 stage 2, 224", "CvT, 224", 8, 14, 384, 2),
    ("CvT-13 stage 0, 384", "CvT, 384", 4, 96, 64, 4),
    ("CvT-13 stage 1, 384", "CvT, 384", 4, 48, 192, 4),
    ("CvT-13 stage 2, 384", "CvT, 384", 4, 24, 384, 2),
    ("Swin-T stage 0, 224", "Swin, 224", 8, 56, 96, 8),
    ("Swin-T stage 1, 224", "Swin, 224", 8, 28, 192, 4),
    ("Swin-T stage 2, 224", "Swin, 224", 8, 14, 384, 2),
    ("Swin-T stage 3, 224", "Swin, 224", 8, 7, 768, 1),
)
QUICK = ("CvT-13 stage 0, 224", "CvT-13 stage 2, 224")


def stage_cases(arguments) -> tuple[Case, ...]:
    """A case for each stage: arguments(maker, batch, side, channels, region)."""

    def case(name: str, group: str, batch: int, *sizes: int) -> Case:
        def build(make: Maker) -> tuple:
            return arguments(make, *sized_for(make.device, batch, *sizes))

        return Case(name, group, build, quick=name in QUICK)

    return tuple(case(*stage) for stage in STAGES)
