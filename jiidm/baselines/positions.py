"""Where a pixel lies within its region: the maps of CLADE's intra-class positional encoding (Tan et al. 2021)."""
import cv2
import numpy as np

from jiidm.data.labels import NO_CLASS


def region_positions(labels):
    """Label map H x W uint8 -> 2 x H x W float32: how far right and how far below of its region's centre a pixel lies.

    A region is what hangs together of one class (over corners too), its centre the mean of its pixels; the distances
    are shares of the largest in the region, -1 to 1. They are 0 in a region of one column or row, and without class.
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
