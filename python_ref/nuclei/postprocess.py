"""From a network's maps to instances: watershed on the gradients of the distance maps.

HoVer-Net, Sec. 3.2. The constants are those of its released code.
"""

import numpy as np

try:
    from scipy import ndimage
    from scipy.special import binom
    from skimage.segmentation import watershed
except ImportError as error:
    raise ImportError(
        f"python_ref.nuclei needs {error.name}: pip install 'hybrid-kernels[nuclei]'"
    ) from error

SMALLEST = 10  # pixels of a nucleus, and of a marker
FOREGROUND, EDGE = 0.5, 0.4  # thresholds
GRADIENT_SIZE = 21
DISC = np.array(  # the ellipse that fits into 5 x 5
    [
        [0, 0, 1, 0, 0],
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
        [1, 1, 1, 1, 1],
        [0, 0, 1, 0, 0],
    ],
    dtype=bool,
)


def label_nuclei(probability: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Separate touching nuclei where the distance maps jump.

    Args:
        probability: of the foreground, (H, W) in [0, 1].
        distances: (2, H, W), horizontal and vertical distance to a nucleus' centre in [-1, 1].

    Returns:
        Label map (H, W) int32, 0 for the background, labels 1, 2, ... in no particular order.

    Raises:
        ValueError: the shapes do not fit together.
    """
    if probability.ndim != 2 or distances.shape != (2, *probability.shape):
        raise ValueError(
            "probability must be (H, W) and distances (2, H, W), got "
            f"{probability.shape} and {distances.shape}"
        )
    foreground = drop_small(_components(probability >= FOREGROUND), SMALLEST) > 0
    edge = _edges(distances.astype(np.float64), foreground)
    landscape = -_blur((1 - edge) * foreground)
    markers = ndimage.binary_fill_holes(foreground & (edge < EDGE))
    markers = drop_small(_components(_open(markers)), SMALLEST)
    return watershed(landscape, markers, mask=foreground).astype(np.int32)


def drop_small(labels: np.ndarray, smallest: int) -> np.ndarray:
    """Label map (H, W) without the instances of fewer than `smallest` pixels."""
    sizes = np.bincount(labels.ravel())
    return np.where(sizes[labels] < smallest, 0, labels)


def _edges(distances: np.ndarray, foreground: np.ndarray) -> np.ndarray:
    """Where a distance map falls along its own axis it leaves a nucleus and enters the next."""
    jumps = [
        1 - _stretch(_gradient(_stretch(distance), axis))
        for distance, axis in zip(distances, (1, 0), strict=True)
    ]
    return np.clip(np.maximum(*jumps) - ~foreground, 0, None)


def _stretch(x: np.ndarray) -> np.ndarray:
    """Affine map of the values onto [0, 1]; a constant map becomes 0."""
    low, high = x.min(initial=np.inf), x.max(initial=-np.inf)
    return (x - low) / (high - low) if high > low else np.zeros_like(x)


def _gradient(x: np.ndarray, axis: int) -> np.ndarray:
    """Sobel derivative along an axis: binomial smoothing, one step of it a difference."""
    derivative = np.convolve(_binomial(GRADIENT_SIZE - 2), [-1, 1])
    x = ndimage.correlate1d(x, derivative, axis=axis, mode="mirror")
    return ndimage.correlate1d(x, _binomial(GRADIENT_SIZE - 1), axis=1 - axis, mode="mirror")


def _binomial(order: int) -> np.ndarray:
    """Coefficients of (1 + x)**order."""
    return binom(order, np.arange(order + 1))


def _blur(x: np.ndarray) -> np.ndarray:
    for axis in (0, 1):
        x = ndimage.correlate1d(x, [0.25, 0.5, 0.25], axis=axis, mode="mirror")
    return x


def _open(mask: np.ndarray) -> np.ndarray:
    """Remove what the disc does not fit into; the disc may lie across the border of the image."""
    eroded = ndimage.binary_erosion(mask, DISC, border_value=1)
    return ndimage.binary_dilation(eroded, DISC)


def _components(mask: np.ndarray) -> np.ndarray:
    """Regions connected by the sides of pixels, numbered."""
    return ndimage.label(mask)[0]
