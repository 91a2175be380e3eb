"""Instance segmentation of nuclei, MRL Sec. 4.3: what surrounds the network.

Targets from label maps, the loss, label maps from predictions, metrics. All of it follows
"HoVer-Net: Simultaneous segmentation and classification of nuclei in multi-tissue histology
images".
"""

from python_ref.nuclei.loss import hover_loss
from python_ref.nuclei.metrics import Quality, aggregated_jaccard, dice, panoptic_quality
from python_ref.nuclei.postprocess import label_nuclei
from python_ref.nuclei.targets import Targets, central, make_targets
from python_ref.nuclei.tiles import predict_image

__all__ = [
    "Quality",
    "Targets",
    "aggregated_jaccard",
    "central",
    "dice",
    "hover_loss",
    "label_nuclei",
    "make_targets",
    "panoptic_quality",
    "predict_image",
]
