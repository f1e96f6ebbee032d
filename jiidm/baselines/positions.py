"""Where a pixel lies within its region: the maps of CLADE's intra-class positional encoding (Tan et al. 2021)."""
import cv2
import numpy as np

from jiidm.data.labels import NO_CLASS


def region_positions(labels):
    """How far right of and how far below its region's centre each pixel lies.

    A region is a connected component (8-connectivity) of one class; its centre is the mean of its pixels.

    Args:
        labels: label map H x W uint8.

    Returns:
        2 x H x W float32, from -1 to 1: fractions of the largest distance in the region; 0 in a region of one column or
        row, and where there is no class.
    """
    found = np.zeros((2, *labels.shape), np.float32)
    for label in np.unique(labels):
        if label == NO_CLASS:
            continue
        count, regions = cv2.connectedComponents((labels == label).astype(np.uint8), connectivity=8)
        inside = np.nonzero(regions)
        region = regions[inside]
        pixels = np.bincount(region, minlength=count)
        for axis, place in ((0, inside[1]), (1, inside[0])):
            centre = np.bincount(region, place, count) / np.maximum(pixels, 1)
            distance = place - centre[region]
            largest = np.zeros(count)
            np.maximum.at(largest, region, np.abs(distance))
            found[axis][inside] = distance / np.maximum(largest[region], 1e-9) * (largest[region] > 1e-9)
    return found
