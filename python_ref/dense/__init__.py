"""Dense prediction: a backbone with a detector's, a segmenter's or a pose estimator's head.

The published tables were made with the usual toolbox models; these are the same networks in plain
PyTorch. They run forward to raw outputs, from which losses are computed, and to detections.
"""

from functools import partial
from inspect import signature

from torch import Tensor, nn

from python_ref.dense.detr import DeformableDetrNeck
from python_ref.dense.keypoints import SimpleBaseline
from python_ref.dense.mask_rcnn import MaskRCNN
from python_ref.dense.retinanet import RetinaNet
from python_ref.dense.segmentation import SemanticFPN, SumHead, UperNet

__all__ = ["DenseModel", "create_dense", "list_heads"]

_HEADS = {
    "cascade_mask_rcnn": partial(MaskRCNN, stages=3, box_convs=4, box_linears=1),
    "deformable_detr_neck": DeformableDetrNeck,
    "mask_rcnn": MaskRCNN,
    "retinanet": RetinaNet,
    "semantic_fpn": SemanticFPN,
    "simple_baseline": SimpleBaseline,
    "topformer": SumHead,
    "upernet": UperNet,
}


class DenseModel(nn.Module):
    """Image (B, in_chans, H, W) -> outputs of the head.

    Args:
        backbone: image -> list of maps, described by its `feature_info`.
        head: called with the maps and the size (H, W) of the image, which detectors clip boxes to.
    """

    def __init__(self, backbone: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, x: Tensor) -> object:
        return self.head(self.backbone(x), x.shape[-2:])


def list_heads() -> list[str]:
    """Names of all dense heads, sorted."""
    return sorted(_HEADS)


def create_dense(head: str, backbone: nn.Module, **options: object) -> DenseModel:
    """Put a dense head with random weights on a backbone.

    Args:
        head: one of `list_heads()`.
        backbone: of `create_model(..., features_only=True)`.
        **options: arguments of the head after its first.

    Returns:
        A module from images to the outputs of the head: logits (B, classes, H_1, W_1) of a
        segmenter, heat maps of a pose estimator, a named tuple of a detector.

    Raises:
        ValueError: no such head, no such option, or the backbone does not return maps.
    """
    if head not in _HEADS:
        raise ValueError(f"no dense head is called {head!r}; there are {', '.join(list_heads())}")
    if not getattr(backbone, "features_only", False):
        raise ValueError("backbone must return its maps: create it with features_only=True")
    known = list(signature(_HEADS[head]).parameters)[1:]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"{head} has no option {unknown[0]!r}; its options are {', '.join(known)}")
    return DenseModel(backbone, _HEADS[head](backbone.feature_info, **options))
